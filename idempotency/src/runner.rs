//! Doing an operation: claim it, do the work, tell the store what came of it.
//!
//! ```text
//! expired by its own reference time   Expired, and the store is not asked
//! finished                            the stored result, even if it has expired since
//! expired                             Expired
//! running, and its time is not up     StillRunning
//! otherwise                           the work is done; its result is stored, or its error
//! ```

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use jiff::Timestamp;
use tracing::warn;

use crate::claim::{self, Claim, Claimed};
use crate::error::Error;
use crate::phase::Phase;
use crate::postgres_store::PostgresStore;
use crate::request::Request;
use crate::store::Store;

/// Any error of the work.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

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
        ensure_in_time(operation)?;
        let claim = match self.store.claim(operation).await? {
            Claimed::Finished(result) => return Ok(Outcome { result, is_replayed: true }),
            Claimed::Mine(claim) => claim,
        };
        match caught(AssertUnwindSafe(async { work().await }).catch_unwind().await) {
            Ok(result) => {
                self.store.finish(&claim, &result).await?;
                Ok(Outcome { result, is_replayed: false })
            }
            Err(error) => {
                note_unless_told(&claim, self.store.fail(&claim, &error.to_string()).await);
                Err(error)
            }
        }
    }
}

impl Runner<PostgresStore> {
    /// Does `work` in one phase, unless it has been done: its effects in Postgres and its result are kept together, or
    /// neither. Nothing is kept of work that fails, panics or outlives its expiration. A connection is held while it goes
    /// on, and no statement may take longer than the claim holds.
    ///
    /// # Errors
    /// As [`call`](Self::call). An [`Error::Postgres`] that [is a conflict](Error::is_conflict) may be tried again at once.
    pub async fn call_in_phase<E: Into<BoxError>>(
        &self,
        operation: &Request,
        work: impl AsyncFnOnce(&Phase<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<Outcome, Error> {
        ensure_in_time(operation)?;
        operation.check()?;
        let mut client = self.store.take().await?;
        let mut claim = match claim::claim(&client, operation).await? {
            Claimed::Finished(result) => return Ok(Outcome { result, is_replayed: true }),
            Claimed::Mine(claim) => claim,
        };
        let done = async {
            let phase = claim.begin(&mut client).await?;
            // Dropped with an error, the phase is rolled back.
            let result = caught(AssertUnwindSafe(async { work(&phase).await }).catch_unwind().await)?;
            phase.finish(&result).await?;
            Ok(result)
        };
        match done.await {
            Ok(result) => Ok(Outcome { result, is_replayed: false }),
            // The phase itself has noted that.
            Err(error @ Error::Expired { .. }) => Err(error),
            Err(error) => {
                note_unless_told(&claim, claim::fail(&client, &claim, &error.to_string()).await);
                Err(error)
            }
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

/// The work's own result, or why there is none.
fn caught<E: Into<BoxError>>(done: Result<Result<Vec<u8>, E>, Box<dyn Any + Send>>) -> Result<Vec<u8>, Error> {
    match done {
        Ok(result) => result.map_err(|error| Error::Failed(error.into())),
        Err(panic) => Err(Error::panicked(panic.as_ref())),
    }
}

/// The caller gets the error of the work; that the store does not know it is said here.
fn note_unless_told(claim: &Claim, told: Result<bool, Error>) {
    match told {
        Ok(true) => {}
        Ok(false) => warn!(claim.id, claim.token, "the claim of a failed operation was lost"),
        Err(error) => {
            warn!(
                claim.id,
                claim.token,
                error = &error as &dyn std::error::Error,
                "a failed operation stays claimed until its time-out"
            );
        }
    }
}
