//! Removes records that are not needed any more. From Postgres it deletes whole batches that every registered consumer has
//! passed (I8). From the streams it trims entries that are gone from Postgres, and the oldest entries beyond a cap. A consumer
//! that falls behind the cap reads from Postgres.
//!
//! Each look trims the streams and forgets old requests first, and reaps for a limited time after that. So the cap holds also
//! while there is more to reap than one look does. Then the next look follows at once. The partitions share the time, and what
//! fails in one partition does not keep the others from being reaped.
//!
//! The reaper first folds the records into the baseline of their partition, which is its own consumer. So their sum stays, new
//! consumers start with it, and audits count from it.

mod baseline;
mod cleaned;
mod config;
mod laggards;
mod requests;
mod told;
mod trim;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use common::shutdown::CancellationToken;
use common::stay_down::StayDown;
use deadpool_postgres::ClientWrapper as Client;
use monitor::counter;
use pglog::{Identity, Partition, PartitionCount, ReapedCounts};
use process::{Failure, Turn, Until, Work};
use stream::Stream;
use tracing::{info, warn};

use baseline::Baseline;
pub use cleaned::Cleaned;
pub use config::Config;
pub use laggards::{Laggard, laggards};
use trim::Streams;

/// The longest step. Servers bound their own work (30 s per statement); this bound is for a connection that answers nothing
/// any more.
const STEP_WAIT: Duration = Duration::from_secs(45);
/// After this time a look begins no further step of reaping. The partitions share it.
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
    process::ready();
    let until = Until::once(config.once);
    let mut reaping = Reaping::new(config, &shutdown);
    process::repeat(&mut reaping, until, &looks, &shutdown).await?;
    info!("reaper stopped");
    Ok(())
}

/// The unit of work that the process skeleton repeats.
struct Reaping {
    config: Config,
    /// Those of partitions in which a look left something. Each may have come far on its way into a huge batch.
    baselines: BTreeMap<Partition, Baseline>,
    /// How many looks there were. Each begins with another partition.
    look_count: usize,
    shutdown: CancellationToken,
}

impl Work for Reaping {
    type Fault = ();

