//! The interface that a user of this library implements: how to write a group, and how to judge a failure.

use std::fmt::Debug;

use crate::refusal::Refusal;

/// Where groups are written.
pub trait Destination: Send + Sync + 'static {
    /// The data that a client wants to write.
    type Request: Send + Sync + 'static;

    /// A client receives this when its rows are durable.
    type Response: Send + 'static;

    /// A client receives this instead of a response. One failure may concern a whole group, so the error is cloned.
    type Error: Clone + Send + 'static;

    /// A connection, held while one group is written.
    type Connection: Send + Sync;

    /// Why a write failed.
    type Failure: Debug + Send;

    /// Takes a connection for one group. It must return within a bounded time: the deadline of the group does not include
    /// this wait.
    ///
    /// # Errors
    /// There is no connection. Every request of the group receives this error.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, Self::Error>> + Send;

    /// Writes all `requests` in one transaction. Returns one response per request, in the same order, once all are durable.
    ///
    /// # Errors
    /// None of them is written, or, if the connection broke, that is unknown.
    fn write(
        &self,
        connection: &Self::Connection,
        requests: &[Self::Request],
    ) -> impl Future<Output = Result<Vec<Self::Response>, Self::Failure>> + Send;

    /// Whether a single request may have caused this failure. If so, nothing was written, and the other requests are written
    /// without it. Otherwise the failure concerns the whole group.
    fn concerns_one_request(&self, failure: &Self::Failure) -> bool;

    /// The error that clients receive for this failure. It is called once per failure, and may log it.
    fn error_of(&self, failure: Self::Failure) -> Self::Error;

    /// The error that a client receives whose request the queue refused or lost.
    fn error_of_refusal(refusal: Refusal) -> Self::Error;

    /// Gives up a connection on which a write did not end in time. Returns the error that clients receive. Whether their
    /// rows were written is unknown.
    fn abandon(&self, connection: Self::Connection) -> Self::Error;
}
