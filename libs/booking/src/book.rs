//! Booking a ride: claims the request, drives it from phase to phase, and gives it back if it cannot go on.

use std::time::Duration;

use connect::postgres::leave_if_read_only;
use idempotency::Operation;

use crate::desk::{Desk, DiePoint};
use crate::error::Error;
use crate::order::{Order, Payload, Reply, TARGET, User};
use crate::phases::Trip;

/// How long an unfinished request may be sent again. After 23 hours it is not charged any more, but the charge is looked for.
/// A human has to settle a request that is undecided by then.
const EXPIRATION: Duration = Duration::from_secs(72 * 3600);

impl Desk {
    /// Books a ride, goes on where an earlier request with this key has stopped, or returns the stored response. If the future
    /// is dropped, the request stays claimed until its claim runs out, so spawn it as a task.
    ///
    /// # Errors
    /// See [`Error`]. Nothing is lost: send the same request again.
    pub async fn book(&self, user: &User, key: &str, order: &Order) -> Result<Reply, Error> {
        let _place = self.place()?;
        let payload = Payload { user_id: user.id, journey: order.journey };
        let payload = serde_json::to_vec(&payload).map_err(|error| Error::Bug(error.to_string()))?;
        self.book_as(user, key, payload, order).await
    }

    /// As [`book`](Self::book), with the payload that the request is known by.
    pub(crate) async fn book_as(
        &self,
        user: &User,
        key: &str,
        payload: Vec<u8>,
        order: &Order,
    ) -> Result<Reply, Error> {
        let operation = Operation {
            expiration: Some(EXPIRATION),
            ..Operation::new(format!("{TARGET}{}", user.id), key, payload, self.claim_wait)
        };
        let trip = Trip { desk: self, user, order };
        // After this time the claim has run out, and nothing can be changed. A server that never answers must not hold the
        // request longer.
        let outcome = tokio::time::timeout(self.claim_wait, self.runner.call_in_phases(&operation, &trip)).await;
        let outcome = outcome.map_err(|_| Error::Unavailable("no answer in time".to_owned()))?;
        let outcome = outcome.map_err(|error| match error {
            Error::Operation(error) if error.is_conflict() => Error::Conflict,
            error => {
                leave_if_read_only(&error);
                error
            }
        })?;
        if !outcome.is_replayed {
            self.pass(DiePoint::Finished);
        }
        let reply: Reply = serde_json::from_slice(&outcome.result).map_err(|error| Error::Bug(error.to_string()))?;
        Ok(Reply { is_replayed: outcome.is_replayed, ..reply })
    }
}
