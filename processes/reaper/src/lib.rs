//! Removes records that are not needed any more. From Postgres it deletes whole batches that every registered consumer has
//! passed (I8). From the stream it trims entries that are gone from Postgres, and the oldest entries beyond a cap. A consumer
//! that falls behind the cap reads from Postgres.
//!
//! The reaper first folds the records into the baseline, which is its own consumer. So their sum stays, new consumers start
//! with it, and audits count from it.

mod baseline;
mod config;
mod laggards;
mod requests;
mod trim;

use std::time::Duration;

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;
use deadpool_postgres::ClientWrapper as Client;
use monitor::{counter, declare_counter, declare_gauge, gauge};
use pglog::ReapedCounts;
use process::{Failure, Turn, Until, Work};
use tracing::{info, warn};

use baseline::Baseline;
pub use config::Config;
pub use laggards::{Laggard, laggards};

/// The longest step, in which up to a million records are deleted.
const STEP_WAIT: Duration = Duration::from_secs(120);

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
    process::repeat(&mut Reaping { config, shutdown: shutdown.clone() }, until, &looks, &shutdown).await?;
    info!("reaper stopped");
    Ok(())
}

/// The unit of work that the process skeleton repeats.
struct Reaping {
    config: Config,
    shutdown: CancellationToken,
}

impl Work for Reaping {
    type Fault = ();

    const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let cleaned = run_once(&self.config, &self.shutdown).await.map_err(judge)?;
        log(&cleaned);
        count(&cleaned);
        Ok(Turn::done().pausing(self.config.interval))
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

/// One look: deletes passed batches, trims the stream, and names the consumers that hold back deletion. It connects anew each
/// time, because looks are rare. At `shutdown` it stops between two transactions.
///
/// # Errors
/// A server is away. Finished steps stay; the next look does the rest.
pub async fn run_once(config: &Config, shutdown: &CancellationToken) -> Result<Cleaned> {
    let mut client = connect::postgres::connect(&config.postgres.database_url, "reaper", || {}).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    let mut cleaned = Cleaned {
        laggards: laggards(&client, config.stream.partition, config.dead_after).await?,
        ..Cleaned::default()
    };
    let reaped = reap_all(config, &mut client, shutdown, &mut cleaned).await;
    // The stream is trimmed even after a failure: if Postgres cannot be cleaned, the cap matters most.
    cleaned.trimmed_count = bounded(trim_stream(config, &client)).await?;
    while !shutdown.is_cancelled() {
        let forgotten = bounded(requests::forget(&client, config.keep_requests)).await?;
        cleaned.request_count += forgotten.count;
        cleaned.unfinished_request_count += forgotten.unfinished_count;
        if forgotten.count == 0 {
            break;
        }
    }
    reaped.map(|()| cleaned)
}

async fn reap_all(
    config: &Config,
    client: &mut Client,
    shutdown: &CancellationToken,
    cleaned: &mut Cleaned,
) -> Result<()> {
    let mut baseline = Baseline::new(config, shutdown);
    while !shutdown.is_cancelled() {
        let reapable =
            bounded(async { Ok(pglog::reapable(client, config.stream.partition, config.keep).await?) }).await;
        if let Some(last_offset) = reapable.context("asking what can be reaped")? {
            baseline.move_to(last_offset, shutdown).await.context("moving the baseline")?;
        }
        let reaped = bounded(async { Ok(pglog::reap(client, config.stream.partition, config.keep).await?) }).await;
        let reaped = reaped.context("reaping batches")?;
        cleaned.batch_count += reaped.batch_count;
        cleaned.record_count += reaped.record_count;
        if reaped == ReapedCounts::default() {
            break;
        }
    }
    Ok(())
}

/// Limits a step. Servers limit their own work, so this only strikes if a connection is dead.
async fn bounded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(STEP_WAIT, work).await.with_context(|| format!("no answer within {STEP_WAIT:?}"))?
}

async fn trim_stream(config: &Config, client: &Client) -> Result<u64> {
    let first_retained =
        pglog::first_retained(client, config.stream.partition).await.context("asking what is retained")?;
    let mut stream = stream::redis::connect(&config.stream.redis_url).await?;
    trim::trim(&mut stream, &config.stream.key(), first_retained, config.stream_len_max).await
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

fn log(cleaned: &Cleaned) {
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
             `consumer {name} --unregister`"
        );
    }
}
