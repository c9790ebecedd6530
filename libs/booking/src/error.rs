//! Why a booking is not finished.

/// Why a booking is not finished now. After each of these errors the client may send the same request again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operation is in progress, was another request, or could not be tracked.
    #[error(transparent)]
    Operation(#[from] idempotency::Error),
    /// Transactions were in each other's way, several times.
    #[error("conflict with a concurrent request")]
    Conflict,
    /// The processor is away, slow, or broken, or it refuses, or the charge is pending. The next try asks under the same key.
    #[error("the payment processor: {0}")]
    Processor(payments::ChargeError),
    /// The processor is away, and was not asked again. The next try may ask after this time.
    #[error("the payment processor is away, and is asked again in {0:?}")]
    ProcessorAway(std::time::Duration),
    /// Too many bookings are in progress. This one was not begun.
    #[error("too many bookings are in progress")]
    Overloaded,
    /// The client asked for a failure.
    #[error("error raised on request")]
    Raised,
    /// Postgres is away, or does not answer.
    #[error("no connection to postgres: {0}")]
    Unavailable(String),
    /// A state that should be impossible.
    #[error("Bug! {0}")]
    Bug(String),
}

impl Error {
    /// Whether the processor refuses for a reason that only an operator can remove.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Processor(payments::ChargeError::Refused { .. }))
    }

    /// The error with its causes, for the log.
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Operation(error.into())
    }
}

impl From<lease::Late> for Error {
    fn from(late: lease::Late) -> Self {
        Self::Unavailable(late.to_string())
    }
}
