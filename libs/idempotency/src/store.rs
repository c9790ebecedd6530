//! The stores of operations: the same rules in Postgres and in Redis, and one suite of tests for both.

use std::future::Future;

use crate::claim::{Claim, Claimed, Status, Tracked};
use crate::error::Error;
use crate::operation::Operation;

/// Tracks operations. The store alone decides which process works on an operation, by its server's clock.
///
/// If the server is away, every function fails with [`Error::Postgres`], [`Error::Pool`] or `Error::Redis`. Then it is unknown
/// whether the change was made; a claim that was made runs out later.
pub trait Store: Clone + Send + Sync + 'static {
    /// Claims an operation that is new, has failed, or has a claim that ran out. If many processes try, one succeeds.
    ///
    /// # Errors
    /// [`Error::Expired`], [`Error::StillRunning`], [`Error::Mismatch`], [`Error::Invalid`]. A finished operation returns its
    /// result even after it has expired.
    fn claim(&self, operation: &Operation) -> impl Future<Output = Result<Claimed, Error>> + Send;

    /// Ends the operation. Every retry receives `result`. A late result is accepted as long as no other process has claimed the
    /// operation.
    ///
    /// # Errors
    /// [`Error::Fenced`] if another process has claimed it, or a sweeper has marked it as failed; [`Error::Expired`] if it took
    /// too long: the operation has failed.
    fn finish(&self, claim: &Claim, result: &[u8]) -> impl Future<Output = Result<(), Error>> + Send;

    /// Gives the operation back after a failure: it may be claimed again at once. Returns whether the claim was still
    /// held.
    ///
    /// # Errors
    /// The server is away.
    fn fail(&self, claim: &Claim, message: &str) -> impl Future<Output = Result<bool, Error>> + Send;

    /// An operation, if it is known.
    ///
    /// # Errors
    /// The server is away.
    fn find(&self, target: &str, key: &str) -> impl Future<Output = Result<Option<Tracked>, Error>> + Send;

    /// Marks running operations whose claims have run out as failed, the oldest first. Returns how many, at most `count_max`.
    ///
    /// # Errors
    /// The server is away.
    fn fail_timed_out(&self, count_max: i64) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Marks running operations that have expired as failed, the oldest first. Returns how many, at most `count_max`.
    ///
    /// # Errors
    /// The server is away.
    fn fail_expired(&self, count_max: i64) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Deletes operations of a status that have expired, the oldest first. Returns how many, at most `count_max`.
    ///
    /// # Errors
    /// The server is away.
    fn delete_expired(&self, status: Status, count_max: i64) -> impl Future<Output = Result<u64, Error>> + Send;
}
