//! Transactions page by page, newest first. A page begins before a version, so it costs the same however many there are.
//!
//! The versions of a wallet are contiguous (W2), so a page is a range of versions. With a LIMIT alone Postgres might read and sort
//! all events of a wallet that has many more than it expects.

use jiff::Timestamp;
use tokio_postgres::Row;
use wallet::WalletId;

use crate::app::App;
use crate::wallets::answer::{Money, Transaction, TransactionPage};
use crate::wallets::error::WalletError;
use crate::wallets::source::has_reached;

/// The newest event of the wallet `$1`, and those before the version `$2`, at most `$3`: all of one snapshot.
const PAGE: &str = "-- api::wallets::page
    SELECT newest.version AS newest_version, newest.created_at AS newest_at, page.*
    FROM (SELECT) AS always
    LEFT JOIN LATERAL (
        SELECT version, created_at FROM wallet_events
        WHERE wallet_id = $1 AND accepted ORDER BY version DESC LIMIT 1
    ) AS newest ON true
    LEFT JOIN LATERAL (
        SELECT version, event_id::text, created_at, amount_minor, counterparty FROM wallet_events
        WHERE wallet_id = $1 AND accepted AND version < $2 AND version >= least($2, newest.version + 1) - $3
        ORDER BY version DESC LIMIT $3
    ) AS page ON true
    ORDER BY page.version DESC";

/// Reads the `limit` transactions before the version `before` from Postgres.
///
/// # Errors
/// The wallet has not reached `min_version`, or Postgres fails.
pub(crate) async fn read(
    app: &App,
    wallet: WalletId,
    before: i64,
    limit: i64,
    min_version: i64,
) -> Result<TransactionPage, WalletError> {
    let parameters: Vec<crate::database::Param> = vec![Box::new(wallet.to_string()), Box::new(before), Box::new(limit)];
    let rows = app.database.look_up(PAGE, parameters).await?;
    let newest =
        rows.first().and_then(|row| Some((row.get::<_, Option<i64>>("newest_version")?, row.get("newest_at"))));
    let (version, timestamp) = newest.unwrap_or_else(|| (0, Timestamp::now()));
    has_reached(version, min_version)?;
    Ok(page_of(timestamp, rows.iter().filter_map(from_row).collect()))
}

/// `None`: there is no transaction before that version, and the row has the newest one only.
fn from_row(row: &Row) -> Option<Transaction> {
    Some(Transaction {
        version: row.get::<_, Option<i64>>("version")?,
        timestamp: row.get("created_at"),
        source_entity_id: row.get("counterparty"),
        amount: Money(row.get("amount_minor")),
        event_id: row.get("event_id"),
    })
}

/// A page of these transactions. The versions of a wallet are contiguous from 1 on (W2), so the last one says whether there
/// are more.
pub(crate) fn page_of(timestamp: Timestamp, transactions: Vec<Transaction>) -> TransactionPage {
    let next_before = transactions.last().map(|last| last.version).filter(|&version| version > 1);
    TransactionPage { timestamp, transactions, next_before }
}
