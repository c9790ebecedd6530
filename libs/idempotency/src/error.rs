//! Why an operation is not done, or not now.

use std::time::Duration;

use tokio_postgres::error::SqlState;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was asked for too late, or took too long.
    #[error("Operation {target} expired for key {key}.")]
    Expired {
        /// What was asked for.
        target: String,
        /// Under which key.
        key: String,
    },
    /// Somebody works on it.
    #[error("Operation {target} still running for key {key}.")]
    StillRunning {
        /// What was asked for.
        target: String,
        /// Under which key.
        key: String,
        /// When the claim runs out; `None`: never.
        retry_after: Option<Duration>,
    },
    /// The key was used for another request.
    #[error("Operation {target} was asked for with another payload under key {key}.")]
    Mismatch {
        /// What was asked for.
        target: String,
        /// Under which key.
        key: String,
    },
    /// The claim was lost: its time ran out, and somebody else has claimed the operation. Nothing of this phase was kept.
    #[error("somebody else has claimed this operation")]
    Fenced,
    /// The operation panicked; nothing of the phase in hand was kept.
    #[error("Got panic {0:?}")]
    Panic(String),
    /// The operation failed by itself; it may be tried again. This is its error.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
    /// It is done, but what came of it was kept in Redis, and Redis does not have it any more. Asking again does not help.
    #[error("Operation {target} was done for key {key}, but its result is not kept any more.")]
    ResultLost {
        /// What was asked for.
        target: String,
        /// Under which key.
        key: String,
    },
    /// It cannot be tracked under this target or key.
    #[error("{0}")]
    Invalid(&'static str),
    /// Postgres is away or refuses.
    #[error("query failed")]
    Postgres(#[from] tokio_postgres::Error),
    /// Postgres is away, or everybody else has the connections.
    #[error("no connection to Postgres")]
    Pool(#[from] deadpool_postgres::PoolError),
    /// Redis is away or refuses.
    #[error("redis command failed")]
    Redis(#[from] redis::RedisError),
}

impl Error {
    /// What `catch_unwind` caught.
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

/// The same of any error: it or what it comes from.
pub(crate) fn is_conflict(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<tokio_postgres::Error>() {
            let conflicts = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
            return error.code().is_some_and(|state| conflicts.contains(state));
        }
        next = match error.downcast_ref() {
            // It names the source of its error as its own.
            Some(Error::Failed(error)) => Some(error.as_ref()),
            _ => error.source(),
        };
    }
    false
}
