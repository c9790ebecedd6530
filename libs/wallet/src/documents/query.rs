//! Documents out of Postgres.

use jiff::Timestamp;
use pglog::Session;
use tokio_postgres::Row;

use super::{Document, Transaction};
use crate::{EventId, WalletId};

/// The newest events of each wallet of `$1`, one row per wallet: for 64 wallets that is one statement and 64 rows. A wallet
/// without accepted events has no row.
///
/// The versions of a wallet are contiguous (W2), so the newest one says where its last twenty events begin. With a LIMIT alone
/// Postgres read and sorted all events of a wallet that has many more than it expected.
pub const DOCS: &str = "-- wallet::docs
    SELECT wallet_id, versions, event_ids, times, amounts, counterparties, balance_minor
    FROM unnest($1::text[]) AS wanted (wallet_id)
    CROSS JOIN LATERAL (
        SELECT version AS newest_version FROM wallet_events AS event
        WHERE event.wallet_id = wanted.wallet_id AND accepted ORDER BY version DESC LIMIT 1
    ) AS newest
    CROSS JOIN LATERAL (
        SELECT array_agg(version) AS versions, array_agg(event_id::text) AS event_ids, array_agg(created_at) AS times,
               array_agg(amount_minor) AS amounts, array_agg(counterparty::text) AS counterparties,
               (array_agg(balance_minor))[1] AS balance_minor
        FROM (
            SELECT version, event_id, created_at, amount_minor, counterparty, balance_minor FROM wallet_events AS event
            WHERE event.wallet_id = wanted.wallet_id AND accepted AND version > newest_version - 20
            ORDER BY version DESC LIMIT 20
        ) AS events
    ) AS document";

/// Reads the documents of `wallets`, in any order. A wallet without accepted events has none: it has balance 0 and version 0.
///
/// # Errors
/// Postgres is away, or refuses the statement.
pub async fn docs(session: &impl Session, wallets: &[WalletId]) -> Result<Vec<Document>, tokio_postgres::Error> {
    let ids: Vec<&str> = wallets.iter().map(WalletId::as_str).collect();
    Ok(session.query(DOCS, &[&ids]).await?.iter().map(Document::from_row).collect())
}

impl Document {
    /// The document in a row of [`DOCS`].
    pub fn from_row(row: &Row) -> Self {
        let versions: Vec<i64> = row.get("versions");
        let event_ids: Vec<&str> = row.get("event_ids");
        let times: Vec<Timestamp> = row.get("times");
        let amounts: Vec<i64> = row.get("amounts");
        let counterparties: Vec<&str> = row.get("counterparties");
        let transactions: Vec<Transaction> = (0..versions.len())
            .map(|place| Transaction {
                timestamp: times[place],
                counterparty: wallet_of(counterparties[place]),
                amount_minor: amounts[place],
                version: versions[place],
                event_id: event_of(event_ids[place]),
            })
            .collect();
        let Transaction { version, event_id, timestamp, .. } = transactions[0];
        let wallet = row.get::<_, &str>("wallet_id").parse().expect("it was asked for by this id");
        Self { wallet, version, event_id, timestamp, balance_minor: row.get("balance_minor"), transactions }
    }
}

/// The column has the word `world`, or the id of a wallet.
fn wallet_of(counterparty: &str) -> Option<WalletId> {
    counterparty.parse().ok()
}

fn event_of(id: &str) -> EventId {
    id.parse().expect("the type ksuid admits nothing else")
}
