//! Why a request was not written, or may not have been.

/// Why the writing task did not take a request, or did not end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many requests wait. This one was not written: try again later.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The writing task has ended. This request was not written.
    #[error("nothing is written any more")]
    Closed,
    /// The writing task panicked while it had this request. Whether it was written is unknown.
    #[error("the writing task died")]
    Lost,
}
