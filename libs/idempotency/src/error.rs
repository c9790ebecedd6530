//! Why an operation is not done, or not now.

use std::time::Duration;

use tokio_postgres::error::SqlState;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client asked too late, or the work took too long.
    #[error("Operation {target} expired for key {key}.")]
    Expired {
        /// The target of the operation.
        target: String,
        /// The key of the operation.
        key: String,
    },
    /// Another request works on it.
    #[error("Operation {target} still running for key {key}.")]
    StillRunning {
        /// The target of the operation.
        target: String,
        /// The key of the operation.
        key: String,
        /// When the claim runs out; `None`: never.
        retry_after: Option<Duration>,
    },
    /// The key was used for another request.
    #[error("Operation {target} was asked for with another payload under key {key}.")]
    Mismatch {
        /// The target of the operation.
        target: String,
        /// The key of the operation.
        key: String,
    },
    /// The claim was lost: its time ran out, and another process has claimed the operation. Nothing of this phase was stored.
    #[error("another process has claimed this operation")]
    Fenced,
    /// The operation panicked; nothing of the current phase was stored.
    #[error("Got panic {0:?}")]
    Panic(String),
    /// The work returned this error. It may be tried again.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
    /// It is done, but its result was stored in Redis, and Redis has lost it. A retry does not help.
    #[error("Operation {target} was done for key {key}, but its result is not kept any more.")]
    ResultLost {
        /// The target of the operation.
        target: String,
        /// The key of the operation.
        key: String,
    },
    /// The target or the key is malformed.
    #[error("{0}")]
    Invalid(&'static str),
    /// Postgres is away or refuses.
    #[error("query failed")]
    Postgres(#[from] tokio_postgres::Error),
    /// Postgres is away, or all connections are in use.
    #[error("no connection to Postgres")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// Redis is away or refuses.
    #[cfg(feature = "redis")]
    #[error("redis command failed")]
    Redis(#[from] redis::RedisError),
}

impl Error {
    /// The error for a panic that `catch_unwind` caught.
    pub fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Self::Panic(text.unwrap_or_else(|| "something that is no text".to_owned()))
    }

    /// Whether two transactions were in each other's way, and the same phase may be tried again at once.
    pub fn is_conflict(&self) -> bool {
        is_conflict(self)
    }
}

/// As [`Error::is_conflict`], for any error: looks at the error and at its sources.
pub(crate) fn is_conflict(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
            let conflicts = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
            return error.code().is_some_and(|state| conflicts.contains(state));
        }
        next = match error.downcast_ref() {
            // This variant is transparent: `source` would skip the error itself.
            Some(Error::Failed(error)) => Some(error.as_ref()),
            _ => error.source(),
        };
    }
    false
}
