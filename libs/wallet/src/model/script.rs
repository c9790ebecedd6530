//! The scripts that write: their arguments and replies.
//!
//! They are sent whole each time. Redis finds the compiled script by the hash of the text, which costs it 4 µs, and no writer
//! depends on a script that Redis has forgotten after a restart.

use monitor::{counter, declare_counter};
use pglog::Partition;
use stream::resp::{Commands, Element, Elements};

use super::json::{change_text, document_text};
use super::{Epoch, Mark, Marked, key_of};
use crate::WalletId;
use crate::documents::{Change, Document, TRANSACTION_COUNT_MAX};

const WRITE: &str = concat!(include_str!("lua/common.lua"), include_str!("lua/write.lua"));
const REPLACE_MARK: &str = concat!(include_str!("lua/common.lua"), include_str!("lua/replace_mark.lua"));

/// Counts documents, by what became of them.
const DOCUMENTS: &str = "rocket_rides_wallet_documents_total";

/// Describes the counter.
pub(super) fn declare() {
    for outcome in ["written", "kept", "deleted"] {
        declare_counter(DOCUMENTS, "Documents of wallets that were sent to the read model", &[("outcome", outcome)]);
    }
}

/// The result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Whether it was done.
    pub outcome: Outcome,
    /// Documents that were written.
    pub written_count: i64,
    /// Documents that were left as they are, because Redis has a newer one, or the same.
    pub kept_count: i64,
    /// Documents that were deleted, because they lack events that came between, and those that were not stored, because memory is
    /// full.
    pub deleted_count: i64,
}

/// Whether a write was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was.
    Done,
    /// No: there is no mark, or it is of another epoch. The documents were deleted.
    Refused,
    /// No: the mark is below the bound, so Redis has lost writes. Begin a new epoch.
    Behind,
    /// No: Redis has another event of this version, so Postgres was put back. The mark was deleted.
    Conflict,
}

/// A document to write.
pub(super) enum Piece<'a> {
    Document(&'a Document),
    Change(&'a Change),
}

/// Where the mark moves.
pub(super) struct Move {
    pub partition: Partition,
    pub bound: i64,
    pub place: Marked,
}

/// The command that writes.
pub(super) fn write<'a>(
    mark_key: &str,
    epoch: Option<Epoch>,
    pieces: impl ExactSizeIterator<Item = Piece<'a>>,
    moved: Option<Move>,
) -> Commands {
    let pieces: Vec<Piece<'_>> = pieces.collect();
    let mut commands = Commands::with_capacity(WRITE.len() + 256 + 1024 * pieces.len());
    commands.begin(9 + 4 * pieces.len());
    commands.arg("EVAL").arg(WRITE).number(1 + pieces.len() as i64).arg(mark_key);
    for piece in &pieces {
        commands.arg(key_of(&piece.wallet()));
    }
    // No mark has this epoch.
    commands.arg(epoch.map_or_else(String::new, |epoch| epoch.to_string()));
    match moved {
        Some(Move { partition, bound, place }) => {
            // Lua counts from 1.
            commands.number(i64::from(partition.number()) + 1).number(bound).number(place.offset).number(place.token)
        }
        None => commands.arg("").arg("").arg("").arg(""),
    };
    let text_epoch = epoch.unwrap_or_else(Epoch::random);
    pieces.iter().for_each(|piece| piece.add_to(&mut commands, text_epoch));
    commands
}

impl Piece<'_> {
    fn wallet(&self) -> WalletId {
        match self {
            Self::Document(document) => document.wallet,
            Self::Change(change) => change.wallet,
        }
    }

    fn add_to(&self, commands: &mut Commands, epoch: Epoch) {
        match self {
            Self::Document(document) => commands.arg(document_text(epoch, document)).arg("").arg(""),
            Self::Change(change) => {
                commands.arg(change_text(epoch, change));
                let older = change.before.filter(|_| change.transactions.len() < TRANSACTION_COUNT_MAX);
                match older {
                    Some(before) => {
                        let after_version = change.transactions[0].version - change.transactions.len() as i64;
                        commands.number(after_version).arg(before.as_str())
                    }
                    // They are all that a document has.
                    None => commands.arg("").arg(""),
                }
            }
        };
    }
}

/// The reply to [`write()`].
pub(super) fn written(reply: &[u8]) -> Option<Written> {
    let mut elements = Elements::of(reply);
    let (Element::Array(4), Element::Bulk(outcome)) = (elements.next()?, elements.next()?) else { return None };
    let outcome = match outcome {
        b"done" => Outcome::Done,
        b"refused" => Outcome::Refused,
        b"behind" => Outcome::Behind,
        b"conflict" => Outcome::Conflict,
        _ => return None,
    };
    let mut count = || match elements.next() {
        Some(Element::Integer(count)) => Some(count),
        _ => None,
    };
    Some(Written { outcome, written_count: count()?, kept_count: count()?, deleted_count: count()? })
}

/// The command that replaces the mark if it is of the epoch `expected`.
pub(super) fn replace_mark(mark_key: &str, expected: Option<Epoch>, mark: Option<&Mark>) -> Commands {
    let text = |value: Option<String>| value.unwrap_or_default();
    let (expected, mark) = (text(expected.map(|epoch| epoch.to_string())), text(mark.map(|mark| mark.to_string())));
    let mut commands = Commands::default();
    commands.add(&["EVAL", REPLACE_MARK, "1", mark_key, &expected, &mark]);
    commands
}

impl Written {
    /// Counts the documents in the metrics.
    pub(super) fn count(self) {
        for (outcome, count) in
            [("written", self.written_count), ("kept", self.kept_count), ("deleted", self.deleted_count)]
        {
            counter!(DOCUMENTS, "outcome" => outcome).increment(count as u64);
        }
    }
}