    const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        loop {
            let cleaned = self.look().await.map_err(judge)?;
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

fn judge(error: Error) -> Failure {
    if is_final(&error) || error.is::<StayDown>() { Failure::Final(error) } else { Failure::Passing(error) }
}

fn is_final(error: &Error) -> bool {
    error.downcast_ref().is_some_and(pglog::Error::is_final)
}

/// One look: trims the streams, forgets old requests, deletes passed batches, and names the consumers that hold back deletion.
/// It connects anew each time, because looks are rare. At `shutdown` it stops between two transactions.
///
/// # Errors
/// A server is away. Finished steps stay; the next look does the rest.
pub async fn run_once(config: &Config, shutdown: &CancellationToken) -> Result<Cleaned> {
    Reaping::new(config.clone(), shutdown).look().await
}

/// The part of the log that the reaper looks after.
struct Log {
    /// How many partitions there are.
    count: PartitionCount,
    /// Those that this reaper looks after.
    partitions: Vec<Partition>,
    /// The names of their streams.
    stream: Stream,
}

impl Log {
    fn of(config: &Config, identity: &Identity) -> Result<Self> {
        let partitions =
            config.stream.partitions.of(identity.partitions).map_err(|unknown| StayDown(unknown.into()))?;
        Ok(Self { count: identity.partitions, partitions, stream: config.stream.stream(identity) })
    }

    /// The error, with the partition in which it happened if there are others.
    fn in_partition(&self, partition: Partition, error: Error) -> Error {
        if self.count == PartitionCount::ONE { error } else { error.context(format!("partition {partition}")) }
    }
}

impl Reaping {
    fn new(config: Config, shutdown: &CancellationToken) -> Self {
        Self { config, baselines: BTreeMap::new(), look_count: 0, shutdown: shutdown.clone() }
    }

    /// As [`run_once`]. A step that fails does not keep the others from being done.
    async fn look(&mut self) -> Result<Cleaned> {
        let mut client = connect::postgres::connect(&self.config.postgres.database_url, "reaper", || {}).await?;
        let identity =
            bounded(async { pglog::prepare_session(&client).await.context("setting up the session") }).await?;
        let log = Log::of(&self.config, &identity)?;
        told::declare(&log.partitions);
        let mut cleaned = Cleaned {
            laggards: bounded(laggards(&client, &log.partitions, self.config.dead_after)).await?,
            ..Cleaned::default()
        };
        let trimmed = self.trim(&client, &log, &log.partitions, &mut cleaned).await;
        let forgotten = self.forget_requests(&client, &mut cleaned).await;
        let (reaped, reaped_in) = self.reap_all(&mut client, &log, &mut cleaned).await;
        // Entries of the records that are gone now.
        let trimmed_again = match reaped_in[..] {
            [] => Ok(()),
            _ => self.trim(&client, &log, &reaped_in, &mut cleaned).await,
        };
        told::log(&cleaned, log.count, &self.config.stream.partitions);
        told::count(&cleaned, &log.partitions);
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

    /// Reaps the partitions one after another. Each has its share of the time that is left. Returns also those in which batches
    /// were given up.
    async fn reap_all(
        &mut self,
        client: &mut Client,
        log: &Log,
        cleaned: &mut Cleaned,
    ) -> (Result<()>, Vec<Partition>) {
        let until = Instant::now() + REAP_WAIT;
        let (mut outcome, mut reaped_in) = (Ok(()), Vec::new());
        let len = log.partitions.len();
        // Another partition comes first each time: a step may take longer than the share of its partition.
        let first = self.look_count % len;
        self.look_count += 1;
        let order = (0..len).map(|place| log.partitions[(first + place) % len]);
        for (partition, left) in order.zip((1..=len).rev()) {
            let share = until.saturating_duration_since(Instant::now()) / left as u32;
            let before = cleaned.batch_count;
            let reaped = self.reap(client, partition, Instant::now() + share, cleaned).await;
            if cleaned.batch_count > before {
                reaped_in.push(partition);
            }
            if let Err(error) = reaped {
                outcome = worse(outcome, log.in_partition(partition, error));
            }
            if self.shutdown.is_cancelled() || client.is_closed() {
                break;
            }
        }
        (outcome, reaped_in)
    }

    async fn reap(
        &mut self,
        client: &mut Client,
        partition: Partition,
        until: Instant,
        cleaned: &mut Cleaned,
    ) -> Result<()> {
        let baseline = self.baselines.remove(&partition);
        let mut baseline = baseline.unwrap_or_else(|| Baseline::new(&self.config, partition, &self.shutdown));
        while !self.shutdown.is_cancelled() {
            if Instant::now() >= until {
                cleaned.is_more_left = true;
                self.baselines.insert(partition, baseline);
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
            counter!("rocket_rides_records_reaped_total", "partition" => partition.to_string())
                .increment(reaped.record_count);
            if reaped == ReapedCounts::default() && Instant::now() < until {
                break;
            }
        }
        Ok(())
    }

    /// Trims the streams of these partitions. While some cannot be trimmed, the others are, and only a warning tells of it. With
    /// `--once` that is an error, and so is a Redis that can trim none.
    async fn trim(&self, client: &Client, log: &Log, partitions: &[Partition], cleaned: &mut Cleaned) -> Result<()> {
        let (trimmed, mut failed) = bounded(async {
            let mut first_retained = Vec::new();
            for partition in partitions {
                let first = pglog::first_retained(client, *partition).await.context("asking what is retained")?;
                first_retained.push((*partition, first));
            }
            let (servers, len_max) = (&self.config.stream.redis_url, self.config.stream_len_max);
            Ok(Streams { servers, stream: &log.stream, first_retained, len_max }.trim().await)
        })
        .await?;
        cleaned.trimmed_count += trimmed.count;
        cleaned.is_more_left |= trimmed.is_more_left;
        failed.sort_by_key(|(partition, _)| *partition);
        let untrimmed = told::list(failed.iter().map(|(partition, _)| *partition));
        let failed_count = failed.len();
        let Some((partition, error)) = failed.into_iter().next() else { return Ok(()) };
        if self.config.once || failed_count == partitions.len() {
            return Err(log.in_partition(partition, error));
        }
        warn!(
            partitions = untrimmed,
            error = format!("{error:#}"),
            "these streams are not trimmed while their server is away"
        );
        Ok(())
    }
}

/// The error to tell of two: one that ends the process comes first.
fn worse(before: Result<()>, error: Error) -> Result<()> {
    match before {
        Err(before) if is_final(&before) || !is_final(&error) => Err(before),
        _ => Err(error),
    }
}

/// Limits a step. Servers limit their own work, so this only strikes if a connection is dead.
async fn bounded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(STEP_WAIT, work).await.with_context(|| format!("no answer within {STEP_WAIT:?}"))?
}
