//! Removes records that are not needed any more. From Postgres it deletes whole batches that every registered consumer has
//! passed (I8). From the stream it trims entries that are gone from Postgres, and the oldest entries beyond a cap. A consumer
//! that falls behind the cap reads from Postgres.
//!
//! Each look trims the stream and forgets old requests first, and reaps for a limited time after that. So the cap holds also
//! while there is more to reap than one look does. Then the next look follows at once.
//!
//! The reaper first folds the records into the baseline, which is its own consumer. So their sum stays, new consumers start
//! with it, and audits count from it.

mod baseline;
mod config;
mod laggards;
mod requests;
mod trim;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;
use deadpool_postgres::ClientWrapper as Client;
use monitor::{counter, declare_counter, declare_gauge, gauge};
use pglog::{Partition, ReapedCounts};
use process::{Failure, Turn, Until, Work};
use tracing::{info, warn};

use baseline::Baseline;
pub use config::Config;
pub use laggards::{Laggard, laggards};

/// The longest step. Servers bound their own work (30 s per statement); this bound is for a connection that answers nothing
/// any more.
const STEP_WAIT: Duration = Duration::from_secs(45);
/// After this time a look begins no further step of reaping.
const REAP_WAIT: Duration = Duration::from_secs(10);
/// Transactions that forget requests, per look.
const FORGETS_LEN_MAX: usize = 20;

/// Statements that succeed only while the reaper can do its work, and change no row.
const TRIAL: [&str; 5] = [
    "-- reaper::try_baseline\nUPDATE checkpoints SET last_offset = last_offset, state = state WHERE false",
    "-- reaper::try_mark\nUPDATE log_batches SET reaped_at = reaped_at WHERE false",
    "-- reaper::try_records\nDELETE FROM staged_log_records WHERE false",
    "-- reaper::try_batches\nDELETE FROM log_batches WHERE false",
    "-- reaper::try_requests\nDELETE FROM tracked_operations WHERE false",
];

/// The result of one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Batches given up for deletion.
    pub batch_count: u64,
    /// Records deleted from Postgres.
    pub record_count: u64,
    /// Entries trimmed from the stream.
    pub trimmed_count: u64,
    /// Requests forgotten, with their responses.
    pub request_count: u64,
    /// The unfinished requests among them. They are listed in `reaped_requests`.
    pub unfinished_request_count: u64,
    /// Consumers that hold back deletion.
    pub laggards: Vec<Laggard>,
    /// Whether the look ended before everything was removed.
    pub is_more_left: bool,
}

/// The reaper is not ready if a look takes this long.
const LOOK_WAIT: Duration = Duration::from_secs(60);
/// The reaper is not ready if Postgres has been silent for this long.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Looks every `interval` until `shutdown`; with `--once`, once.
///
/// # Errors
/// With `--once` any failure. Otherwise only failures that an operator must look at: the tables are damaged, or belong to
/// another cluster or version. If a server is away, the reaper waits for it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    info!(keep = ?config.keep, stream_len_max = config.stream_len_max, "reaper started");
    let health = monitor::start(&config.process.monitor).await?;
    let looks = health.pulse("looks", config.interval + LOOK_WAIT);
    health.ask_postgres(&config.postgres.database_url, health.pulse("postgres", AGE_MAX), |client| {
        Box::pin(monitor::try_statements(client, &TRIAL))
    });
    describe_metrics();
    process::ready();
    let until = Until::once(config.once);
    let mut reaping = Reaping { config, baseline: None, shutdown: shutdown.clone() };
    process::repeat(&mut reaping, until, &looks, &shutdown).await?;
    info!("reaper stopped");
    Ok(())
}

/// The unit of work that the process skeleton repeats.
struct Reaping {
    config: Config,
    /// Kept from a look that left something, because it may have come far on its way into a huge batch.
    baseline: Option<Baseline>,
    shutdown: CancellationToken,
}

impl Work for Reaping {
    type Fault = ();

    const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        loop {
            let cleaned = self.look().await.map_err(judge)?;
            log(&cleaned, self.config.stream.partition());
            count(&cleaned);
            let pause = if cleaned.is_more_left { Duration::ZERO } else { self.config.interval };
            if !(self.config.once && cleaned.is_more_left) {
                return Ok(Turn::done().pausing(pause));
            }
        }
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "reaping failed, trying again");
    }
}

fn judge(error: anyhow::Error) -> Failure {
    if error.downcast_ref().is_some_and(pglog::Error::is_final) {
        Failure::Final(error)
    } else {
        Failure::Passing(error)
    }
}

/// One look: trims the stream, forgets old requests, deletes passed batches, and names the consumers that hold back deletion.
/// It connects anew each time, because looks are rare. At `shutdown` it stops between two transactions.
///
/// # Errors
/// A server is away. Finished steps stay; the next look does the rest.
pub async fn run_once(config: &Config, shutdown: &CancellationToken) -> Result<Cleaned> {
    Reaping { config: config.clone(), baseline: None, shutdown: shutdown.clone() }.look().await
}

