//! Folds the log into a state, and commits state and checkpoint together.
//!
//! ```text
//! stream ──XREAD──▶ duplicate? skip · foreign? ignore · gap? heal from Postgres ──▶ fold ──▶ state + checkpoint, one COMMIT
//! ```
//!
//! Delivery is at least once, in any shape: entries come twice, late, from a stream that was wiped or rebuilt, or not at
//! all. Effects happen once because state and checkpoint move in one transaction (I4, I5). The stream is only the fast way.
//! Postgres has every record until all registered consumers have passed it, so a consumer goes on even while Redis is away
//! (I6).
//!
//! A [`Fold`] says what the records do to the state. To write your own, implement it and hand it to [`run`].

mod administer;
mod bootstrap;
mod checkpoint;
mod config;
mod consumer;
mod dead_letter;
mod distance;
mod fault;
mod fold;
mod metrics;
mod outcome;
mod stream_reader;
mod tail;
mod trace;
mod vouch;
mod work;

use std::time::Duration;

use anyhow::Result;
use common::fault::FaultSource;
use common::shutdown::CancellationToken;
use monitor::Health;
use process::{Injection, Until, repeat_with_faults};
use tracing::info;

pub use bootstrap::{BASELINE, copy};
pub use checkpoint::{Counts, unregister};
pub use config::Config;
pub use consumer::Consumer;
pub use dead_letter::{Replay, replay};
pub use distance::DistanceFold;
pub use fault::Fault;
pub use fold::{Fold, Rejection, Update};
pub use outcome::{Interruption, Progress};

use administer::administer;
use work::Folding;

/// A consumer whose steps do not succeed, or which cannot read the stream, for so long is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Folds until `shutdown`; with `--drain`, until the head of the log is reached.
///
/// # Errors
/// Only failures that an operator must look at: records that are reaped, a consumer that was unregistered, damaged tables.
/// A server that is away is waited for.
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
        partition = config.stream.partition.number(),
        fault_rate = config.fault.fault_rate,
        fault_seed = faults.seed(),
        "consumer started"
    );
    let (steps, stream) = (health.pulse("steps", AGE_MAX), health.pulse("stream", AGE_MAX));
    let injection = Injection::new(faults, health.orders());
    let last = health.is_served().then(|| metrics::start(health, &config, health.pulse("postgres", AGE_MAX)));
    let consumer = Consumer::new(&config, fold, shutdown.clone());
    let mut folding = Folding { consumer, stream, last, name: config.name, is_draining: config.drain };
    process::ready();
    repeat_with_faults(&mut folding, Until::drained(config.drain), &steps, injection, &shutdown).await?;
    info!(consumer = folding.name, "consumer stopped");
    Ok(())
}
