//! Appending a page of records to the stream, and what each of Redis's replies means.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use common::fault::Dice;
use pglog::{Page, Record};
use stream::codec::{EntryId, EntryWriter, Fields};
use stream::resp::{Commands, Piece, Pieces};
use stream::wire::Wire;
use traces::spans::{self, Batch, Work};
use tracing::debug;

/// What to do wrong on purpose with a batch. Consumers must not notice any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// Add every record twice, as `<offset>-0` and `<offset>-1`. Redis takes both.
    SendTwice,
    /// "Fail" after the batch was sent, and send all of it again under the same ids. Redis refuses it.
    ResendBatch,
    /// SIGKILL when a batch is cut and nothing of it is published.
    DieAfterAssign,
    /// SIGKILL when half of the pipeline is in the stream.
    DieMidPipeline,
    /// SIGKILL when all of it is in the stream, before anything else.
    DieAfterPublish,
}

impl common::fault::Fault for Fault {
    fn roll(dice: &mut Dice) -> Self {
        if !dice.strikes() {
            Self::None
        } else if dice.coin() {
            Self::SendTwice
        } else {
            Self::ResendBatch
        }
    }

    fn ordered() -> Self {
        Self::SendTwice
    }
}

/// What became of the entries sent.
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

/// Redis refuses for a reason that does not pass by itself: another type under the key, no permission, a bad password.
#[derive(Debug, thiserror::Error)]
#[error("redis refuses to append to the stream; look at its configuration and at the key")]
pub struct Refused(#[source] Answer);

/// An error line of Redis, which begins with a word for programs: `OOM command not allowed …`.
#[derive(Debug, thiserror::Error)]
#[error("redis answers {0}")]
struct Answer(String);

/// Room for the commands of a record without its data.
const COMMAND_LEN: usize = 192;

/// The commands that append `copies` copies of each record.
pub(crate) fn encode<'a>(key: &str, records: impl ExactSizeIterator<Item = Record<'a>>, copies: u64) -> Commands {
    let mut commands = Commands::with_capacity(records.len() * copies as usize * COMMAND_LEN);
    let mut writer = EntryWriter::new(key);
    for Record { offset, token, object, action, data, staged_at_us, traceparent } in records {
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
/// The first reply that is neither "added" nor "already there". Entries after it may have been added all the same (a
/// pipeline does not stop at an error): the stream may have a hole then, which consumers heal. The caller reads the
/// stream's last id again before it goes on. [`Refused`] if trying again is pointless.
pub(crate) async fn send(stream: &mut Wire, commands: &Commands) -> Result<Sent> {
    stream.send(commands).await?;
    let replies = stream.read(commands.count()).await?;
    let mut sent = Sent::default();
    for piece in Pieces::of(&replies) {
        match piece {
            Piece::Bulk(_) => sent.added_count += 1,
            Piece::Error(line) => match String::from_utf8_lossy(line) {
                line if is_already_there(&line) => sent.refused_count += 1,
                line => return Err(sort_out(&line).context("appending to the stream")),
            },
            other => bail!("redis answers {other:?} to XADD"),
        }
    }
    ensure!(sent.added_count + sent.refused_count == commands.count(), "redis answered {sent:?}");
    Ok(sent)
}

/// Tells of a page that was published: of each record in the log, and of all in a span with links to their traces.
pub(crate) fn tell(key: &str, page: &Page, took: Duration) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for Record { offset, object, action, traceparent, .. } in page.records() {
            debug!(offset, object, action, traceparent, "record published");
        }
    }
    let batch = Batch { first_offset: page.first_offset(), record_count: page.len(), took };
    spans::tell(Work::Publish { stream: key }, batch, page.records().filter_map(|record| record.traceparent));
}

/// The id is not greater than the stream's last one, or than the last one there can be. The replies have no code of their
/// own, only these texts (Redis 5 to 8, Valkey 7 to 9).
fn is_already_there(line: &str) -> bool {
    const TEXTS: [&str; 2] = ["equal or smaller than the target stream top item", "exhausted the last possible ID"];
    TEXTS.iter().any(|text| line.contains(text))
}

/// Tells errors that pass from errors that stay.
pub(crate) fn sort_out(line: &str) -> anyhow::Error {
    /// Failing over, moved to another node, loading, out of memory, out of disk, not enough replicas, running a long
    /// script.
    const PASSING: [&str; 12] = [
        "READONLY",
        "MOVED",
        "ASK",
        "LOADING",
        "OOM",
        "MISCONF",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "MASTERDOWN",
        "NOREPLICAS",
        "BUSY",
        "UNBLOCKED",
    ];
    let answer = Answer(line.to_owned());
    match line.split(' ').next() {
        Some(code) if PASSING.contains(&code) => answer.into(),
        _ => Refused(answer).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_id_is_known_by_its_text() {
        let refused = "ERR The ID specified in XADD is equal or smaller than the target stream top item";
        assert!(is_already_there(refused));
        let exhausted = "ERR The stream has exhausted the last possible ID, unable to add more items";
        assert!(is_already_there(exhausted));
        assert!(!is_already_there("ERR unknown command"));
    }

    #[test]
    fn errors_that_pass_are_retried_and_others_stop() {
        for line in
            ["READONLY replica", "MOVED 1 host:1", "LOADING dataset", "OOM memory", "MISCONF disk", "CLUSTERDOWN slot"]
        {
            assert!(sort_out(line).downcast_ref::<Refused>().is_none(), "{line}");
        }
        for line in ["WRONGTYPE no stream", "NOAUTH please", "NOPERM never", "ERR unknown command"] {
            assert!(sort_out(line).downcast_ref::<Refused>().is_some(), "{line}");
        }
    }
}
