//! Folds the log into a state, and commits state and checkpoint together.
//!
//! ```text
//! stream ──XREAD──▶ duplicate? skip · stranger? ignore · gap? heal from Postgres ──▶ fold ──▶ state + checkpoint, one COMMIT
//! ```
//!
//! Delivery is at least once, in any shape: entries come twice, late, from a stream that was wiped or rebuilt, or not at
//! all. Effects happen once because what was folded and how far move in one transaction (I4, I5). The stream is only the
//! fast way: Postgres has every record until all registered consumers have passed it, so a consumer goes on even while
//! Redis is away (I6).
//!
//! What is done with the records is a [`Fold`]. To write your own, implement it and hand it to [`run`].

mod bootstrap;
mod checkpoint;
mod consumer;
mod dead_letter;
mod distance;
mod fold;
mod metrics;
mod outcome;
mod tail;
mod trace;
mod vouch;

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser;
use common::backoff::Backoff;
use common::config::{PostgresArgs, StreamArgs};
use common::fault::{Dice, FaultArgs, Faults, Planned};
use common::shutdown::{CancellationToken, sleep_or_stop, stop_at_last};
use common::telemetry::LogArgs;
use monitor::{Health, MonitorArgs};
use tracing::{info, warn};

pub use bootstrap::{BASELINE, copy};
pub use checkpoint::{Counts, unregister};
pub use consumer::Consumer;
pub use dead_letter::{Replay, replay};
pub use distance::DistanceFold;
pub use fold::{Fold, Rejection, Update};
pub use outcome::{Fault, Interruption, Progress};

/// How long a read waits in Redis for the next entry. Then the consumer looks whether Postgres has more than the stream.
const BLOCK: Duration = Duration::from_secs(1);

/// The pause when the stream holds only entries that are not of this log: the streamer is about to set it aside.
const BLOCKED_WAIT: Duration = Duration::from_millis(200);

/// A consumer that gets nothing done, or nothing from the stream, for so long is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// The longest wait between two attempts while a server is away.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);

/// Folds the log into the total distance of all rides.
#[derive(Debug, Clone, Parser)]
#[command(name = "consumer", version)]
pub struct Config {
    /// Name of this consumer. Its state and its checkpoint are kept under it; run one process a name.
    #[arg(value_parser = parse_name)]
    pub name: String,

    #[command(flatten)]
    /// Where Postgres is.
    pub postgres: PostgresArgs,

    #[command(flatten)]
    /// Where the stream is.
    pub stream: StreamArgs,

    #[command(flatten)]
    /// Injected crashes.
    pub fault: FaultArgs,

    /// For chaos and tests: FAULT:N injects this fault into every batch from the Nth on.
    #[arg(long, hide = true)]
    pub inject: Option<Planned<Fault>>,

    /// Exit with status 0 once nothing is left to read.
    #[arg(long)]
    pub drain: bool,

    /// Register with state, dead letters and checkpoint of another consumer, or of the reaper's "baseline"; then exit.
    #[arg(long, value_name = "OTHER", conflicts_with_all = ["drain", "unregister"])]
    pub copy_from: Option<String>,

    /// Forget this consumer, its state and its dead letters, so that it holds back the reaper no longer; then exit.
    #[arg(long, conflicts_with = "drain")]
    pub unregister: bool,

    #[command(flatten)]
    /// Metrics and health.
    pub monitor: MonitorArgs,

    #[command(flatten)]
    /// What is logged.
    pub log: LogArgs,
}

/// Folds until `shutdown`; with `--drain`, until the head of the log is reached.
///
/// # Errors
/// Only what an operator must look at: records that are reaped, a consumer that was unregistered, damaged tables. A
/// server that is away is waited for.
pub async fn run<F: Fold>(config: Config, fold: F, shutdown: CancellationToken) -> Result<()> {
    let health = monitor::start(&config.monitor).await?;
    run_watched(config, fold, &health, shutdown).await
}

