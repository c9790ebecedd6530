//! Operations in Postgres and their results in Redis, for results that would make the table large.
//!
//! Postgres alone decides whether an operation is done. If Redis has lost a result, the operation stays done, and a retry
//! receives [`Error::ResultLost`].

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use redis::cmd;
use tracing::warn;

use crate::claim::{Claim, Claimed, Status, Tracked};
use crate::error::Error;
use crate::link::Link;
use crate::operation::Operation;
use crate::postgres_store::PostgresStore;
use crate::store::Store;

/// The first bytes of a reference in the column `result`; the key in Redis follows. JSON never begins with a zero byte.
const REFERENCE: &[u8] = b"\0in redis: ";

/// Stores operations in Postgres, and long results in Redis.
///
/// Redis must be a server, and no node of a Redis Cluster: there, every long result would be in Postgres.
///
/// The result is written to Redis before the operation is finished. If Redis is away then, the result is stored in Postgres.
#[derive(Clone)]
pub struct ResultsInRedis {
    store: PostgresStore,
    link: Link,
    prefix: String,
    inline_len_max: usize,
    ttl: Duration,
}

impl ResultsInRedis {
    /// Stores results of more than `inline_len_max` bytes on the server of `client` for `ttl`, under keys
    /// `<prefix>:result:<id>:<token>:<random>`. With 0, Postgres stores only empty results. If `ttl` is shorter than the
    /// expiration of an operation, late retries receive [`Error::ResultLost`].
    pub fn new(
        store: PostgresStore,
        client: redis::Client,
        prefix: impl Into<String>,
        inline_len_max: usize,
        ttl: Duration,
    ) -> Self {
        Self { store, link: Link::new(client), prefix: prefix.into(), inline_len_max, ttl }
    }

    /// The result, which is in Redis if the column has a reference.
    async fn resolve(&self, result: Vec<u8>, target: &str, key: &str) -> Result<Vec<u8>, Error> {
        let Some(redis_key) = result.strip_prefix(REFERENCE) else { return Ok(result) };
        let found: Option<Vec<u8>> = self.link.query(cmd("GET").arg(redis_key)).await?;
        found.ok_or_else(|| Error::ResultLost { target: target.to_owned(), key: key.to_owned() })
    }
}

impl Store for ResultsInRedis {
    /// # Errors
    /// Also [`Error::ResultLost`] if the operation is finished and Redis does not have its result any more, and
    /// [`Error::Redis`] if Redis does not answer.
    async fn claim(&self, operation: &Operation) -> Result<Claimed, Error> {
        Ok(match self.store.claim(operation).await? {
            Claimed::Finished(result) => {
                Claimed::Finished(self.resolve(result, &operation.target, &operation.key).await?)
            }
            mine @ Claimed::Mine(_) => mine,
        })
    }

    async fn finish(&self, claim: &Claim, result: &[u8]) -> Result<(), Error> {
        // A result that looks like a reference must not be stored in Postgres, where it would be read as a reference.
        let is_ambiguous = result.starts_with(REFERENCE);
        if result.len() <= self.inline_len_max && !is_ambiguous {
            return self.store.finish(claim, result).await;
        }
        // Each attempt writes under a separate key, so that a late attempt does not replace the stored result.
        let attempt = RandomState::new().build_hasher().finish();
        let redis_key = format!("{}:result:{}:{}:{attempt:016x}", self.prefix, claim.id, claim.token);
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64 / 1000);
        let mut set = cmd("SET");
        set.arg(&redis_key).arg(result).arg("PX").arg(ttl_ms);
        match self.link.query::<()>(&set).await {
            Ok(()) => self.store.finish(claim, &[REFERENCE, redis_key.as_bytes()].concat()).await,
            Err(error) if is_ambiguous => Err(error.into()),
            Err(error) => {
                warn!(claim.id, error = &error as &dyn std::error::Error, "a result goes to Postgres instead of Redis");
                self.store.finish(claim, result).await
            }
        }
    }

    async fn fail(&self, claim: &Claim, message: &str) -> Result<bool, Error> {
        self.store.fail(claim, message).await
    }

    /// # Errors
    /// As [`claim`](Self::claim).
    async fn find(&self, target: &str, key: &str) -> Result<Option<Tracked>, Error> {
        let Some(mut tracked) = self.store.find(target, key).await? else { return Ok(None) };
        if let Some(result) = tracked.result.take() {
            tracked.result = Some(self.resolve(result, target, key).await?);
        }
        Ok(Some(tracked))
    }

    async fn fail_timed_out(&self, count_max: i64) -> Result<u64, Error> {
        self.store.fail_timed_out(count_max).await
    }

    async fn fail_expired(&self, count_max: i64) -> Result<u64, Error> {
        self.store.fail_expired(count_max).await
    }

    /// The results of deleted operations stay in Redis until their TTL is over.
    async fn delete_expired(&self, status: Status, count_max: i64) -> Result<u64, Error> {
        self.store.delete_expired(status, count_max).await
    }
}
