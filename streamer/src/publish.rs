//! Pipelines of XADD commands: how a page of records is written, and how Redis's replies are counted.

use std::time::Duration;

use anyhow::anyhow;
use pglog::{Page, Partition, Record};
use stream::codec::{EntryId, EntryWriter, Fields};
use stream::resp::{Commands, Element, Elements};
use traces::spans::{BatchSpan, Operation, export_batch};
use tracing::debug;

use crate::fault::Fault;
use crate::refusal::{Refusal, is_already_there};

/// A page of records that was appended to the stream of its partition.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The partition.
    pub partition: Partition,
    /// The fault that was injected into it.
    pub fault: Fault,
    /// The first record's offset.
    pub first_offset: i64,
    /// How many records, at least 1.
    pub record_count: usize,
    /// How many stream entries were added: more than `record_count` when records were sent twice.
    pub added_count: usize,
    /// How many entries Redis refused because it had them.
    pub refused_count: usize,
    /// How long appending took.
    pub elapsed: Duration,
}

impl Published {
    /// The last record's offset.
    pub fn last_offset(&self) -> i64 {
        self.first_offset + self.record_count as i64 - 1
    }
}

/// The replies to one pipeline, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sent {
    /// Entries that Redis appended.
    pub added_count: usize,
    /// Entries that Redis refused because it has their id, or a later one, already.
    pub refused_count: usize,
}

impl Sent {
    /// The sum of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            added_count: self.added_count + other.added_count,
            refused_count: self.refused_count + other.refused_count,
        }
    }
}

/// Bytes of a command without the record's data, for a first guess at the pipeline's length.
const COMMAND_LEN: usize = 192;

/// Adds the commands that append `copies` copies of each record.
pub(crate) fn encode<'a>(
    commands: &mut Commands,
    key: &str,
    records: impl ExactSizeIterator<Item = Record<'a>>,
    copies: u64,
) {
    commands.reserve(records.len() * copies as usize * COMMAND_LEN);
    let mut writer = EntryWriter::new(key);
    for Record { offset, token, object, action, data, staged_at_us, traceparent, .. } in records {
        let fields = Fields { object, action, data, staged_at_us, token, traceparent };
        for copy in 0..copies {
            writer.add(commands, EntryId { offset, copy }, &fields);
        }
    }
}

/// Looks at the replies to `command_count` commands, all of them also after an error.
///
/// # Errors
/// The first reply that is neither "added" nor "already there". Redis may have added the entries after it all the same,
/// because a pipeline does not stop at an error. The stream may then have a hole, which consumers heal. The caller reads
/// the stream's last id again before it goes on. It holds [`Refused`](crate::Refused) if another attempt is pointless.
pub(crate) fn count_replies(replies: &mut Elements<'_>, command_count: usize) -> Result<Sent, Refusal> {
    let mut sent = Sent::default();
    let mut refusal = None;
    for _ in 0..command_count {
        match replies.clone().next() {
            Some(Element::Bulk(_)) => sent.added_count += 1,
            Some(Element::Error(line)) => match String::from_utf8_lossy(line) {
                line if is_already_there(&line) => sent.refused_count += 1,
                line => drop(refusal.get_or_insert_with(|| Refusal::of(&line, "appending to the stream"))),
            },
            other => {
                let error = anyhow!("redis answers {other:?} to XADD");
                refusal.get_or_insert(Refusal::OfTheServer(error));
            }
        }
        replies.skip_value();
    }
    refusal.map_or(Ok(sent), Err)
}

/// Logs each record of a published page, and exports one span for the page, with links to its records' traces.
pub(crate) fn trace_page(key: &str, page: &Page, elapsed: Duration) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for Record { offset, object, action, traceparent, .. } in page.records() {
            debug!(offset, object, action, traceparent, "record published");
        }
    }
    let operation = Operation::Publish { stream: key };
    let span = BatchSpan { operation, first_offset: page.first_offset(), record_count: page.len(), elapsed };
    export_batch(&span, page.records().filter_map(|record| record.traceparent));
}
