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

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use common::fault::{FaultArgs, FaultSource, Planned};
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use metrics::LastCommit;
use monitor::{Health, Pulse};
use process::{Failure, Injection, ProcessArgs, Turn, Until, Work, repeat_with_faults};
use stream::StreamArgs;
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

/// Folds the log into the total distance of all rides.
#[derive(Debug, Clone, Parser)]
#[command(name = "consumer", version)]
pub struct Config {
    /// Name of this consumer. Its state and its checkpoint are kept under it; run one process a name.
    #[arg(value_parser = parse_name)]
    pub name: String,

    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Injected crashes.
    #[command(flatten)]
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

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Folds until `shutdown`; with `--drain`, until the head of the log is reached.
///
/// # Errors
/// Only what an operator must look at: records that are reaped, a consumer that was unregistered, damaged tables. A
/// server that is away is waited for.
pub async fn run<F: Fold>(config: Config, fold: F, shutdown: CancellationToken) -> Result<()> {
    let health = monitor::start(&config.process.monitor).await?;
    run_watched(config, fold, &health, shutdown).await
}

/// [`run`] with the distance fold: the process `consumer`.
///
/// # Errors
/// As [`run`].
pub async fn run_distance(config: Config, shutdown: CancellationToken) -> Result<()> {
    run(config, DistanceFold::default(), shutdown).await
}

/// As [`run`], for a consumer that is a part of a process with metrics and health of its own.
///
/// # Errors
/// As [`run`].
pub async fn run_watched<F: Fold>(config: Config, fold: F, health: &Health, shutdown: CancellationToken) -> Result<()> {
    if config.unregister || config.copy_from.is_some() {
        return administer(&config, &fold).await;
    }
    let faults = FaultSource::new(&config.fault, config.inject);
    info!(
        consumer = config.name,
        stream = ?config.stream,
        partition = config.stream.partition,
        fault_rate = config.fault.fault_rate,
        fault_seed = faults.seed(),
        "consumer started"
    );
    let (steps, stream) = (health.pulse("steps", AGE_MAX), health.pulse("stream", AGE_MAX));
    let injection = Injection::new(faults, health.orders());
    let last = health.is_served().then(|| metrics::start(health, &config));
    let consumer = Consumer::new(&config, fold, shutdown.clone());
    let mut folding = Folding { consumer, stream, last, name: config.name, is_draining: config.drain };
    process::ready();
    repeat_with_faults(&mut folding, Until::drained(config.drain), &steps, injection, &shutdown).await?;
    info!(consumer = folding.name, "consumer stopped");
    Ok(())
}

/// The consumer as the skeleton repeats it.
struct Folding<F: Fold> {
    consumer: Consumer<F>,
    /// Beats while the stream can be read.
    stream: Pulse,
    /// `None`: no metrics are served.
    last: Option<LastCommit>,
    name: String,
    is_draining: bool,
}

impl<F: Fold> Work for Folding<F> {
    type Fault = Fault;

    async fn run_once(&mut self, fault: Fault) -> Result<Turn, Failure> {
        let block = (!self.is_draining).then_some(BLOCK);
        let progress = match self.consumer.run_once(fault, block).await {
            Ok(progress) => progress,
            Err(error) if matches!(error.downcast_ref(), Some(Interruption::Crash)) => return Ok(self.survive(&error)),
            Err(error) => return Err(judge(error, &self.name)),
        };
        if self.consumer.reads_stream() {
            self.stream.beat();
        }
        metrics::count(&self.name, &progress);
        if let (Some(last), Some((last_offset, _))) = (&self.last, self.consumer.state()) {
            metrics::committed(last, last_offset);
        }
        if progress.record_count() > 0 {
            log(&self.name, &progress, &self.consumer);
            Ok(Turn::done())
        } else if progress.blocked {
            Ok(Turn::idle().pausing(BLOCKED_WAIT))
        } else if progress == Progress::default() {
            Ok(Turn::idle())
        } else {
            Ok(Turn::waiting())
        }
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(consumer = self.name, error, wait_ms = wait.as_millis() as u64, "step failed, trying again");
    }
}

impl<F: Fold> Folding<F> {
    /// The simulated crash is over, and the next unit starts from the last commit.
    fn survive(&self, crash: &anyhow::Error) -> Turn {
        warn!(consumer = self.name, "{crash}");
        monitor::counter!("rocket_rides_crashes_survived_total", "consumer" => self.name.clone()).increment(1);
        Turn::done()
    }
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

/// Waiting does not mend some errors: those end the consumer, with advice.
fn judge(error: anyhow::Error, name: &str) -> Failure {
    if matches!(error.downcast_ref(), Some(Interruption::Unregistered)) {
        return Failure::Final(error);
    }
    let advice = match error.downcast_ref() {
        Some(pglog::Error::Reaped { .. }) => format!(
            "consumer {name} needs records that are gone: run `consumer {name} --unregister`, then \
             `consumer {name} --copy-from OTHER` with a consumer of the same fold that is further on, or with baseline"
        ),
        Some(pglog::Error::RowsMissing { .. }) => {
            "staged_log_records were deleted by hand: restore them from a backup".to_owned()
        }
        Some(error) if error.is_final() => "the log cannot be read".to_owned(),
        _ => return Failure::Passing(error),
    };
    Failure::Final(error.context(advice))
}

async fn administer<F: Fold>(config: &Config, fold: &F) -> Result<()> {
    let name = &config.name;
    let mut client = connect::postgres::connect(&config.postgres.database_url, "consumer", || {}).await?;
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
