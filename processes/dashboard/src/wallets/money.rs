//! Counts the money: the sum of all balances must be the sum of accepted credits minus accepted debits (W4). It reads all
//! events, so it is paced as the recount of the rides is.

use std::time::Instant;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Session;

use crate::counting::{self, Count};
use crate::sample::{Money, now_ms};

/// The money of all wallets.
pub(crate) struct AllMoney;

impl Count for AllMoney {
    type Counted = Money;

    const THINGS: &'static str = "the money";

    async fn count(&self, client: &mut Client) -> Result<Money> {
        count(client).await
    }
}

async fn count(client: &mut Client) -> Result<Money> {
    let tx = counting::snapshot(client).await?;
    let began_at = Instant::now();
    let row = Session::query_one(
        &tx,
        // The balance of a wallet is that of its newest accepted event. The view wallets would look it up, wallet by wallet.
        "-- dashboard::count_money
         SELECT (SELECT count(*) FROM wallet_locks) AS wallet_count, accepted_count, rejected_count,
                (balances / 100)::numeric(40, 2)::text AS balances, (from_world / 100)::numeric(40, 2)::text AS from_world,
                balances = from_world AS adds_up
         FROM (SELECT COALESCE(sum(balance_minor), 0) AS balances
               FROM (SELECT DISTINCT ON (wallet_id) balance_minor FROM wallet_events
                     WHERE accepted ORDER BY wallet_id, version DESC) AS newest) AS w,
              (SELECT count(*) FILTER (WHERE accepted) AS accepted_count,
                      count(*) FILTER (WHERE NOT accepted) AS rejected_count,
                      COALESCE(sum(amount_minor) FILTER (WHERE accepted AND action <> 'transfer'), 0) AS from_world
               FROM wallet_events) AS e",
        &[],
    );
    let row = row.await.context("counting the money")?;
    tx.rollback().await?;
    Ok(Money {
        at_ms: now_ms(),
        took_ms: began_at.elapsed().as_secs_f64() * 1e3,
        wallet_count: row.get("wallet_count"),
        accepted_count: row.get("accepted_count"),
        rejected_count: row.get("rejected_count"),
        balances: row.get("balances"),
        from_world: row.get("from_world"),
        adds_up: row.get("adds_up"),
    })
}
