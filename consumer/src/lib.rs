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
//! A fold says what the records lead to. It is of one of three kinds: a [`StateFold`] has one small state, a [`RowFold`] writes
//! rows, and a [`ModelFold`] keeps a model outside of Postgres. The first two are pure. To write your own, implement one of the
//! traits, list it in a [`Registry`], and hand that to [`run`].

mod administer;
mod advice;
mod bootstrap;
mod checkpoint;
mod config;
mod consumer;
mod dead_letter;
mod fault;
mod fold;
mod folds;
mod home;
mod kind;
mod letters;
mod metrics;
mod other_fold;
mod outcome;
mod own_rows;
mod place;
mod registry;
mod stream_reader;
mod tail;
mod trace;
mod vouch;
mod work;

use std::time::Duration;

use anyhow::Result;
use common::fault::FaultSource;
use common::shutdown::CancellationToken;
use common::stay_down::StayDown;
use monitor::Health;
use process::{Injection, Until, repeat_with_faults};
use tracing::info;

pub use bootstrap::{Start, copy};
pub use checkpoint::{Counts, unregister};
pub use config::{Config, OwnConfig};
pub use consumer::Consumer;
pub use dead_letter::{Replay, replay};
pub use fault::Fault;
pub use fold::{
    CheckpointKey, FoldId, LogPlace, ModelFold, PageEnd, Rejection, RowFold, RowsOf, STATE_LEN_MAX, StateFold,
    Statement, read_object,
};
pub use folds::{DistanceFold, FOLDS, HistoryFold, ReceiptsFold, WalletsFold};
pub use home::{HOME_SCHEMA, apply_home_schema};
pub use kind::{Fold, Kind, Model, ModelWork, Rows, State};
pub use other_fold::OtherFold;
pub use outcome::{Interruption, Progress};
pub use registry::{NewFold, Registry, model_fold, row_fold, state_fold};

use administer::administer;
pub use advice::Whose;
use work::Folding;

/// A consumer whose steps do not succeed, or which cannot read the stream, for so long is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Folds with the fold of `registry` that `--fold` names until `shutdown`; with `--drain`, until the head of the log is
/// reached.
///
/// # Errors
/// Only failures that an operator must look at: records that are reaped, a consumer that was unregistered, damaged tables.
/// A server that is away is waited for.
pub async fn run(config: Config, registry: Registry, shutdown: CancellationToken) -> Result<()> {
    if config.administers() {
        // Beside the consumer itself, which may run and serve the monitor's port.
        return administer(&config, &registry).await.map(drop);
    }
    let health = monitor::start(&config.process.monitor).await?;
    run_watched(config, registry, &health, shutdown).await
}

/// [`run`] with the folds of this project, the one with a model included: the process `consumer`.
///
/// # Errors
/// As [`run`].
pub async fn run_own(config: OwnConfig, shutdown: CancellationToken) -> Result<()> {
    let OwnConfig { consumer: config, wallets } = config;
    if config.administers() {
        if administer(&config, &FOLDS).await?.as_deref() == Some(WalletsFold::ID.name) {
            WalletsFold::end_model(&wallets, &config.stream).await?;
        }
        return Ok(());
    }
    let health = monitor::start(&config.process.monitor).await?;
    let mut fold = config.fold(&FOLDS).map_err(StayDown)?;
    if fold.id() == WalletsFold::ID {
        let opened = WalletsFold::with_model(&wallets, &config.postgres, &config.stream, &health).map_err(StayDown)?;
        fold = Box::new(Model(opened));
    }
    run_fold(config, fold, &health, shutdown).await
}

/// As [`run`], for a consumer that is a part of a process with metrics and health of its own. It does not change a registration
/// and exit: a process asks [`Config::administers`], and then calls [`run`].
///
/// # Errors
/// As [`run`].
pub async fn run_watched(
    config: Config,
    registry: Registry,
    health: &Health,
    shutdown: CancellationToken,
) -> Result<()> {
    let fold = config.fold(&registry).map_err(StayDown)?;
    run_fold(config, fold, health, shutdown).await
}

async fn run_fold(config: Config, fold: Box<dyn Fold>, health: &Health, shutdown: CancellationToken) -> Result<()> {
    let faults = FaultSource::new(&config.name, &config.fault, config.inject);
    info!(
        consumer = config.name,
        fold = %fold.id(),
        stream = ?config.stream,
        partitions = %config.stream.partitions,
        fault_rate = config.fault.fault_rate,
        fault_seed = faults.seed(),
        "consumer started"
    );
    let (steps, stream) = (health.pulse("steps", AGE_MAX), health.pulse("stream", AGE_MAX));
    let injection = Injection::new(faults, health.orders());
    let last = health.is_served().then(|| metrics::start(health, &config, health.pulse("postgres", AGE_MAX)));
    let consumer = Consumer::new(&config, fold, shutdown.clone());
    let whose = Whose { name: config.name, partitions: config.stream.partitions };
    let mut folding = Folding { consumer, stream, last, whose, is_draining: config.drain };
    process::ready();
    repeat_with_faults(&mut folding, Until::drained(config.drain), &steps, injection, &shutdown).await?;
    info!(consumer = folding.whose.name, "consumer stopped");
    Ok(())
}
