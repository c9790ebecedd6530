//! Counts the money: the sum of all balances must be the sum of accepted credits minus accepted debits (W4). It reads all wallets
//! and all events, so it is paced as the recount of the rides is.

use std::time::Instant;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Session;

use crate::counting::Count;
use crate::database;
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
    let tx = database::snapshot(client).await?;
    let began_at = Instant::now();
    // A sequential scan is best for a whole table. The session turns it off for the log's own queries.
    tx.batch_execute("SET LOCAL enable_seqscan = on").await.context("setting up the session")?;
    let row = Session::query_one(
        &tx,
        "-- dashboard::count_money
         SELECT wallet_count, accepted_count, rejected_count, (balances / 100)::numeric(40, 2)::text AS balances,
                (from_world / 100)::numeric(40, 2)::text AS from_world, balances = from_world AS adds_up
         FROM (SELECT count(*) AS wallet_count, COALESCE(sum(balance_minor), 0) AS balances FROM wallets) AS w,
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
