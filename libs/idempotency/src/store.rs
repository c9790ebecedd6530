//! Where operations are kept: the same rules in Postgres and in Redis, and one suite of tests for both.

use std::future::Future;

use crate::claim::{Claim, Claimed, Status, Tracked};
use crate::error::Error;
use crate::operation::Request;

/// Keeps track of operations. It alone decides who works on what, with its server's clock.
///
/// Every function fails with [`Error::Postgres`], [`Error::Pool`] or [`Error::Redis`] if the server is away. Then it is
/// not known whether the change was made; the claim that belongs to it runs out sooner or later.
pub trait Store: Clone + Send + Sync + 'static {
    /// Claims an operation: a new one, one that failed, or one whose claim ran out. However many try, one succeeds.
    ///
    /// # Errors
    /// [`Error::Expired`], [`Error::StillRunning`], [`Error::Mismatch`], [`Error::Invalid`]. A finished operation is
    /// answered with its result even after it has expired.
    fn claim(&self, request: &Request) -> impl Future<Output = Result<Claimed, Error>> + Send;

    /// Ends the operation. `result` is what everybody is answered who asks again. Late is good enough, as long as nobody
    /// else has claimed the operation.
    ///
    /// # Errors
    /// [`Error::Fenced`] if somebody has, or a sweeper has marked it as failed; [`Error::Expired`] if it took too long:
    /// the operation has failed.
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

    /// Marks operations as failed whose claims have run out, the oldest first. Returns how many, at most `count_max`.
    ///
    /// # Errors
    /// The server is away.
    fn fail_timed_out(&self, count_max: i64) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Marks running operations as failed that have expired, the oldest first. Returns how many, at most `count_max`.
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
