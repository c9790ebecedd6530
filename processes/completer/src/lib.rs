//! Finishes bookings that clients have left unfinished, by the same code as the api. Any number of completers share the work.

use std::time::Duration;

use anyhow::Result;
use booking::{BookingArgs, Completion, Desk, Patience, SIDE_BY_SIDE_MAX, Unfinished};
use clap::Parser;
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use monitor::{counter, declare_counter};
use process::{Failure, ProcessArgs, Turn, Until, Work};
use tracing::{error, info, warn};

/// Requests per round.
const ROUND_LEN_MAX: usize = 5;

/// Connections: each booking holds one, and one more takes bookings.
const POOL_LEN: usize = SIDE_BY_SIDE_MAX + 1;

/// The completer is not ready if Postgres has been silent for this long.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Succeeds only while requests can be taken, and changes no row.
const TRY_TO_LEASE: &str = "-- completer::try_to_lease
    UPDATE completions SET next_attempt_at = next_attempt_at WHERE false";

/// Finishes what clients have left unfinished.
#[derive(Debug, Clone, Parser)]
// The api has the same flag and does without.
#[command(name = "completer", version, mut_arg("stripe_api_key", |key| key.required(true)))]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// The payment processor, and how long a booking may take.
    #[command(flatten)]
    pub booking: BookingArgs,

    /// Requests younger than this are left alone: until then the client may send its request again.
    #[arg(long, env = "COMPLETER_AGE_MIN", default_value = "5m", value_parser = humantime::parse_duration)]
    pub age_min: Duration,

    /// Requests that were tried less than this long ago are left alone.
    #[arg(long, env = "COMPLETER_IDLE_MIN", default_value = "1m", value_parser = humantime::parse_duration)]
    pub idle_min: Duration,

    /// The pause after a first attempt that failed. It doubles with each attempt, up to 32 times this pause.
    #[arg(long, env = "COMPLETER_RETRY_WAIT", default_value = "1m", value_parser = humantime::parse_duration)]
    pub retry_wait: Duration,

    /// How often to look.
    #[arg(long, env = "COMPLETER_INTERVAL", default_value = "5s", value_parser = humantime::parse_duration)]
    pub interval: Duration,

    /// Look once, and exit.
    #[arg(long)]
    pub once: bool,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl Config {
    /// Which requests are left alone, and for how long.
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
/// No payment processor is set up; with `--once`, any failure. A server that is away is waited for.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let pool = connect::postgres::pool(&config.postgres.database_url, "completer", POOL_LEN)?;
    let desk = config.booking.desk(pool)?;
    info!(age_min = ?config.age_min, idle_min = ?config.idle_min, "completer started");
    let health = monitor::start(&config.process.monitor).await?;
    let rounds = health.pulse("rounds", config.interval + config.booking.claim_wait * 2);
    health.ask_postgres(&config.postgres.database_url, health.pulse("postgres", AGE_MAX), |client| {
        Box::pin(async {
            monitor::try_statements(client, &booking::TRIAL).await?;
            monitor::try_statements(client, &[TRY_TO_LEASE]).await
        })
    });
    booking::describe_metrics();
    Unfinished::describe();
    declare_counter("rocket_rides_requests_completed_total", "Requests of absent clients that were finished", &[]);
    declare_counter("rocket_rides_completions_failed_total", "Requests that are tried again later", &[]);
    process::ready();
    let mut completing = Completing { desk, patience: config.patience(), interval: config.interval };
    process::repeat(&mut completing, Until::once(config.once), &rounds, &shutdown).await?;
    info!("completer stopped");
    Ok(())
}

/// The unit of work that the process skeleton repeats. A stop waits for the end of the round: a booking that is cut off would
/// have to wait until its claim runs out.
struct Completing {
    desk: Desk,
    patience: Patience,
    interval: Duration,
}

impl Work for Completing {
    type Fault = ();

    const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let completion = booking::complete(&self.desk, &self.patience, ROUND_LEN_MAX).await?;
        log(&completion);
        booking::unfinished(&self.desk).await?.record();
        counter!("rocket_rides_requests_completed_total").increment(completion.replies.len() as u64);
        counter!("rocket_rides_completions_failed_total").increment(completion.errors.len() as u64);
        let is_full = completion.replies.len() + completion.errors.len() == ROUND_LEN_MAX;
        Ok(Turn::done().pausing(if is_full { Duration::ZERO } else { self.interval }))
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "cannot look for requests, trying again");
    }
}

fn log(completion: &Completion) {
    for reply in &completion.replies {
        info!("API call completed: status={}", reply.status);
    }
    for error in &completion.errors {
        if error.is_refusal() {
            error!("API call failed, and an operator has to look: {}", error.explain());
        } else {
            warn!("API call failed: {}", error.explain());
        }
    }
}
