//! Documents as JSON in Redis.
//!
//! ```json
//! {"epoch":"…","version_id":7,"event_id":"…","timestamp":"…","name":"wallet.…","entity_id":"…","data":{"timestamp":"…",
//! "balance":5.00,"transactions":[{"timestamp":"…","source_entity_id":"world","amount":-5.00,"version":7,"event_id":"…"}]}}
//! ```
//!
//! Order and spelling are fixed, so that the script and readers match the beginning of a text without parsing all of it. A
//! text that another program wrote is read as no document.

use std::fmt::Write;

use jiff::Timestamp;

use super::mark::Epoch;
use crate::documents::{Change, Document, Head, TRANSACTION_COUNT_MAX, Transaction};
use crate::{EventId, WalletId, decimal};

/// The state of a wallet is within so many bytes from the beginning.
pub(super) const HEAD_LEN_MAX: usize = 400;

/// Writes a document.
pub(super) fn document_text(epoch: Epoch, document: &Document) -> String {
    text(epoch, document.wallet, document.head(), &document.transactions)
}

/// Writes the part of a document that a change knows. The script appends the transactions that were there before.
pub(super) fn change_text(epoch: Epoch, change: &Change) -> String {
    let Transaction { version, event_id, timestamp, .. } = change.transactions[0];
    let head = Head { version, event_id, timestamp, balance_minor: change.balance_minor };
    let kept = change.transactions.len().min(TRANSACTION_COUNT_MAX);
    text(epoch, change.wallet, head, &change.transactions[..kept])
}

fn text(epoch: Epoch, wallet: WalletId, head: Head, transactions: &[Transaction]) -> String {
    let mut out = String::with_capacity(HEAD_LEN_MAX + 192 * transactions.len());
    write_text(&mut out, epoch, wallet, head, transactions).expect("a string takes everything");
    out
}

fn write_text(
    out: &mut String,
    epoch: Epoch,
    wallet: WalletId,
    head: Head,
    transactions: &[Transaction],
) -> std::fmt::Result {
    let Head { version, event_id, timestamp, balance_minor } = head;
    write!(out, r#"{{"epoch":"{epoch}","version_id":{version},"event_id":"{event_id}","timestamp":"{timestamp:.6}""#)?;
    write!(out, r#","name":"wallet.{wallet}","entity_id":"{wallet}","data":{{"timestamp":"{timestamp:.6}""#)?;
    write!(out, r#","balance":{},"transactions":["#, decimal(balance_minor))?;
    for (place, transaction) in transactions.iter().enumerate() {
        let Transaction { timestamp, counterparty, amount_minor, version, event_id } = transaction;
        let comma = if place > 0 { "," } else { "" };
        let source = counterparty.as_ref().map_or("world", WalletId::as_str);
        let amount = decimal(*amount_minor);
        write!(out, r#"{comma}{{"timestamp":"{timestamp:.6}","source_entity_id":"{source}","amount":{amount}"#)?;
        write!(out, r#","version":{version},"event_id":"{event_id}"}}"#)?;
    }
    out.write_str("]}}")
}

/// Reads the state of a wallet from the beginning of its document.
pub(super) fn read_head(text: &[u8]) -> Option<(Epoch, Head)> {
    let (epoch, _, head) = head(&mut Cursor(text))?;
    Some((epoch, head))
}

/// Reads a document.
pub(super) fn read_document(text: &[u8]) -> Option<(Epoch, Document)> {
    let mut cursor = Cursor(text);
    let (epoch, wallet, Head { version, event_id, timestamp, balance_minor }) = head(&mut cursor)?;
    let mut transactions = Vec::with_capacity(TRANSACTION_COUNT_MAX);
    cursor.skip(r#""transactions":["#)?;
    while cursor.skip(r#"{"timestamp":""#).is_some() {
        transactions.push(transaction(&mut cursor)?);
        if cursor.skip(",").is_none() {
            break;
        }
    }
    (cursor.0 == b"]}}").then_some(())?;
    Some((epoch, Document { wallet, version, event_id, timestamp, balance_minor, transactions }))
}

fn head(cursor: &mut Cursor<'_>) -> Option<(Epoch, WalletId, Head)> {
    cursor.skip(r#"{"epoch":""#)?;
    let epoch = cursor.value('"')?;
    cursor.skip(r#","version_id":"#)?;
    let version = cursor.value(',')?;
    cursor.skip(r#""event_id":""#)?;
    let event_id: EventId = cursor.value('"')?;
    cursor.skip(r#","timestamp":""#)?;
    let timestamp: Timestamp = cursor.value('"')?;
    cursor.skip(r#","name":"wallet."#)?;
    cursor.until('"')?;
    cursor.skip(r#","entity_id":""#)?;
    let wallet = cursor.value('"')?;
    cursor.skip(r#","data":{"timestamp":""#)?;
    cursor.until('"')?;
    cursor.skip(r#","balance":"#)?;
    let balance_minor = minor(cursor.until(',')?)?;
    Some((epoch, wallet, Head { version, event_id, timestamp, balance_minor }))
}

fn transaction(cursor: &mut Cursor<'_>) -> Option<Transaction> {
    let timestamp = cursor.value('"')?;
    cursor.skip(r#","source_entity_id":""#)?;
    let counterparty = cursor.until('"')?.parse().ok();
    cursor.skip(r#","amount":"#)?;
    let amount_minor = minor(cursor.until(',')?)?;
    cursor.skip(r#""version":"#)?;
    let version = cursor.value(',')?;
    cursor.skip(r#""event_id":""#)?;
    let event_id = cursor.value('"')?;
    cursor.skip("}")?;
    Some(Transaction { timestamp, counterparty, amount_minor, version, event_id })
}

/// Cents, from a decimal with two places.
fn minor(decimal: &str) -> Option<i64> {
    let (whole, cents) = decimal.split_once('.')?;
    (cents.len() == 2).then(|| [whole, cents].concat().parse().ok())?
}

/// The rest of a text.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn skip(&mut self, literal: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(literal.as_bytes())?;
        Some(())
    }

    /// The text up to `end`, which is skipped, too.
    fn until(&mut self, end: char) -> Option<&'a str> {
        let len = self.0.iter().position(|byte| *byte == end as u8)?;
        let text = std::str::from_utf8(&self.0[..len]).ok()?;
        self.0 = &self.0[len + 1..];
        Some(text)
    }

    fn value<T: std::str::FromStr>(&mut self, end: char) -> Option<T> {
        self.until(end)?.parse().ok()
    }
}
