//! Traffic for the api: calm by default, so that people can watch; as much as the machine gives on request.
//!
//! The simulator is a client like any other. It knows the api and the container by their HTTP interfaces only.

mod booked;
mod config;
mod end;
mod manifest;
mod manifests;
mod meter;
mod ride;
mod summary;
mod traffic;
mod wallet_command;
mod wallets;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use monitor::describe_counter;
use reqwest::StatusCode;
use tracing::info;

pub use booked::Booking;
pub use config::{Config, Rate};
pub use manifest::Manifest;
pub use manifests::Manifests;
pub use ride::run_once;
pub use summary::{Report, Summary};
pub use wallet_command::WalletCommand;

use end::End;
use manifests::Filing;
use traffic::Traffic;
use wallets::WalletTraffic;

/// How long one response may take.
const RESPONSE_WAIT: Duration = Duration::from_secs(10);

/// How often a wait for the api is told.
const TOLD_EVERY: Duration = Duration::from_secs(10);

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

/// Waits until the api is ready, and sends requests until the count, the duration or `shutdown` is reached.
///
/// # Errors
/// The process could not be set up. An api that is away is waited for, and its refusals are counted.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<Report> {
    let seed = config.seed.unwrap_or_else(rand::random);
    let base_url = config.base_url();
    info!(base_url, seed, "simulator started");
    monitor::start(&config.process.monitor).await?;
    describe_counter!("rocket_rides_answers_total", "Answers to guests, by status; 0: there was none");
    // A proxy of the shell is for other work; it would also be asked for the api on this machine.
    let client = reqwest::Client::builder().timeout(RESPONSE_WAIT).no_proxy().build();
    let client = client.context("setting up the HTTP client")?;
    let api = Service { name: "api", base_url: &base_url, probe: "/healthz", ready: StatusCode::OK };
    api.wait_until_ready(&client, &shutdown).await;
    if config.manifests > 0.0 {
        // There is no such unit. The container knows that if it reaches Postgres.
        let base_url = &config.container_url();
        let container = Service { name: "container", base_url, probe: "/units/0", ready: StatusCode::NOT_FOUND };
        container.wait_until_ready(&client, &shutdown).await;
    }
    let stop = shutdown.child_token();
    if let Some(duration) = config.duration {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            stop.cancel();
        });
    }
    let filing = Filing::new(&config, client.clone(), seed, stop.clone());
    let end = Arc::new(End::new(config.count, stop));
    let rides = Traffic::new(&config, client.clone(), format!("{base_url}/rides"), filing.clone(), Arc::clone(&end));
    let wallets = WalletTraffic::new(&config, client, base_url, end);
    let (rides, (wallet_reads, wallet_writes)) =
        tokio::try_join!(rides.run(config.concurrency, seed), wallets.run(&config, seed))?;
    let rides = (config.concurrency > 0).then_some(rides);
    let manifests = match filing {
        Some(filing) => Some(filing.end().await?),
        None => None,
    };
    Ok(Report { rides, manifests, wallet_reads, wallet_writes })
}

/// A service that is asked for.
struct Service<'a> {
    name: &'a str,
    base_url: &'a str,
    /// The path of a request that tells whether it is ready.
    probe: &'a str,
    /// The status of the response then.
    ready: StatusCode,
}

impl Service<'_> {
    /// Says for which service it waits when the wait begins, then every [`TOLD_EVERY`], and when it ends.
    async fn wait_until_ready(&self, client: &reqwest::Client, shutdown: &CancellationToken) {
        let Self { name, base_url, .. } = *self;
        let (mut backoff, started_at) = (Backoff::up_to(READY_WAIT_MAX), Instant::now());
        let mut told_at: Option<Instant> = None;
        while !shutdown.is_cancelled() {
            let why = match client.get(format!("{base_url}{}", self.probe)).send().await {
                Ok(response) if response.status() == self.ready => break,
                Ok(response) => format!("it answers {}", response.status()),
                // Without the URL, which the line has already; the causes say more.
                Err(error) => format!("{:#}", anyhow::Error::new(error.without_url())),
            };
            if told_at.is_none_or(|told_at| told_at.elapsed() > TOLD_EVERY) {
                told_at = Some(Instant::now());
                info!(base_url, why, waited_s = started_at.elapsed().as_secs(), "waiting for the {name}");
            }
            sleep_or_stop(backoff.next_wait(), shutdown).await;
        }
        if told_at.is_some() && !shutdown.is_cancelled() {
            info!(base_url, waited_s = started_at.elapsed().as_secs(), "the {name} is ready");
        }
    }
}