impl Reaping {
    /// As [`run_once`]. A step that fails does not keep the others from being done.
    async fn look(&mut self) -> Result<Cleaned> {
        let mut client = connect::postgres::connect(&self.config.postgres.database_url, "reaper", || {}).await?;
        bounded(async { pglog::prepare_session(&client).await.context("setting up the session") }).await?;
        let partition = self.config.stream.partition();
        let mut cleaned = Cleaned {
            laggards: bounded(laggards(&client, partition, self.config.dead_after)).await?,
            ..Cleaned::default()
        };
        let trimmed = bounded(trim_stream(&self.config, &client, &mut cleaned)).await;
        let forgotten = self.forget_requests(&client, &mut cleaned).await;
        let reaped = self.reap(&mut client, partition, &mut cleaned).await;
        // Entries of the records that are gone now.
        let trimmed_again = match cleaned.batch_count {
            0 => Ok(()),
            _ => bounded(trim_stream(&self.config, &client, &mut cleaned)).await,
        };
        reaped.and(trimmed).and(trimmed_again).and(forgotten).map(|()| cleaned)
    }

    async fn forget_requests(&self, client: &Client, cleaned: &mut Cleaned) -> Result<()> {
        for _ in 0..FORGETS_LEN_MAX {
            let forgotten = bounded(requests::forget(client, self.config.keep_requests)).await?;
            cleaned.request_count += forgotten.count;
            cleaned.unfinished_request_count += forgotten.unfinished_count;
            if forgotten.count == 0 || self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
        cleaned.is_more_left = true;
        Ok(())
    }

    async fn reap(&mut self, client: &mut Client, partition: Partition, cleaned: &mut Cleaned) -> Result<()> {
        let until = Instant::now() + REAP_WAIT;
        let mut baseline = self.baseline.take().unwrap_or_else(|| Baseline::new(&self.config, &self.shutdown));
        while !self.shutdown.is_cancelled() {
            if Instant::now() >= until {
                cleaned.is_more_left = true;
                self.baseline = Some(baseline);
                break;
            }
            let reapable = bounded(async { Ok(pglog::reapable(client, partition, self.config.keep).await?) }).await;
            if let Some(last_offset) = reapable.context("asking what can be reaped")? {
                baseline.move_to(last_offset, until, &self.shutdown).await.context("moving the baseline")?;
            }
            let reaped = bounded(async { Ok(pglog::reap(client, partition, self.config.keep).await?) }).await;
            let reaped = reaped.context("reaping batches")?;
            cleaned.batch_count += reaped.batch_count;
            cleaned.record_count += reaped.record_count;
            if reaped == ReapedCounts::default() && Instant::now() < until {
                break;
            }
        }
        Ok(())
    }
}

/// Limits a step. Servers limit their own work, so this only strikes if a connection is dead.
async fn bounded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(STEP_WAIT, work).await.with_context(|| format!("no answer within {STEP_WAIT:?}"))?
}

async fn trim_stream(config: &Config, client: &Client, cleaned: &mut Cleaned) -> Result<()> {
    let first_retained =
        pglog::first_retained(client, config.stream.partition()).await.context("asking what is retained")?;
    let mut stream = stream::redis::connect(config.stream.redis_url.first()).await?;
    let trimmed = trim::trim(&mut stream, &config.stream.key(), first_retained, config.stream_len_max).await?;
    cleaned.trimmed_count += trimmed.count;
    cleaned.is_more_left |= trimmed.is_more_left;
    Ok(())
}

fn describe_metrics() {
    declare_counter("rocket_rides_records_reaped_total", "Records deleted from Postgres", &[]);
    declare_counter("rocket_rides_entries_trimmed_total", "Entries trimmed from the stream", &[]);
    declare_counter(
        "rocket_rides_requests_forgotten_total",
        "Old requests with an idempotency key that were forgotten",
        &[],
    );
    declare_counter("rocket_rides_requests_unfinished_total", "Forgotten requests that were never finished", &[]);
    declare_gauge("rocket_rides_laggards", "Consumers that do not move and hold back deletion", &[]);
}

fn count(cleaned: &Cleaned) {
    counter!("rocket_rides_records_reaped_total").increment(cleaned.record_count);
    counter!("rocket_rides_entries_trimmed_total").increment(cleaned.trimmed_count);
    counter!("rocket_rides_requests_forgotten_total").increment(cleaned.request_count);
    counter!("rocket_rides_requests_unfinished_total").increment(cleaned.unfinished_request_count);
    gauge!("rocket_rides_laggards").set(cleaned.laggards.len() as f64);
}

fn log(cleaned: &Cleaned, partition: Partition) {
    let partition = partition.argument();
    if cleaned.batch_count > 0 || cleaned.trimmed_count > 0 {
        info!(
            batch_count = cleaned.batch_count,
            record_count = cleaned.record_count,
            trimmed_count = cleaned.trimmed_count,
            "removed records that every consumer has passed"
        );
    }
    if cleaned.request_count > 0 {
        info!(request_count = cleaned.request_count, "forgot old requests");
    }
    if cleaned.unfinished_request_count > 0 {
        warn!(
            unfinished_request_count = cleaned.unfinished_request_count,
            "requests were never finished: look at each in reaped_requests, the processor may have charged"
        );
    }
    for Laggard { name, lag, still_s } in &cleaned.laggards {
        warn!(
            consumer = name,
            lag,
            still_s,
            "this consumer does not move, and nothing after it can be removed: start it, or forget it with \
             `consumer {} --unregister{partition}`",
            process::quoted(name)
        );
    }
}
