//! Takes away what nobody needs any more: from Postgres whole batches that every registered consumer has passed (I8), from
//! the stream what is gone from Postgres and what exceeds a cap. A consumer that falls behind the cap reads from Postgres.
//!
//! What goes is folded into the baseline first, a consumer of the reaper's own: so the sum of what is gone stays, new
//! consumers start with it, and audits count from it.

mod baseline;
mod laggards;
mod requests;
mod trim;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use monitor::{counter, declare_counter, declare_gauge, gauge};
use pglog::ReapedCounts;
use process::{Failure, ProcessArgs, Turn, Until, Work};
use stream::StreamArgs;
use tracing::{info, warn};

use baseline::Baseline;
pub use laggards::{Laggard, laggards};

/// The longest step, in which up to a million records are deleted.
const STEP_WAIT: Duration = Duration::from_secs(120);

/// Removes what every registered consumer has passed.
#[derive(Debug, Clone, Parser)]
#[command(name = "reaper", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// How long records are kept after everybody has passed them, for example 1h or 0s.
    #[arg(long, env = "REAPER_KEEP", default_value = "1h", value_parser = humantime::parse_duration)]
    pub keep: Duration,

    /// How often to look.
    #[arg(long, env = "REAPER_INTERVAL", default_value = "10s", value_parser = humantime::parse_duration)]
    pub interval: Duration,

    /// The most entries the stream may have. A million small ones take some 130 MB of Redis's memory.
    #[arg(long, env = "STREAM_LEN_MAX", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub stream_len_max: u64,

    /// A consumer that is behind and has not moved for this long is called dead, loudly.
    #[arg(long, env = "REAPER_DEAD_AFTER", default_value = "1m", value_parser = humantime::parse_duration)]
    pub dead_after: Duration,

    /// How long requests with an idempotency key can be sent again and get the same answer.
    #[arg(long, env = "REAPER_KEEP_REQUESTS", default_value = "72h", value_parser = parse_keep_requests)]
    pub keep_requests: Duration,

    /// Look once, and exit.
    #[arg(long)]
    pub once: bool,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// A client may send its request again for a day; forgotten sooner, it would be charged again.
fn parse_keep_requests(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(keep) if keep >= Duration::from_secs(24 * 3600) => Ok(keep),
        _ => Err("give a time of at least 24h, for example 72h".to_owned()),
    }
}

/// What one look took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Batches given up.
    pub batch_count: u64,
    /// Records deleted from Postgres.
    pub record_count: u64,
    /// Entries trimmed from the stream.
    pub trimmed_count: u64,
    /// Requests forgotten, with their answers.
    pub request_count: u64,
    /// Of these, requests that were not finished: they are listed in `reaped_requests`.
    pub unfinished_request_count: u64,
    /// Consumers that hold all this back.
    pub laggards: Vec<Laggard>,
}

/// How long a look may take before the reaper is not ready; and how long Postgres may be silent.
const LOOK_WAIT: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(5);

/// Looks every `interval` until `shutdown`; with `--once`, once.
///
/// # Errors
/// With `--once` any failure; otherwise only failures that an operator must look at: the tables are damaged, or of another
/// cluster or version. A server that is away is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    info!(keep = ?config.keep, stream_len_max = config.stream_len_max, "reaper started");
    let health = monitor::start(&config.process.monitor).await?;
    let looks = health.pulse("looks", config.interval + LOOK_WAIT);
    health.ask_postgres(&config.postgres.database_url, health.pulse("postgres", AGE_MAX), monitor::anything);
    describe_metrics();
    process::ready();
    let until = Until::once(config.once);
    process::repeat(&mut Reaping { config, shutdown: shutdown.clone() }, until, &looks, &shutdown).await?;
    info!("reaper stopped");
    Ok(())
}

/// The reaper as the skeleton repeats it.
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

/// One look: gives up passed batches, trims the stream, and names the consumers that hold it back. Connects anew each
/// time: it is seldom, and nothing is kept open in between. Stops between two transactions when told to.
///
/// # Errors
/// A server is away. What was done stays done; the rest is done the next time.
pub async fn run_once(config: &Config, shutdown: &CancellationToken) -> Result<Cleaned> {
    let mut client = connect::postgres::connect(&config.postgres.database_url, "reaper", || {}).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    let mut cleaned = Cleaned {
        laggards: laggards(&client, config.stream.partition, config.dead_after).await?,
        ..Cleaned::default()
    };
    let reaped = reap_all(config, &mut client, shutdown, &mut cleaned).await;
    // In any case: the cap of the stream must hold most of all when something keeps Postgres from being cleaned.
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

/// Servers bound their own work; this is for the connection on which no answer comes any more.
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
    declare_counter("rocket_rides_requests_forgotten_total", "Requests that nobody sends again, forgotten", &[]);
    declare_counter("rocket_rides_requests_unfinished_total", "Of these, requests that were never finished", &[]);
    declare_gauge("rocket_rides_laggards", "Consumers that do not move and hold back what could be removed", &[]);
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
            "removed what everybody has passed"
        );
    }
    if cleaned.request_count > 0 {
        info!(request_count = cleaned.request_count, "forgot requests that nobody sends again");
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
