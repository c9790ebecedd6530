//! The description of a batch of records that was processed as a whole. [`spans`](crate::spans) exports it.

use std::time::Duration;

/// The operation of a process on a batch.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// It appended the records to the stream.
    Publish {
        /// The stream's key.
        stream: &'a str,
    },
    /// It folded the records and committed the state.
    Fold {
        /// The consumer's name.
        consumer: &'a str,
    },
}

/// A span for a batch that was just finished.
#[derive(Debug, Clone, Copy)]
pub struct BatchSpan<'a> {
    /// The operation.
    pub operation: Operation<'a>,
    /// The first record's offset.
    pub first_offset: i64,
    /// How many records.
    pub record_count: usize,
    /// How long it took, until now.
    pub elapsed: Duration,
}