/// The same, for a process that tells of itself already: the consumer is a part of it.
///
/// # Errors
/// As [`run`].
pub async fn run_watched<F: Fold>(config: Config, fold: F, health: &Health, shutdown: CancellationToken) -> Result<()> {
    if config.unregister || config.copy_from.is_some() {
        return administer(&config, &fold).await;
    }
    let mut faults = Faults::new(&config.fault, config.inject);
    info!(
        consumer = config.name,
        stream = ?config.stream,
        partition = config.stream.partition,
        fault_rate = config.fault.fault_rate,
        fault_seed = faults.seed(),
        "consumer started"
    );
    let (steps, stream) = (health.pulse("steps", AGE_MAX), health.pulse("stream", AGE_MAX));
    let orders = health.orders();
    let mark = metrics::start(health, &config);
    let mut consumer = Consumer::new(&config, fold, shutdown.clone());
    common::notify::ready();
    let mut backoff = Backoff::up_to(RETRY_WAIT_MAX);
    let mut fault = faults.draw(by_dice);
    let block = (!config.drain).then_some(BLOCK);
    while !shutdown.is_cancelled() {
        let is_ordered = orders.is_open();
        if is_ordered {
            fault = Fault::CrashBeforeCommit;
        }
        let step = tokio::select! {
            step = consumer.run_once(fault, block) => step,
            () = stop_at_last(&shutdown) => break,
        };
        match step {
            Ok(progress) => {
                backoff.reset();
                steps.beat();
                if consumer.reads_stream() {
                    stream.beat();
                }
                metrics::count(&config.name, &progress);
                if let Some((last_offset, _)) = consumer.state().filter(|_| health.is_served()) {
                    let mut mark = mark.lock().unwrap_or_else(PoisonError::into_inner);
                    if mark.is_none_or(|(before, _)| before != last_offset) {
                        *mark = Some((last_offset, Instant::now()));
                    }
                }
                if progress.record_count() > 0 {
                    log(&config.name, &progress, &consumer);
                    fault = faults.draw(by_dice);
                } else if config.drain && (progress.blocked || progress == Progress::default()) {
                    break;
                } else if progress.blocked {
                    sleep_or_stop(BLOCKED_WAIT, &shutdown).await;
                }
            }
            Err(error) => match error.downcast_ref() {
                Some(interruption @ Interruption::Crash) => {
                    warn!(consumer = config.name, "{interruption}");
                    let name = config.name.clone();
                    monitor::counter!("rocket_rides_crashes_survived_total", "consumer" => name).increment(1);
                    if is_ordered {
                        orders.fill();
                    }
                    fault = faults.draw(by_dice);
                }
                Some(Interruption::Unregistered) => return Err(error),
                _ => {
                    if let Some(way_out) = way_out(&error, &config.name) {
                        return Err(error.context(way_out));
                    }
                    let (wait, error) = (backoff.next_wait(), format!("{error:#}"));
                    warn!(
                        consumer = config.name,
                        error,
                        wait_ms = wait.as_millis() as u64,
                        "step failed, trying again"
                    );
                    sleep_or_stop(wait, &shutdown).await;
                }
            },
        }
    }
    info!(consumer = config.name, "consumer stopped");
    Ok(())
}

fn by_dice(dice: &mut Dice) -> Fault {
    if dice.strikes() { Fault::CrashBeforeCommit } else { Fault::None }
}

fn log<F: Fold>(name: &str, progress: &Progress, consumer: &Consumer<F>) {
    let Some((last_offset, fold)) = consumer.state() else { return };
    info!(
        consumer = name,
        last_offset,
        applied_count = progress.applied_count,
        duplicate_count = progress.duplicate_count,
        healed_count = progress.healed_count,
        dead_letter_count = progress.dead_letter_count,
        "batch committed {}",
        fold.summary()
    );
}

/// For errors that waiting does not mend: what to do.
fn way_out(error: &anyhow::Error, name: &str) -> Option<String> {
    match error.downcast_ref()? {
        pglog::Error::Reaped { .. } => Some(format!(
            "consumer {name} needs records that are gone: run `consumer {name} --unregister`, then \
             `consumer {name} --copy-from OTHER` with a consumer of the same fold that is further on, or with baseline"
        )),
        pglog::Error::RowsMissing { .. } => {
            Some("staged_log_records were deleted by hand: restore them from a backup".to_owned())
        }
        error if error.is_final() => Some("the log cannot be read".to_owned()),
        _ => None,
    }
}

async fn administer<F: Fold>(config: &Config, fold: &F) -> Result<()> {
    let name = &config.name;
    let mut client = common::postgres::connect(&config.postgres.database_url, "consumer", || {}).await?;
    if let Some(source) = &config.copy_from {
        let last_offset = copy(&mut client, fold, source, name, config.stream.partition).await?;
        println!("consumer {name} starts with the state of {source} at offset {last_offset}");
    } else {
        unregister(&client, name, config.stream.partition).await?;
        println!("consumer {name} is unregistered");
    }
    Ok(())
}

fn parse_name(text: &str) -> Result<String> {
    if !(1..=100).contains(&text.chars().count()) {
        bail!("give a name of 1 to 100 characters, for example consumer0");
    }
    if text == BASELINE {
        bail!("the reaper keeps its own state under this name: choose another, for example consumer0");
    }
    Ok(text.to_owned())
}
