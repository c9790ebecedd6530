//! Counts the rides again, in SQL. The consumers' totals are compared with this figure. It uses nothing that the log or a
//! consumer has written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Session};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::debug;

use crate::database;
use crate::sample::{Recount, now_ms};

/// The pause after a count is this many times as long as the count took. A count reads the whole table, and so costs Postgres
/// at most a twentieth of a processor, however large the table is.
const PAUSE_FACTOR: u32 = 20;

/// How long a sample waits for a new recount. After that it has the previous one.
const FRESH_WAIT: Duration = Duration::from_millis(200);

/// The pause after a count that failed.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How long one count may take. Postgres ends its statements after 30 s, so this limit matters only on a lost connection.
const COUNT_WAIT: Duration = Duration::from_secs(40);

/// The latest recount, and a way to ask for the next one.
#[derive(Clone)]
pub(crate) struct Recounts {
    last: watch::Receiver<Option<Recount>>,
    wanted: Arc<Notify>,
}

impl Recounts {
    /// Starts counting, on a connection of its own.
    pub fn start(config: &tokio_postgres::Config, partition: Partition) -> Self {
        let (sender, last) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        tokio::spawn(keep_counting(config.clone(), partition, sender, Arc::clone(&wanted)));
        Self { last, wanted }
    }

    /// A new recount if it is there soon, else the latest one.
    pub async fn fresh(&mut self) -> Option<Recount> {
        self.last.mark_unchanged();
        self.wanted.notify_one();
        // After the time-out the count goes on, and a later call gets its result.
        let _ = timeout(FRESH_WAIT, self.last.changed()).await;
        self.last.borrow().clone()
    }
}

async fn keep_counting(
    config: tokio_postgres::Config,
    partition: Partition,
    recounts: watch::Sender<Option<Recount>>,
    wanted: Arc<Notify>,
) {
    let mut client = None;
    while !recounts.is_closed() {
        wanted.notified().await;
        let counted = timeout(COUNT_WAIT, async {
            let mut connected = match client.take() {
                Some(client) => client,
                None => database::connect(&config).await?,
            };
            let recount = count(&mut connected, partition).await?;
            anyhow::Ok((connected, recount))
        });
        // An error is not shown: the sampler asks the same server, and the page says when it does not answer.
        let pause = match counted.await {
            Ok(Ok((connected, recount))) => {
                client = Some(connected);
                let took = Duration::from_secs_f64(recount.took_ms / 1e3);
                recounts.send_replace(Some(recount));
                took * PAUSE_FACTOR
            }
            Ok(Err(error)) => {
                debug!(error = format!("{error:#}"), "the rides cannot be counted");
                RETRY_WAIT
            }
            Err(_) => {
                debug!("counting the rides took too long");
                RETRY_WAIT
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn count(client: &mut Client, partition: Partition) -> Result<Recount> {
    let tx = database::snapshot(client).await?;
    let began_at = Instant::now();
    // In the same snapshot: the record of each counted ride is at or before this head, or it is staged.
    let head = pglog::head(&tx, partition).await.context("reading the head")?;
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
        is_complete,
        ride_count: row.get(0),
        distance_mm: row.get(1),
    })
}
