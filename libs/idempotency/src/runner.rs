//! Doing an operation: claim it, do the work, store the result.
//!
//! ```text
//! expired by its own reference time   Expired, and the store is not asked
//! finished                            the stored result, even if it has expired since
//! expired                             Expired
//! running, and its time is not up     StillRunning
//! otherwise                           the work is done; its result is stored, or its error
//! ```

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use jiff::Timestamp;
use tracing::{debug, warn};

use crate::claim::{Claim, Claimed};
use crate::error::{Error, is_conflict};
use crate::operation::Operation;
use crate::phase::{Phase, PhaseEnd, Phases};
use crate::postgres_store::PostgresStore;
use crate::store::Store;

/// Any error of the work.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How often a phase is tried if its transaction conflicts with another.
const CONFLICT_COUNT_MAX: u32 = 5;

/// The result of an operation, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The value that the work returned, now or in an earlier call.
    pub result: Vec<u8>,
    /// Whether an earlier call had done the work.
    pub is_replayed: bool,
}

/// Does operations, and tracks them in a store.
#[derive(Debug, Clone)]
pub struct Runner<S> {
    store: S,
}

impl<S: Store> Runner<S> {
    /// Tracks operations in `store`.
    pub fn new(store: S) -> Self {
        Self { store }
    }

    /// The store of the operations.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Does `work` unless it has been done. Meanwhile it holds no connection of the store.
    ///
    /// Doing the work and recording that it is done are two steps. After a crash between them, or if the work outlives its
    /// claim, the work is done again. If its effects must not happen twice, use [`call_in_phase`](Self::call_in_phase).
    ///
    /// A dropped future leaves the operation claimed until the claim runs out.
    ///
    /// # Errors
    /// [`Error::Failed`] with the error of the work, or [`Error::Panic`]. From the store: [`Error::Expired`],
    /// [`Error::StillRunning`], [`Error::Mismatch`], [`Error::Fenced`], [`Error::Invalid`], [`Error::ResultLost`], or its
    /// server is away.
    pub async fn call<E: Into<BoxError>>(
        &self,
        operation: &Operation,
        work: impl AsyncFnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Outcome, Error> {
        let claim = match self.claim(operation).await? {
            Claimed::Finished(result) => return Ok(Outcome { result, is_replayed: true }),
            Claimed::Mine(claim) => claim,
        };
        let done = unless_it_panics(async { work().await.map_err(|error| Error::Failed(error.into())) }).await;
        let result = self.or_give_back(&claim, done).await?;
        self.store.finish(&claim, &result).await?;
        Ok(Outcome { result, is_replayed: false })
    }

    async fn claim(&self, operation: &Operation) -> Result<Claimed, Error> {
        ensure_in_time(operation)?;
        self.store.claim(operation).await
    }

    /// Returns the result of the work. After an error it gives the claim back, so that the next try may begin at once.
    async fn or_give_back<T, E>(&self, claim: &Claim, done: Result<T, E>) -> Result<T, E>
    where
        E: std::error::Error + 'static,
    {
        let Err(error) = &done else { return done };
        warn!(
            operation = claim.id,
            recovery_point = claim.recovery_point,
            error = error as &dyn std::error::Error,
            "an operation stops"
        );
        let message = error.to_string();
        match self.store.fail(claim, &message).await {
            Ok(true) => {}
            Ok(false) => debug!(operation = claim.id, claim.token, "its claim has ended already"),
            Err(error) => {
                // The next try has to wait until the claim runs out.
                warn!(error = &error as &dyn std::error::Error, "Failed to unlock key {}.", claim.id);
            }
        }
        done
    }
}

impl Runner<PostgresStore> {
    /// Does work of several phases unless it has been done. Begins at the recovery point where an earlier try has stopped. A
    /// phase that conflicts with another transaction is tried again at once, up to five times in all.
    ///
    /// A dropped future leaves the operation claimed until the claim runs out.
    ///
    /// # Errors
    /// The error of a phase, or an error of the store as in [`call`](Self::call). The effects of earlier phases stay, and the
    /// next call goes on from there.
    pub async fn call_in_phases<P: Phases>(&self, operation: &Operation, work: &P) -> Result<Outcome, P::Error> {
        let claimed = match self.claim(operation).await {
            Err(Error::Mismatch { .. }) => self.claim_as_stored(operation, work).await?,
            claimed => claimed?,
        };
        let mut claim = match claimed {
            Claimed::Finished(result) => return Ok(Outcome { result, is_replayed: true }),
            Claimed::Mine(claim) => claim,
        };
        let driven = unless_it_panics(drive(work, &mut claim)).await;
        let result = self.or_give_back(&claim, driven).await?;
        Ok(Outcome { result, is_replayed: false })
    }

