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

/// Reads a document out of Redis, and the epoch that it is of. `None`: it is no document of this form.
pub fn read_document(text: &[u8]) -> Option<(Epoch, Document)> {
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::BALANCE_MAX;

    fn time() -> impl Strategy<Value = Timestamp> {
        (0..=253_402_207_200_000_000_i64).prop_map(|micros| Timestamp::from_microsecond(micros).unwrap())
    }

    fn transaction() -> impl Strategy<Value = Transaction> {
        let amounts = prop_oneof![-BALANCE_MAX..=BALANCE_MAX, -200..200_i64];
        (time(), any::<bool>(), amounts, 1..=i64::MAX).prop_map(|(timestamp, is_transfer, amount_minor, version)| {
            let counterparty = is_transfer.then(WalletId::new);
            Transaction { timestamp, counterparty, amount_minor, version, event_id: EventId::new() }
        })
    }

    fn document() -> impl Strategy<Value = Document> {
        (vec(transaction(), 1..=TRANSACTION_COUNT_MAX), 0..=BALANCE_MAX).prop_map(|(transactions, balance_minor)| {
            let Transaction { version, event_id, timestamp, .. } = transactions[0];
            Document { wallet: WalletId::new(), version, event_id, timestamp, balance_minor, transactions }
        })
    }

    proptest! {
        #[test]
        fn a_document_is_read_as_it_was_written(document in document()) {
            let epoch = Epoch::random();
            let text = document_text(epoch, &document);
            let start = &text.as_bytes()[..text.len().min(HEAD_LEN_MAX)];
            prop_assert_eq!(read_head(start), Some((epoch, document.head())));
            prop_assert_eq!(read_document(text.as_bytes()), Some((epoch, document)));
        }

        #[test]
        fn a_text_that_was_cut_or_lacks_a_byte_is_no_document(document in document(), place in 0..500_usize) {
            let text = document_text(Epoch::random(), &document);
            prop_assert_eq!(read_document(&text.as_bytes()[..place.min(text.len() - 1)]), None);
            let mut longer = text.into_bytes();
            longer.push(b' ');
            prop_assert_eq!(read_document(&longer), None);
        }
    }

    #[test]
    fn a_document_is_written_in_its_fixed_form() {
        let (wallet, other, event_id) = (WalletId::new(), WalletId::new(), EventId::new());
        let timestamp: Timestamp = "2026-01-02T03:04:05.06Z".parse().unwrap();
        let paid = Transaction { timestamp, counterparty: Some(other), amount_minor: -1250, version: 2, event_id };
        let credited = Transaction { counterparty: None, amount_minor: 1300, version: 1, ..paid };
        let transactions = vec![paid, credited];
        let document = Document { wallet, version: 2, event_id, timestamp, balance_minor: 50, transactions };
        let time = "2026-01-02T03:04:05.060000Z";
        let wanted = format!(
            r#"{{"epoch":"00000000000000000000000000000000","version_id":2,"event_id":"{event_id}","timestamp":"{time}","name":"wallet.{wallet}",
            "entity_id":"{wallet}","data":{{"timestamp":"{time}","balance":0.50,"transactions":[
            {{"timestamp":"{time}","source_entity_id":"{other}","amount":-12.50,"version":2,"event_id":"{event_id}"}},
            {{"timestamp":"{time}","source_entity_id":"world","amount":13.00,"version":1,"event_id":"{event_id}"}}]}}}}"#
        );
        let epoch: Epoch = "00000000000000000000000000000000".parse().unwrap();
        assert_eq!(document_text(epoch, &document), wanted.replace("\n            ", ""));
    }
}
