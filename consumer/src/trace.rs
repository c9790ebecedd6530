//! Links between a committed batch and the traces in which its records were written.

use std::time::Duration;

use pglog::Record;
use traces::spans::{BatchSpan, Operation, export_batch};
use tracing::debug;

/// Logs each committed record that is part of a trace, and exports one span for the batch, with links to these traces.
pub(crate) fn trace_batch(consumer: &str, records: &[Record<'_>], elapsed: Duration) {
    let Some(first) = records.first() else { return };
    for Record { offset, traceparent, .. } in records.iter().filter(|record| record.traceparent.is_some()) {
        debug!(consumer, offset, traceparent, "a record of a trace is committed");
    }
    let operation = Operation::Fold { consumer };
    let span = BatchSpan { operation, first_offset: first.offset, record_count: records.len(), elapsed };
    export_batch(&span, records.iter().filter_map(|record| record.traceparent));
}
