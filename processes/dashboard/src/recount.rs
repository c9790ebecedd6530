//! Counting the rides again: the figure that consumers are held against. It is SQL's own, and uses nothing that the log or a
//! consumer has made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Session;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::debug;

use crate::database;
use crate::sample::{Recount, now_ms};

/// Counting reads the whole table. So that Postgres spends at most a twentieth of a processor on it, the pause grows with the
/// table.
const PAUSE_FACTOR: u32 = 20;

/// How long to wait for a recount before the last one has to serve.
const FRESH_WAIT: Duration = Duration::from_millis(200);

/// The pause after a count that failed.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How long one count may take; Postgres's own bound (30 s) strikes first, unless the connection is lost.
const COUNT_WAIT: Duration = Duration::from_secs(40);

/// The last recount, and a way to ask for the next one.
#[derive(Clone)]
pub(crate) struct Recounts {
    last: watch::Receiver<Option<Recount>>,
    wanted: Arc<Notify>,
}

impl Recounts {
    /// Starts counting, on a connection of its own.
    pub fn start(config: &tokio_postgres::Config, partition: i32) -> Self {
        let (sender, last) = watch::channel(None);
        let wanted = Arc::new(Notify::new());
        tokio::spawn(keep_counting(config.clone(), partition, sender, Arc::clone(&wanted)));
        Self { last, wanted }
    }

    /// A recount of now if there is one soon, or else the last one.
    pub async fn fresh(&mut self) -> Option<Recount> {
        self.last.mark_unchanged();
        self.wanted.notify_one();
        // It goes on without us, and serves the next one who asks.
        let _ = timeout(FRESH_WAIT, self.last.changed()).await;
        self.last.borrow().clone()
    }
}

async fn keep_counting(
    config: tokio_postgres::Config,
    partition: i32,
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
        // The sampler asks the same server, and says on the page that it does not answer.
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

async fn count(client: &mut Client, partition: i32) -> Result<Recount> {
    let tx = database::snapshot(client).await?;
    let began_at = Instant::now();
    // The same snapshot: a ride that is counted has its record at or before this head, or staged.
    let head = pglog::head(&tx, partition).await.context("reading the head")?;
    let is_complete = !pglog::is_anything_staged(&tx, partition).await.context("looking for staged records")?;
    // All of a table is best read as it lies; for the log's own questions the session has that turned off.
    tx.batch_execute("SET LOCAL enable_seqscan = on").await.context("setting up the session")?;
    let row = Session::query_one(
        &tx,
        // SUM of bigint is numeric; beyond 64 bits, where consumers reject rides too, it stays at the largest.
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
