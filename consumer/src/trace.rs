//! Linking what was committed to the traces in which it was written.

use std::time::Duration;

use pglog::Record;
use traces::spans::{self, Batch, Work};
use tracing::debug;

/// Tells of records that are committed, wherever they were read: of each that is part of a trace in the log, and of all in
/// a span with links to their traces.
pub(crate) fn tell(consumer: &str, records: &[Record<'_>], took: Duration) {
    let Some(first) = records.first() else { return };
    for Record { offset, traceparent, .. } in records.iter().filter(|record| record.traceparent.is_some()) {
        debug!(consumer, offset, traceparent, "a record of a trace is committed");
    }
    let batch = Batch { first_offset: first.offset, record_count: records.len(), took };
    spans::tell(Work::Fold { consumer }, batch, records.iter().filter_map(|record| record.traceparent));
}