    /// Claims an operation whose stored payload has other bytes, if it asks for the same.
    async fn claim_as_stored<P: Phases>(&self, operation: &Operation, work: &P) -> Result<Claimed, Error> {
        let Some(stored) = self.store.find(&operation.target, &operation.key).await? else {
            // It was deleted in the meantime.
            return self.claim(operation).await;
        };
        if !work.is_same(&stored.payload, &operation.payload) {
            return Err(operation.mismatch());
        }
        self.claim(&Operation { payload: stored.payload, ..operation.clone() }).await
    }

    /// Does `work` in one phase, unless it has been done: its effects in Postgres and its result are stored together, or
    /// neither. If the work fails, panics or outlives its expiration, nothing is stored. Meanwhile it holds a connection, and
    /// no statement may take longer than the claim holds.
    ///
    /// # Errors
    /// As [`call`](Self::call). After an error that [is a conflict](Error::is_conflict) the call may be repeated at once.
    pub async fn call_in_phase<E: Into<BoxError>>(
        &self,
        operation: &Operation,
        work: impl AsyncFnOnce(&Phase<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<Outcome, Error> {
        let mut claim = match self.claim(operation).await? {
            Claimed::Finished(result) => return Ok(Outcome { result, is_replayed: true }),
            Claimed::Mine(claim) => claim,
        };
        let done = unless_it_panics(async {
            let mut client = self.store.take().await?;
            let phase = claim.begin(&mut client).await?;
            // An error drops the phase, which rolls it back.
            let result = work(&phase).await.map_err(|error| Error::Failed(error.into()))?;
            phase.finish(result).await
        });
        let done = done.await.map(|progress| match progress {
            PhaseEnd::Finished(result) => result,
            PhaseEnd::Advanced => unreachable!("the phase was the last"),
        });
        let result = self.or_give_back(&claim, done).await?;
        Ok(Outcome { result, is_replayed: false })
    }
}

/// Goes from phase to phase. A panic drops the open transaction, which rolls it back.
async fn drive<P: Phases>(work: &P, claim: &mut Claim) -> Result<Vec<u8>, P::Error> {
    let mut conflict_count = 0;
    loop {
        match work.next_phase(claim).await {
            Ok(PhaseEnd::Advanced) => {}
            Ok(PhaseEnd::Finished(result)) => return Ok(result),
            Err(error) if is_conflict(&error) && conflict_count + 1 < CONFLICT_COUNT_MAX => {
                conflict_count += 1;
                debug!(operation = claim.id, "a phase is tried again after a conflict");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Refuses an operation that has expired by its own reference time, without asking the store. Only this decision uses the
/// clock of this process. If that clock is wrong, the store still decides about every operation that passes.
fn ensure_in_time(operation: &Operation) -> Result<(), Error> {
    let (Some(reference_time), Some(expiration)) = (operation.reference_time, operation.expiration) else {
        return Ok(());
    };
    // Beyond the end of the calendar nothing has expired.
    if reference_time.checked_add(expiration).is_ok_and(|expires_at| expires_at < Timestamp::now()) {
        return Err(operation.expired());
    }
    Ok(())
}

async fn unless_it_panics<T, E: From<Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(Error::panicked(panic.as_ref()).into()))
}
