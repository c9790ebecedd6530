//! Carries the log from Postgres into the Redis Stream.
//!
//! ```text
//! staged_log_records ──assign: offsets, committed──▶ log_batches ──publish: XADD <offset>-<copy>──▶ stream
//! ```
//!
//! There is no "published" flag. The stream's own last id says how far the log is published. The streamer reads it again
//! after every error, and publishes the records beyond it. A killed streamer, a wiped or restored Redis and a pipeline that
//! was cut off in the middle are therefore one case (I6, I7). The order was fixed in Postgres before, so a record that is
//! published again is the same (I2).
//!
//! `leadership` says why a second streamer does no harm.

mod appender;
mod config;
mod cursor;
mod fault;
mod foreign;
mod hints;
mod leader;
mod leadership;
mod metrics;
mod nodes;
mod publish;
mod publisher;
mod question;
mod refusal;
mod share;
mod streamer;
mod work;

use std::time::Duration;

use anyhow::Result;
use common::fault::FaultSource;
use common::shutdown::CancellationToken;
use process::{Injection, Until, repeat_with_faults};
use tracing::info;

pub use config::Config;
pub use fault::Fault;
pub use leader::Step;
pub use publish::Published;
pub use refusal::Refused;
pub use streamer::Streamer;

use work::Publishing;

/// A streamer whose steps do not succeed, or whose Postgres does not answer, for so long is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Leads the partition, or stands by, until `shutdown`; with `--drain`, until nothing is left to publish.
///
/// # Errors
/// Only failures that an operator must look at: Redis refuses for a reason that does not pass by itself, or the tables are
/// damaged. A server that is away is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let faults = FaultSource::new("streamer", &config.fault, config.inject);
    info!(
        stream = ?config.stream,
        fault_rate = config.fault.fault_rate,
        fault_seed = faults.seed(),
        "streamer started"
    );
    let health = monitor::start(&config.process.monitor).await?;
    let (steps, postgres) = (health.pulse("steps", AGE_MAX), health.pulse("postgres", AGE_MAX));
    let last = metrics::start(&health, &config.postgres, postgres);
    let mut publishing = Publishing::new(&config, last);
    process::ready();
    let injection = Injection::new(faults, health.orders());
    repeat_with_faults(&mut publishing, Until::drained(config.drain), &steps, injection, &shutdown).await?;
    info!("streamer stopped");
    Ok(())
}
