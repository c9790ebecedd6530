//! Counts the rides again, in SQL. The consumers' totals are compared with this figure. It uses nothing that the log or a
//! consumer has written.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::paced::{Paced, Source};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Session};
use tokio::time::timeout;
use tracing::debug;

use crate::database;
use crate::sample::{Recount, now_ms};

/// How long one count may take. Postgres ends its statements after 30 s, so this limit matters only on a lost connection.
const COUNT_WAIT: Duration = Duration::from_secs(40);

/// The latest recount, and a way to ask for the next one.
#[derive(Clone)]
pub(crate) struct Recounts {
    paced: Paced<Recount, ()>,
    /// The latest that has succeeded.
    last: Option<Recount>,
}

impl Recounts {
    /// Starts counting, on a connection of its own.
    pub fn start(config: &tokio_postgres::Config, partition: Partition) -> Self {
        let paced = Paced::start(Counting { config: config.clone(), partition, client: None });
        Self { paced, last: None }
    }

    /// A new recount if it is there soon, else the latest one.
    pub async fn fresh(&mut self) -> Option<Recount> {
        if let Some(recount) = self.paced.latest().await.and_then(|figure| figure.result.ok()) {
            self.last = Some(recount);
        }
        self.last.clone()
    }
}

struct Counting {
    config: tokio_postgres::Config,
    partition: Partition,
    /// `None` after an error, because the connection may be the cause.
    client: Option<Client>,
}

impl Source for Counting {
    type Value = Recount;
    type Error = ();

    async fn work_out(&mut self) -> Result<Recount, ()> {
        let counting = async {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => database::connect(&self.config).await?,
            };
            let recount = count(&mut client, self.partition).await?;
            self.client = Some(client);
            anyhow::Ok(recount)
        };
        // An error is not shown: the sampler asks the same server, and the page says when it does not answer.
        let counted = timeout(COUNT_WAIT, counting).await.context("counting the rides took too long").flatten();
        counted.map_err(|error| debug!(error = format!("{error:#}"), "the rides cannot be counted"))
    }
}

async fn count(client: &mut Client, partition: Partition) -> Result<Recount> {
    let tx = database::snapshot(client).await?;
    let began_at = Instant::now();
    // In the same snapshot: the record of each counted ride is at or before this head, or it is staged.
    let (head, head_token) = pglog::marked_head(&tx, partition).await.context("reading the head")?;
    let is_complete = !pglog::is_anything_staged(&tx, partition).await.context("looking for staged records")?;
    // A sequential scan is best for a whole table. The session turns it off for the log's own queries.
    tx.batch_execute("SET LOCAL enable_seqscan = on").await.context("setting up the session")?;
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
