//! One pipeline of XADD commands: how a page of records is written, and how Redis's replies are counted.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use pglog::{Page, Record};
use stream::codec::{EntryId, EntryWriter, Fields};
use stream::resp::{Commands, Element, Elements};
use stream::wire::Wire;
use traces::spans::{BatchSpan, Operation, export_batch};
use tracing::debug;

use crate::refusal::{classify_refusal, is_already_there};

/// Records that one step appended to the stream.
#[derive(Debug, Clone, Copy)]
pub struct Published {
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

impl std::ops::AddAssign for Sent {
    fn add_assign(&mut self, other: Self) {
        self.added_count += other.added_count;
        self.refused_count += other.refused_count;
    }
}

/// Bytes of a command without the record's data, for a first guess at the pipeline's length.
const COMMAND_LEN: usize = 192;

/// The commands that append `copies` copies of each record.
pub(crate) fn encode<'a>(key: &str, records: impl ExactSizeIterator<Item = Record<'a>>, copies: u64) -> Commands {
    let mut commands = Commands::with_capacity(records.len() * copies as usize * COMMAND_LEN);
    let mut writer = EntryWriter::new(key);
    for Record { offset, token, object, action, data, staged_at_us, traceparent, .. } in records {
        let fields = Fields { object, action, data, staged_at_us, token, traceparent };
        for copy in 0..copies {
            writer.add(&mut commands, EntryId { offset, copy }, &fields);
        }
    }
    commands
}

/// Sends the commands in one pipeline, and looks at every reply.
///
/// # Errors
/// The first reply that is neither "added" nor "already there". Redis may have added the entries after it all the same,
/// because a pipeline does not stop at an error. The stream may then have a hole, which consumers heal. The caller reads
/// the stream's last id again before it goes on. [`Refused`](crate::Refused) if another attempt is pointless.
pub(crate) async fn send(wire: &mut Wire, commands: &Commands) -> Result<Sent> {
    wire.send(commands).await?;
    let replies = wire.read(commands.count()).await?;
    let mut sent = Sent::default();
    for reply in Elements::of(&replies) {
        match reply {
            Element::Bulk(_) => sent.added_count += 1,
            Element::Error(line) => match String::from_utf8_lossy(line) {
                line if is_already_there(&line) => sent.refused_count += 1,
                line => return Err(classify_refusal(&line).context("appending to the stream")),
            },
            other => bail!("redis answers {other:?} to XADD"),
        }
    }
    ensure!(sent.added_count + sent.refused_count == commands.count(), "redis answered {sent:?}");
    Ok(sent)
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
