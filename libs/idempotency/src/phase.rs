//! A phase: one transaction that does some of the work and moves the recovery point.

use std::future::Future;

use deadpool_postgres::{ClientWrapper, Transaction};
use tokio_postgres::types::ToSql;

use crate::claim::Claim;
use crate::error::Error;
use crate::operation::{EXPIRED, FINISHED};

/// Work in several phases, for [`Runner::call_in_phases`](crate::Runner::call_in_phases).
pub trait Phases: Sync {
    /// Why the work stops. If its [source](std::error::Error::source) is a conflict of transactions, the phase is tried again.
    type Error: std::error::Error + From<Error> + Send + 'static;

    /// Whether a stored payload asks for the same as another. Override it if a program serialises the payload: another version
    /// of the program may write the same request in other bytes.
    fn is_same(&self, stored: &[u8], asked: &[u8]) -> bool {
        stored == asked
    }

    /// Does the phase that begins at the claim's recovery point: first calls other servers, with no transaction open, then
    /// [begins](Claim::begin) the phase and [advances](Phase::advance) or [finishes](Phase::finish).
    ///
    /// # Errors
    /// The operation stops here, and the next call begins with this phase again.
    fn next_phase(&self, claim: &mut Claim) -> impl Future<Output = Result<PhaseEnd, Self::Error>> + Send;
}

/// The result of a phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PhaseEnd {
    /// The recovery point has moved: there is another phase.
    Advanced,
    /// That was the last phase. This is the result of the operation.
    Finished(Vec<u8>),
}

/// A transaction that has checked the claim's token. If it is dropped, it is rolled back.
pub struct Phase<'a> {
    tx: Transaction<'a>,
    claim: &'a mut Claim,
}

impl Claim {
    /// Begins the phase of the recovery point. The operation's row is locked until the end of the phase, and no statement
    /// in it may take longer than the claim holds. The transaction has the session's isolation level, by default read
    /// committed: a decision that depends on other rows must lock them, or rely on constraints.
    ///
    /// # Errors
    /// [`Error::Fenced`] if the claim is not held any more; otherwise Postgres is away.
    pub async fn begin<'a>(&'a mut self, client: &'a mut ClientWrapper) -> Result<Phase<'a>, Error> {
        let tx = client.transaction().await?;
        // 0 would mean no limit, and NULL would remove the limit of the session.
        let statement = tx
            .prepare_cached(
                "-- idempotency::begin
                 SELECT set_config('statement_timeout',
                     CASE WHEN timeout_at IS NULL THEN current_setting('statement_timeout')
                     ELSE LEAST(GREATEST(ceil(extract(epoch FROM timeout_at - clock_timestamp()) * 1000), 1), 2147483647)
                          ::bigint::text END, true)
                 FROM tracked_operations
                 WHERE id = $1 AND token = $2 AND recovery_point = $3 AND status = 'running'
                   AND (timeout_at IS NULL OR timeout_at > clock_timestamp())
                 FOR UPDATE",
            )
            .await?;
        // Sent together: one round trip.
        let held: [&(dyn ToSql + Sync); 3] = [&self.id, &self.token, &self.recovery_point];
        let (row, saved) = tokio::join!(tx.query_opt(&statement, &held), tx.batch_execute("SAVEPOINT work"));
        row?.ok_or(Error::Fenced)?;
        saved?;
        Ok(Phase { tx, claim: self })
    }
}

impl<'a> Phase<'a> {
    /// The transaction of the phase. Its effects are committed together with the recovery point, or not at all. After a
    /// statement that fails, Postgres refuses all others of the phase.
    pub fn tx(&self) -> &Transaction<'a> {
        &self.tx
    }

    /// Ends the phase: the next one is `recovery_point`.
    ///
    /// # Errors
    /// Postgres is away or refuses; nothing was stored. If the connection broke, that is unknown.
    pub async fn advance(self, recovery_point: &str) -> Result<PhaseEnd, Error> {
        let statement = self
            .tx
            .prepare_cached("-- idempotency::advance\nUPDATE tracked_operations SET recovery_point = $2 WHERE id = $1")
            .await?;
        // This also proves that the transaction has not failed: COMMIT of a failed transaction returns Ok.
        self.tx.execute(&statement, &[&self.claim.id, &recovery_point]).await?;
        self.tx.commit().await?;
        self.claim.recovery_point = recovery_point.to_owned();
        Ok(PhaseEnd::Advanced)
    }

    /// Ends the phase and the operation. Every retry receives `result`.
    ///
    /// # Errors
    /// [`Error::Expired`] if it took too long: nothing of the phase was stored, and the operation has failed. Otherwise as
    /// [`advance`](Self::advance).
    pub async fn finish(self, result: Vec<u8>) -> Result<PhaseEnd, Error> {
        let statement = self
            .tx
            .prepare_cached(
                "-- idempotency::finish
                 UPDATE tracked_operations
                 SET status = 'finished', recovery_point = 'finished', result = $2, error_message = NULL,
                     finished_at = clock_timestamp()
                 WHERE id = $1 AND (expires_at IS NULL OR expires_at > clock_timestamp())",
            )
            .await?;
        if self.tx.execute(&statement, &[&self.claim.id, &result]).await? == 1 {
            self.tx.commit().await?;
            self.claim.recovery_point = FINISHED.to_owned();
            return Ok(PhaseEnd::Finished(result));
        }
        Err(self.expire().await?)
    }

    async fn expire(self) -> Result<Error, Error> {
        let expire = "-- idempotency::expire
            UPDATE tracked_operations SET status = 'failed', error_count = error_count + 1, error_message = $2
            WHERE id = $1 RETURNING target, key";
        // This undoes the effects of the phase, and keeps the lock on the row.
        self.tx.batch_execute("ROLLBACK TO SAVEPOINT work").await?;
        let row = self.tx.query_one(expire, &[&self.claim.id, &EXPIRED]).await?;
        self.tx.commit().await?;
        Ok(Error::Expired { target: row.get(0), key: row.get(1) })
    }
}
