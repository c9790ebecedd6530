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

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use common::fault::{FaultArgs, Faults, Planned};
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use process::{Failure, Injection, ProcessArgs, Turn, Until, Work, repeat_with_faults};
use stream::StreamArgs;
use tracing::{info, warn};

use metrics::LastPublished;
pub use publish::{Fault, Refused};
pub use streamer::{Published, Step, Streamer};

/// How long an idle leader waits for a hint before it looks at the table by itself. It bounds the delay of records that
/// are staged by clients which send no hint. Looking costs two index probes.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// How often a streamer that stands by asks for the leadership: the length of the pause when a leader dies.
const STANDBY_WAIT: Duration = Duration::from_millis(500);

/// A streamer that gets nothing done for so long is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Fixes the order of staged records and appends them to the Redis Stream.
#[derive(Debug, Clone, Parser)]
#[command(name = "streamer", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Injected double-sends.
    #[command(flatten)]
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

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Leads the partition, or stands by, until `shutdown`; with `--drain`, until nothing is left to publish.
///
/// # Errors
/// Only failures that an operator must look at: Redis refuses for a reason that waiting does not mend, or the tables are
/// damaged. A server that is away is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let faults = Faults::new(&config.fault, config.inject);
    info!(
        stream = ?config.stream,
        partition = config.stream.partition,
        fault_rate = config.fault.fault_rate,
        fault_seed = faults.seed(),
        "streamer started"
    );
    let health = monitor::start(&config.process.monitor).await?;
    let steps = health.pulse("steps", AGE_MAX);
    let mut publishing = Publishing {
        streamer: Streamer::new(&config),
        last: metrics::start(&health, &config.postgres, &config.stream),
        partition: config.stream.partition,
        is_draining: config.drain,
        stands_by: false,
    };
    process::ready();
    let injection = Injection::new(faults, health.orders());
    repeat_with_faults(&mut publishing, Until::drained(config.drain), &steps, injection, &shutdown).await?;
    info!("streamer stopped");
    Ok(())
}

/// The streamer as the skeleton repeats it.
struct Publishing {
    streamer: Streamer,
    last: LastPublished,
    partition: i32,
    is_draining: bool,
    stands_by: bool,
}

impl Work for Publishing {
    type Fault = Fault;

    async fn run_once(&mut self, fault: Fault) -> Result<Turn, Failure> {
        let step = self.streamer.run_once(fault).await.map_err(judge)?;
        metrics::leads(!matches!(step, Step::StandingBy), &self.last);
        match step {
            Step::Published(published) => {
                log(&published, fault);
                metrics::count(&published, fault != Fault::None, &self.last);
                self.stands_by = false;
                // A process that stages while we publish sends a hint, which is not lost: there is no need to look at once.
                let goes_on = self.is_draining || self.streamer.is_behind_head();
                Ok(Turn::done().pausing(if goes_on { Duration::ZERO } else { IDLE_WAIT }))
            }
            Step::Idle => {
                self.stands_by = false;
                Ok(Turn::idle().pausing(IDLE_WAIT))
            }
            Step::StandingBy => {
                if !self.stands_by {
                    info!(partition = self.partition, "standing by: another streamer leads");
                }
                self.stands_by = true;
                let is_done = self.is_draining && self.streamer.nothing_left().await;
                Ok(if is_done { Turn::idle() } else { Turn::waiting().pausing(STANDBY_WAIT) })
            }
        }
    }

    /// A hint ends the leader's pause. A streamer that stands by asks for the leadership at its own pace.
    async fn woken(&self) {
        if self.stands_by { std::future::pending().await } else { self.streamer.hinted().await }
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "publishing failed, trying again");
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

/// Waiting does not mend a refusal or a damaged table.
fn judge(error: anyhow::Error) -> Failure {
    if error.is::<Refused>() || error.downcast_ref().is_some_and(pglog::Error::is_final) {
        Failure::Final(error)
    } else {
        Failure::Passing(error)
    }
}
