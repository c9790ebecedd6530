//! Reads events of wallets from Postgres. Both statements read a bounded number of rows by an index, however many events there are.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Session;
use tokio_postgres::Row;
use wallet::{WalletId, decimal};

use crate::sample::{InPostgres, WalletEvent};

/// The page lists this many wallets that were used last.
const NEWEST_COUNT: usize = 8;

/// They are found among this many events. A wallet that is used all the time hides others.
const LOOKED_AT_COUNT: i64 = 100;

/// The page shows this many events of a wallet.
const EVENT_COUNT: i64 = 12;

/// The columns of an event that this process may read. A time that no calendar has is shown as a late one.
const COLUMNS: &str = "event_id::text, wallet_id::text, version, balance_minor, accepted, reason, action, amount_minor,
    counterparty, (extract(epoch FROM least(created_at, '9999-01-01')) * 1000)::bigint AS at_ms";

/// The newest event of each wallet that was used last, the newest first.
pub(crate) async fn newest(client: &Client) -> Result<Vec<WalletEvent>> {
    // An event's id begins with the second in which it was drawn. Without the table's name, the text would be sorted, and not the
    // column with the index.
    let sql = format!(
        "-- dashboard::newest_wallet_events
         SELECT {COLUMNS} FROM wallet_events ORDER BY wallet_events.event_id DESC LIMIT $1"
    );
    let rows =
        Session::query(client, &sql, &[&LOOKED_AT_COUNT]).await.context("reading the newest events of wallets")?;
    let mut events: Vec<WalletEvent> = rows.iter().map(event).collect();
    events.sort_by_key(|event| (event.at_ms, event.version, !event.accepted));
    let mut seen = BTreeSet::new();
    let newest_first = events.into_iter().rev().filter(|event| seen.insert(event.wallet_id.clone()));
    Ok(newest_first.take(NEWEST_COUNT).collect())
}

/// The state and the last events of each of these wallets.
pub(crate) async fn of(client: &Client, ids: &[WalletId]) -> Result<BTreeMap<WalletId, InPostgres>> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let texts: Vec<&str> = ids.iter().map(WalletId::as_str).collect();
    let sql = format!(
        "-- dashboard::watched_wallets
         SELECT events.* FROM unnest($1::text[]) AS watched (id), LATERAL (
             (SELECT {COLUMNS} FROM wallet_events WHERE wallet_id = watched.id AND accepted ORDER BY version DESC LIMIT $2)
             UNION ALL
             (SELECT {COLUMNS} FROM wallet_events WHERE wallet_id = watched.id AND NOT accepted
              ORDER BY created_at DESC LIMIT $2)
         ) AS events"
    );
    let rows = Session::query(client, &sql, &[&texts, &EVENT_COUNT]).await.context("reading wallets")?;
    let mut wallets: BTreeMap<WalletId, InPostgres> = ids.iter().map(|id| (*id, unused())).collect();
    for row in &rows {
        let Some(wallet) = row.get::<_, &str>("wallet_id").parse().ok().and_then(|id| wallets.get_mut(&id)) else {
            continue;
        };
        let event = event(row);
        if event.accepted && event.version > wallet.version {
            wallet.version = event.version;
            wallet.balance.clone_from(&event.balance);
            wallet.event_id = Some(row.get("event_id"));
        }
        wallet.events.push(event);
    }
    for wallet in wallets.values_mut() {
        sort(&mut wallet.events);
    }
    Ok(wallets)
}

/// The state of a wallet without events.
fn unused() -> InPostgres {
    InPostgres { balance: decimal(0), ..InPostgres::default() }
}

/// The newest first. A rejected attempt has the version that the wallet had, so it comes after the event of that version.
fn sort(events: &mut Vec<WalletEvent>) {
    events.sort_by_key(|event| std::cmp::Reverse((event.version, !event.accepted, event.at_ms)));
    events.truncate(EVENT_COUNT as usize);
}

fn event(row: &Row) -> WalletEvent {
    WalletEvent {
        wallet_id: row.get("wallet_id"),
        at_ms: row.get("at_ms"),
        version: row.get("version"),
        balance: decimal(row.get("balance_minor")),
        accepted: row.get("accepted"),
        reason: row.get("reason"),
        action: row.get("action"),
        amount: decimal(row.get("amount_minor")),
        counterparty: row.get("counterparty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_attempt_comes_after_the_event_of_its_version() {
        let event = |version, accepted, at_ms| WalletEvent {
            wallet_id: String::new(),
            at_ms,
            version,
            balance: decimal(0),
            accepted,
            reason: None,
            action: "debit".to_owned(),
            amount: decimal(-1),
            counterparty: "world".to_owned(),
        };
        let newest_first = [event(3, true, 4), event(2, false, 6), event(2, false, 5), event(2, true, 5)];
        let mut events = newest_first.to_vec();
        events.reverse();
        sort(&mut events);
        assert_eq!(events, newest_first);
        let mut many: Vec<_> = (0..30).map(|version| event(version, true, 0)).collect();
        sort(&mut many);
        assert_eq!((many.len(), many[0].version), (12, 29));
    }
}
