//! Brings bookings to their ends that clients have left unfinished, through the code by which the api books. Any number of
//! completers share the work.

use std::time::Duration;

use anyhow::Result;
use booking::{BookingArgs, Completion, Patience};
use clap::Parser;
use common::backoff::Backoff;
use common::config::PostgresArgs;
use common::shutdown::{CancellationToken, sleep_or_stop, stop_at_last};
use common::telemetry::LogArgs;
use monitor::{MonitorArgs, counter, declare_counter};
use tracing::{info, warn};

/// Requests a round. Few, because they are taken together and worked one after another: the last one's next attempt must not
/// be due before its turn.
const ROUND_LEN_MAX: i64 = 5;

/// The longest wait between two rounds while Postgres is away.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// Connections: a booking has one in hand, and requests are brought to their ends one after another.
const POOL_LEN: usize = 2;

/// A completer to which Postgres is silent for so long is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Finishes what clients have left unfinished.
#[derive(Debug, Clone, Parser)]
#[command(name = "completer", version)]
pub struct Config {
    #[command(flatten)]
    /// Where Postgres is.
    pub postgres: PostgresArgs,

    #[command(flatten)]
    /// Who charges, and how long that may take.
    pub booking: BookingArgs,

    /// How old a request is before it is looked at: until then its client may send it again.
    #[arg(long, env = "COMPLETER_AGE_MIN", default_value = "5m", value_parser = humantime::parse_duration)]
    pub age_min: Duration,

    /// How long nobody has tried it.
    #[arg(long, env = "COMPLETER_IDLE_MIN", default_value = "1m", value_parser = humantime::parse_duration)]
    pub idle_min: Duration,

    /// The pause after a first attempt that failed; it doubles with each, up to 32 of it.
    #[arg(long, env = "COMPLETER_RETRY_WAIT", default_value = "1m", value_parser = humantime::parse_duration)]
    pub retry_wait: Duration,

    /// How often to look.
    #[arg(long, env = "COMPLETER_INTERVAL", default_value = "5s", value_parser = humantime::parse_duration)]
    pub interval: Duration,

    /// Look once, and exit.
    #[arg(long)]
    pub once: bool,

    #[command(flatten)]
    /// Metrics and health.
    pub monitor: MonitorArgs,

    #[command(flatten)]
    /// What is logged.
    pub log: LogArgs,
}

impl Config {
    /// What is left alone, and for how long.
    pub fn patience(&self) -> Patience {
        Patience {
            age_min: self.age_min,
            idle_min: self.idle_min,
            retry_wait: self.retry_wait,
            retry_wait_max: self.retry_wait * 32,
        }
    }
}

/// Looks every `interval` until `shutdown`; with `--once`, once.
///
/// # Errors
/// No payment processor is set up; with `--once`, whatever went wrong. A server that is away is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let pool = common::postgres::pool(&config.postgres.database_url, "completer", POOL_LEN)?;
    let desk = config.booking.desk(pool)?;
    info!(age_min = ?config.age_min, idle_min = ?config.idle_min, "completer started");
    let health = monitor::start(&config.monitor).await?;
    let rounds = health.pulse("rounds", config.interval + config.booking.claim_wait * ROUND_LEN_MAX as u32);
    health.ask_postgres(&config.postgres.database_url, health.pulse("postgres", AGE_MAX), monitor::anything);
    declare_counter(
        "rocket_rides_requests_completed_total",
        "Requests of absent clients that were brought to an end",
        &[],
    );
    declare_counter("rocket_rides_completions_failed_total", "Requests that are tried again later", &[]);
    let patience = config.patience();
    common::notify::ready();
    let mut backoff = Backoff::up_to(RETRY_WAIT_MAX);
    while !shutdown.is_cancelled() {
        // A booking that is cut off has to wait for its claim to run out: so not at once, when told to stop.
        let round = tokio::select! {
            round = booking::complete(&desk, &patience, ROUND_LEN_MAX) => round,
            () = stop_at_last(&shutdown) => break,
        };
        let wait = match round {
            Ok(completion) => {
                backoff.reset();
                rounds.beat();
                log(&completion);
                counter!("rocket_rides_requests_completed_total").increment(completion.replies.len() as u64);
                counter!("rocket_rides_completions_failed_total").increment(completion.errors.len() as u64);
                let is_full = completion.replies.len() + completion.errors.len() == ROUND_LEN_MAX as usize;
                if is_full { Duration::ZERO } else { config.interval }
            }
            Err(error) if config.once => return Err(error.into()),
            Err(error) => {
                let wait = backoff.next_wait();
                warn!(
                    error = error.explain(),
                    wait_ms = wait.as_millis() as u64,
                    "cannot look for requests, trying again"
                );
                wait
            }
        };
        if config.once || !sleep_or_stop(wait, &shutdown).await {
            break;
        }
    }
    info!("completer stopped");
    Ok(())
}

fn log(completion: &Completion) {
    for reply in &completion.replies {
        info!("API call completed: status={}", reply.status);
    }
    for error in &completion.errors {
        warn!("API call failed: {}", error.explain());
    }
}
