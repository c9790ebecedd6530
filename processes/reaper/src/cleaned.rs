//! What one look of the reaper has removed, in all of its partitions together.

use crate::laggards::Laggard;

/// The result of one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Batches given up for deletion.
    pub batch_count: u64,
    /// Records deleted from Postgres.
    pub record_count: u64,
    /// Entries trimmed from the stream.
    pub trimmed_count: u64,
    /// Requests forgotten, with their responses.
    pub request_count: u64,
    /// The unfinished requests among them. They are listed in `reaped_requests`.
    pub unfinished_request_count: u64,
    /// Consumers that hold back deletion.
    pub laggards: Vec<Laggard>,
    /// Whether the look ended before everything was removed.
    pub is_more_left: bool,
}
