//! Counts the rides again, in SQL. The consumers' totals are compared with this figure. It uses nothing that the log or a
//! consumer has written.

use std::time::Instant;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Session};

use crate::counting::{self, Count};
use crate::sample::{Recount, now_ms};

/// The rides of all partitions, with the head of this one.
pub(crate) struct Rides(pub Partition);

impl Count for Rides {
    type Counted = Recount;

    const THINGS: &'static str = "the rides";

    async fn count(&self, client: &mut Client) -> Result<Recount> {
        count(client, self.0).await
    }
}

async fn count(client: &mut Client, partition: Partition) -> Result<Recount> {
    let tx = counting::snapshot(client).await?;
    let began_at = Instant::now();
    // In the same snapshot: the record of each counted ride is at or before this head, or it is staged.
    let (head, head_token) = pglog::marked_head(&tx, partition).await.context("reading the head")?;
    let is_complete = !pglog::is_anything_staged(&tx, partition).await.context("looking for staged records")?;
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
        head,
        head_token,
        is_complete,
        ride_count: row.get(0),
        distance_mm: row.get(1),
    })
}
