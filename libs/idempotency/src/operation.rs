//! An operation as a client asks for it.

use std::time::Duration;

use jiff::Timestamp;

use crate::error::Error;

/// The recovery point at which every operation begins.
pub const STARTED: &str = "started";

/// The recovery point at which every operation ends.
pub const FINISHED: &str = "finished";

/// The error message of an operation that took too long.
pub(crate) const EXPIRED: &str = "Operation expired";

/// The error message of an operation whose claim ran out.
pub(crate) const TIMED_OUT: &str = "Operation timed out";

/// The longest time-out and the longest expiration. Longer ones are cut to a hundred years, because calendars end.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// An operation that a client asks for, for the first time or again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The action and its user; 1 to 500 characters. The same key under another target is another operation.
    pub target: String,
    /// The name that the client has chosen; 1 to 255 characters.
    pub key: String,
    /// The request itself. The same key with another payload is refused, unless [`Phases`](crate::Phases) say that it asks for
    /// the same. A process that completes the operation later works
    /// from the payload.
    pub payload: Vec<u8>,
    /// The time from which `expiration` counts. If it is `None` or in the future, it is the time of the first claim, by the
    /// server's clock.
    pub reference_time: Option<Timestamp>,
    /// How long a claim holds. After that another process may claim the operation. `None`: for ever.
    pub timeout: Option<Duration>,
    /// How long after the reference time the operation may be done. `None`: for ever.
    pub expiration: Option<Duration>,
}

impl Operation {
    /// An operation whose claims hold for `timeout`, and which does not expire.
    pub fn new(
        target: impl Into<String>,
        key: impl Into<String>,
        payload: impl Into<Vec<u8>>,
        timeout: Duration,
    ) -> Self {
        Self {
            target: target.into(),
            key: key.into(),
            payload: payload.into(),
            reference_time: None,
            timeout: Some(timeout),
            expiration: None,
        }
    }

    /// # Errors
    /// [`Error::Invalid`] if target or key is empty, too long, or holds a zero byte.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let is_sound =
            |text: &str, len_max| !text.is_empty() && text.chars().count() <= len_max && !text.contains('\0');
        if !is_sound(&self.target, 500) {
            return Err(Error::Invalid("The target of an operation needs 1 to 500 characters."));
        }
        if !is_sound(&self.key, 255) {
            return Err(Error::Invalid("The key of an operation needs 1 to 255 characters."));
        }
        Ok(())
    }

    pub(crate) fn expired(&self) -> Error {
        Error::Expired { target: self.target.clone(), key: self.key.clone() }
    }

    pub(crate) fn still_running(&self, retry_after: Option<Duration>) -> Error {
        Error::StillRunning { target: self.target.clone(), key: self.key.clone(), retry_after }
    }

    pub(crate) fn mismatch(&self) -> Error {
        Error::Mismatch { target: self.target.clone(), key: self.key.clone() }
    }
}
