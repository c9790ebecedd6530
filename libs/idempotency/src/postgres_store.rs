//! Operations in Postgres, table `tracked_operations`.

use deadpool_postgres::{Object, Pool};

use crate::claim::{self, Claim, Claimed, Status, Tracked};
use crate::error::Error;
use crate::operation::Operation;
use crate::store::Store;
use crate::sweep;

/// Stores operations in Postgres. It holds a connection of the pool for one statement at a time.
#[derive(Clone)]
pub struct PostgresStore {
    pool: Pool,
}

impl PostgresStore {
    /// Stores operations in the database of `pool`, where `schema.sql` has been applied.
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }

    pub(crate) async fn take(&self) -> Result<Object, Error> {
        Ok(self.pool.get().await?)
    }
}

impl Store for PostgresStore {
    async fn claim(&self, operation: &Operation) -> Result<Claimed, Error> {
        // Checked first, because a malformed operation need not wait for a connection.
        operation.check()?;
        claim::claim(&*self.take().await?, operation).await
    }

    async fn finish(&self, claim: &Claim, result: &[u8]) -> Result<(), Error> {
        claim::finish(&*self.take().await?, claim, result).await
    }

    async fn fail(&self, claim: &Claim, message: &str) -> Result<bool, Error> {
        claim::fail(&*self.take().await?, claim, message).await
    }

    async fn find(&self, target: &str, key: &str) -> Result<Option<Tracked>, Error> {
        claim::find(&*self.take().await?, target, key).await
    }

    async fn fail_timed_out(&self, count_max: i64) -> Result<u64, Error> {
        sweep::fail_timed_out(&*self.take().await?, count_max).await
    }

    async fn fail_expired(&self, count_max: i64) -> Result<u64, Error> {
        sweep::fail_expired(&*self.take().await?, count_max).await
    }

    async fn delete_expired(&self, status: Status, count_max: i64) -> Result<u64, Error> {
        sweep::delete_expired(&*self.take().await?, status, count_max).await
    }
}
