//! Carries the log from Postgres into the Redis Stream.
//!
//! ```text
//! staged_log_records ──assign: offsets, committed──▶ log_batches ──publish: XADD <offset>-<copy>──▶ stream
//! ```
//!
//! There is no "published" flag. What is published is the stream's own last id, read again after every doubt; what is
//! missing beyond it is published. So a killed streamer, a wiped or restored Redis and a pipeline cut in the middle are
//! one case (I6, I7). The order was fixed in Postgres before: publishing again publishes the same (I2).

mod foreign;
mod leadership;
mod metrics;
mod publish;
mod streamer;

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use common::backoff::Backoff;
use common::config::{PostgresArgs, StreamArgs};
use common::fault::{Dice, FaultArgs, Faults, Planned};
use common::shutdown::{CancellationToken, sleep_or_stop, stop_at_last};
use common::telemetry::LogArgs;
use monitor::MonitorArgs;
use tracing::{info, warn};

pub use publish::{Fault, Refused};
pub use streamer::{Published, Step, Streamer};

/// How long an idle leader waits for a hint before it looks at the table by itself. It bounds the delay of records that
/// are staged by clients which send no hint. Looking costs two index probes.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// How often a streamer that stands by asks for the leadership: the length of the pause when a leader dies.
const STANDBY_WAIT: Duration = Duration::from_millis(500);

/// The longest wait between two attempts while a server is away.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);

/// A streamer that gets nothing done for so long is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Fixes the order of staged records and appends them to the Redis Stream.
#[derive(Debug, Clone, Parser)]
#[command(name = "streamer", version)]
pub struct Config {
    #[command(flatten)]
    /// Where Postgres is.
    pub postgres: PostgresArgs,

    #[command(flatten)]
    /// Where the stream is.
    pub stream: StreamArgs,

    #[command(flatten)]
    /// Injected double-sends.
    pub fault: FaultArgs,

    /// For chaos and tests: FAULT:N injects this fault into every batch from the Nth on.
    #[arg(long, hide = true)]
    pub inject: Option<Planned<Fault>>,

    /// For chaos and tests: publish without asking whether another streamer leads.
    #[arg(long, hide = true)]
    pub lead_without_lock: bool,

    /// Exit with status 0 once nothing is left to publish.
    #[arg(long)]
    pub drain: bool,

    #[command(flatten)]
    /// Metrics and health.
    pub monitor: MonitorArgs,

    #[command(flatten)]
    /// What is logged.
    pub log: LogArgs,
}

/// Leads the partition, or stands by, until `shutdown`; with `--drain`, until nothing is left to publish.
///
/// # Errors
/// Only what an operator must look at: Redis refuses for a reason that waiting does not mend, or the tables are damaged.
/// A server that is away is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let mut faults = Faults::new(&config.fault, config.inject);
    info!(
        stream = ?config.stream,
        partition = config.stream.partition,
        fault_rate = config.fault.fault_rate,
        fault_seed = faults.seed(),
        "streamer started"
    );
    let health = monitor::start(&config.monitor).await?;
    let (steps, orders) = (health.pulse("steps", AGE_MAX), health.orders());
    let mark = metrics::start(&health, &config.postgres, &config.stream);
    let mut streamer = Streamer::new(&config);
    common::notify::ready();
    let mut backoff = Backoff::up_to(RETRY_WAIT_MAX);
    let mut stood_by = false;
    let mut fault = faults.draw(by_dice);
    while !shutdown.is_cancelled() {
        let is_ordered = orders.is_open();
        if is_ordered {
            fault = Fault::SendTwice;
        }
        let step = tokio::select! {
            step = streamer.run_once(fault) => step,
            () = stop_at_last(&shutdown) => break,
        };
        if let Ok(step) = &step {
            steps.beat();
            metrics::leads(!matches!(step, Step::StandingBy), &mark);
        }
        let go_on = match step {
            Ok(Step::Published(published)) => {
                log(&published, fault);
                metrics::count(&published, fault != Fault::None);
                if is_ordered {
                    orders.fill();
                }
                *mark.lock().unwrap_or_else(PoisonError::into_inner) = Some((published.last_offset(), Instant::now()));
                (fault, stood_by) = (faults.draw(by_dice), false);
                backoff.reset();
                // Who stages while we publish sends a hint, which is not lost: it need not be looked for.
                config.drain || streamer.is_behind_head() || wait_for_more(&streamer, &shutdown).await
            }
            Ok(Step::Idle) if config.drain => break,
            Ok(Step::Idle) => {
                stood_by = false;
                backoff.reset();
                wait_for_more(&streamer, &shutdown).await
            }
            Ok(Step::StandingBy) => {
                if !stood_by {
                    info!(partition = config.stream.partition, "standing by: another streamer leads");
                }
                stood_by = true;
                if config.drain && streamer.nothing_left().await {
                    break;
                }
                sleep_or_stop(STANDBY_WAIT, &shutdown).await
            }
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                let wait = backoff.next_wait();
                warn!(
                    error = format!("{error:#}"),
                    wait_ms = wait.as_millis() as u64,
                    "publishing failed, trying again"
                );
                sleep_or_stop(wait, &shutdown).await
            }
        };
        if !go_on {
            break;
        }
    }
    info!("streamer stopped");
    Ok(())
}

/// Returns when there may be more to do; `false` on shutdown.
async fn wait_for_more(streamer: &Streamer, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = streamer.hinted() => true,
        go_on = sleep_or_stop(IDLE_WAIT, shutdown) => go_on,
    }
}

fn by_dice(dice: &mut Dice) -> Fault {
    match dice.strikes() {
        false => Fault::None,
        true if dice.coin() => Fault::SendTwice,
        true => Fault::ResendBatch,
    }
}

fn log(published: &Published, fault: Fault) {
    let first_offset = published.first_offset;
    info!(
        first_offset,
        last_offset = published.last_offset(),
        record_count = published.record_count,
        added_count = published.added_count,
        refused_count = published.refused_count,
        elapsed_ms = published.elapsed.as_millis() as u64,
        "batch published"
    );
    match fault {
        Fault::SendTwice => info!(first_offset, "double-send injected: every record was added twice"),
        Fault::ResendBatch => info!(first_offset, "double-send injected: the whole batch was sent again"),
        // A process that was told to die and lives on did not come by the place yet.
        Fault::None | Fault::DieAfterAssign | Fault::DieMidPipeline | Fault::DieAfterPublish => {}
    }
}

/// Whether waiting cannot help.
fn is_final(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some() || error.downcast_ref().is_some_and(pglog::Error::is_final)
}
