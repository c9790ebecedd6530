//! The offsets of a log, as the audit's snapshot shows them.

/// The offsets of a log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// The lowest offset that is not reaped.
    pub first_retained: i64,
    /// The highest offset; 0 if there is none.
    pub head: i64,
}
