//! Counts the rides again, in SQL. The consumers' totals are compared with this figure. It uses nothing that the log or a
//! consumer has written.

use std::time::Instant;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use futures_util::future::try_join_all;
use pglog::Session;

use crate::counting::{self, Count};
use crate::sample::{Recount, now_ms};

/// The rides of all partitions, with the head of each.
pub(crate) struct Rides;

impl Count for Rides {
    type Counted = Recount;

    const THINGS: &'static str = "the rides";

    async fn count(&self, client: &mut Client) -> Result<Recount> {
        count(client).await
    }
}

async fn count(client: &mut Client) -> Result<Recount> {
    let tx = counting::snapshot(client).await?;
    let began_at = Instant::now();
    // In the same snapshot: the record of each counted ride is at or before the head of its partition, or it is staged.
    let log = pglog::identity(&tx).await.context("asking for the partitions")?;
    let ask = |partition| {
        let tx = &tx;
        async move {
            let marked = pglog::marked_head(tx, partition).await.context("reading the head")?;
            let is_staged = pglog::is_anything_staged(tx, partition).await.context("looking for staged records")?;
            anyhow::Ok((marked, is_staged))
        }
    };
    let parts = try_join_all(log.partitions.partitions().map(ask)).await?;
    let row = Session::query_one(
        &tx,
        // SUM of bigint is numeric. Above 64 bits the largest bigint stands for it; consumers reject such rides too.
        "-- dashboard::count
         SELECT count(*), least(COALESCE(sum(distance_mm), 0), 9223372036854775807)::bigint FROM rides",
        &[],
    );
    let row = row.await.context("counting the rides")?;
    tx.rollback().await?;
    Ok(Recount {
        at_ms: now_ms(),
        took_ms: began_at.elapsed().as_secs_f64() * 1e3,
        head: parts.iter().map(|((head, _), _)| head).sum(),
        is_complete: !parts.iter().any(|(_, is_staged)| *is_staged),
        heads: parts.into_iter().map(|(marked, _)| marked).collect(),
        ride_count: row.get(0),
        distance_mm: row.get(1),
    })
}
