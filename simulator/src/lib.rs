//! Traffic for the api: calm by default, so that people can watch; as much as the machine gives on request.
//!
//! The simulator is a client like any other. It knows the api by its HTTP interface only.

mod booked;
mod config;
mod ride;
mod summary;
mod traffic;

use std::time::Duration;

use anyhow::{Context, Result};
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use monitor::describe_counter;
use tracing::{debug, info};

pub use booked::Booking;
pub use config::{Config, Rate};
pub use ride::run_once;
pub use summary::Summary;

use traffic::Traffic;

/// How long one response may take.
const RESPONSE_WAIT: Duration = Duration::from_secs(10);

/// The longest wait between two looks whether the api is ready.
const READY_WAIT_MAX: Duration = Duration::from_secs(1);

/// [`run`], and then the summary on standard output: the process `simulator`.
///
/// # Errors
/// As [`run`].
pub async fn run_and_print(config: Config, shutdown: CancellationToken) -> Result<()> {
    println!("{}", run(config, shutdown).await?);
    Ok(())
}

/// Waits until the api is ready, and posts rides until the count, the duration or `shutdown` is reached.
///
/// # Errors
/// The process could not be set up. An api that is away is waited for, and its refusals are counted.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<Summary> {
    let seed = config.seed.unwrap_or_else(rand::random);
    let base_url = format!("http://127.0.0.1:{}", config.api_port);
    info!(base_url, seed, "simulator started");
    monitor::start(&config.process.monitor).await?;
    describe_counter!("rocket_rides_answers_total", "Answers to guests, by status; 0: there was none");
    let client = reqwest::Client::builder().timeout(RESPONSE_WAIT).build().context("setting up the HTTP client")?;
    wait_until_ready(&client, &base_url, &shutdown).await;
    let stop = shutdown.child_token();
    if let Some(duration) = config.duration {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            stop.cancel();
        });
    }
    Traffic::new(&config, client, format!("{base_url}/rides"), stop).run(config.concurrency, seed).await
}

async fn wait_until_ready(client: &reqwest::Client, base_url: &str, shutdown: &CancellationToken) {
    let mut backoff = Backoff::up_to(READY_WAIT_MAX);
    while !shutdown.is_cancelled() {
        match client.get(format!("{base_url}/healthz")).send().await {
            Ok(response) if response.status().is_success() => return,
            Ok(response) => debug!(status = response.status().as_u16(), "the api is not ready"),
            Err(error) => debug!(%error, "the api is not there yet"),
        }
        sleep_or_stop(backoff.next_wait(), shutdown).await;
    }
}
