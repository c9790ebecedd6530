//! Doing an operation: claim it, do the work, tell the store what came of it.
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
use crate::phase::{Phase, Phases, Progress};
use crate::postgres_store::PostgresStore;
use crate::operation::Request;
use crate::store::Store;

/// Any error of the work.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How often a phase is tried whose transaction was in the way of another.
const CONFLICT_COUNT_MAX: u32 = 5;

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the work returned, now or when it was done.
    pub result: Vec<u8>,
    /// Whether it had been done before.
    pub is_replayed: bool,
}

/// Does operations that a store keeps track of.
#[derive(Debug, Clone)]
pub struct Runner<S> {
    store: S,
}

impl<S: Store> Runner<S> {
    /// Does operations that `store` keeps track of.
    pub fn new(store: S) -> Self {
        Self { store }
    }

    /// Where the operations are kept.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Does `work` unless it has been done. Nothing of the store is held while it goes on.
    ///
    /// The work and the note that it is done are two steps. After a crash between them, or if the work outlives its
    /// claim, it is done again: its effects must bear that, or be in Postgres and in [`call_in_phase`](Self::call_in_phase).
    ///
    /// A dropped future leaves the operation claimed until the claim runs out.
    ///
    /// # Errors
    /// [`Error::Failed`] with the error of the work, [`Error::Panic`]; what the store says: [`Error::Expired`],
    /// [`Error::StillRunning`], [`Error::Mismatch`], [`Error::Fenced`], [`Error::Invalid`], [`Error::ResultLost`]; or its
    /// server is away.
    pub async fn call<E: Into<BoxError>>(
        &self,
        operation: &Request,
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

    async fn claim(&self, operation: &Request) -> Result<Claimed, Error> {
        ensure_in_time(operation)?;
        self.store.claim(operation).await
    }

    /// Hands on what came of the work. If that is an error, the next try may begin at once.
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
            Ok(false) => debug!(operation = claim.id, claim.token, "its claim is over already"),
            Err(error) => {
                // It begins when the claim has run out.
                warn!(error = &error as &dyn std::error::Error, "Failed to unlock key {}.", claim.id);
            }
        }
        done
    }
}

impl Runner<PostgresStore> {
    /// Does work of several phases, from the recovery point where an earlier try has stopped to the end, unless it has been
    /// done. A phase that was in the way of another transaction is tried again at once, up to five times in all.
    ///
    /// A dropped future leaves the operation claimed until the claim runs out.
    ///
    /// # Errors
    /// The error of a phase, and what [`call`](Self::call) says of the store. What earlier phases did is kept, and the next
    /// call goes on from there.
    pub async fn call_in_phases<P: Phases>(&self, operation: &Request, work: &P) -> Result<Outcome, P::Error> {
        let mut claim = match self.claim(operation).await? {
            Claimed::Finished(result) => return Ok(Outcome { result, is_replayed: true }),
            Claimed::Mine(claim) => claim,
        };
        let driven = unless_it_panics(drive(work, &mut claim)).await;
        let result = self.or_give_back(&claim, driven).await?;
        Ok(Outcome { result, is_replayed: false })
    }

    /// Does `work` in one phase, unless it has been done: its effects in Postgres and its result are kept together, or
    /// neither. Nothing is kept of work that fails, panics or outlives its expiration. A connection is held while it goes
    /// on, and no statement may take longer than the claim holds.
    ///
    /// # Errors
    /// As [`call`](Self::call). After one that [is a conflict](Error::is_conflict) the same may be tried again at once.
    pub async fn call_in_phase<E: Into<BoxError>>(
        &self,
        operation: &Request,
        work: impl AsyncFnOnce(&Phase<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<Outcome, Error> {
        let mut claim = match self.claim(operation).await? {
            Claimed::Finished(result) => return Ok(Outcome { result, is_replayed: true }),
            Claimed::Mine(claim) => claim,
        };
        let done = unless_it_panics(async {
            let mut client = self.store.take().await?;
            let phase = claim.begin(&mut client).await?;
            // Dropped with an error, the phase is rolled back.
            let result = work(&phase).await.map_err(|error| Error::Failed(error.into()))?;
            phase.finish(result).await
        });
        let done = done.await.map(|progress| match progress {
            Progress::Finished(result) => result,
            Progress::Advanced => unreachable!("the phase was the last"),
        });
        let result = self.or_give_back(&claim, done).await?;
        Ok(Outcome { result, is_replayed: false })
    }
}

/// From phase to phase. The transaction that a panic leaves open is rolled back when it is dropped.
async fn drive<P: Phases>(work: &P, claim: &mut Claim) -> Result<Vec<u8>, P::Error> {
    let mut conflict_count = 0;
    loop {
        match work.next_phase(claim).await {
            Ok(Progress::Advanced) => {}
            Ok(Progress::Finished(result)) => return Ok(result),
            Err(error) if is_conflict(&error) && conflict_count + 1 < CONFLICT_COUNT_MAX => {
                conflict_count += 1;
                debug!(operation = claim.id, "a phase is tried again after a conflict");
            }
            Err(error) => return Err(error),
        }
    }
}

/// What is late by its own word is not worth asking the store. This is the one decision that this process's clock takes:
/// it refuses too much or too little by as much as that clock is off, and the store has the last word.
fn ensure_in_time(operation: &Request) -> Result<(), Error> {
    let (Some(reference_time), Some(expiration)) = (operation.reference_time, operation.expiration) else {
        return Ok(());
    };
    // Where the calendar ends, nothing has expired.
    if reference_time.checked_add(expiration).is_ok_and(|expires_at| expires_at < Timestamp::now()) {
        return Err(operation.expired());
    }
    Ok(())
}

async fn unless_it_panics<T, E: From<Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(Error::panicked(panic.as_ref()).into()))
}
