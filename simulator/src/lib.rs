//! Traffic for the api: calm by default, so that people can watch; as much as the machine gives when asked.

mod booked;
mod summary;

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use indicatif::{ProgressBar, ProgressStyle};
use monitor::describe_counter;
use process::ProcessArgs;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, info, warn};

pub use booked::Booking;
pub use summary::Summary;

/// Distances are drawn evenly from here, in metres.
const DISTANCE_M: std::ops::Range<f64> = 5.0..1000.0;

/// The longest pause of calm traffic; the mean is half of it.
const CALM_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long one answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// The longest wait of a client that was refused.
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(1);

/// Posts rides to the api, and tells how it answered.
#[derive(Debug, Clone, Parser)]
#[command(name = "simulator", version)]
pub struct Config {
    /// The port of the api on this machine.
    #[arg(long, env = "API_PORT", default_value_t = 5005)]
    pub api_port: u16,

    /// Rides per second, or `max` for as many as the api takes. Without it: calm traffic, a ride every second or so.
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<Rate>,

    /// Requests in flight at once, at most.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub concurrency: u16,

    /// The share of rides that are booked, 0 to 1, by clients of all kinds: half of the requests fail midway, some come five
    /// times at once.
    #[arg(long, default_value_t = 0.0, value_parser = parse_share)]
    pub booked: f64,

    /// Stop after this many rides.
    #[arg(long)]
    pub count: Option<u64>,

    /// Stop after this time, for example 30s or 2m.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,

    /// Seed of the distances; the same seed asks for the same rides. Without it one is drawn and printed.
    #[arg(long)]
    pub seed: Option<u64>,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// So many rides a second, however long the answers take, as far as the concurrency allows.
    PerSecond(f64),
    /// The next ride as soon as one is answered.
    Max,
}

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
/// Only a failure to set up. An api that is away is waited for, and its refusals are counted.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<Summary> {
    let seed = config.seed.unwrap_or_else(rand::random);
    let base_url = format!("http://127.0.0.1:{}", config.api_port);
    info!(base_url, seed, "simulator started");
    monitor::start(&config.process.monitor).await?;
    describe_counter!("rocket_rides_answers_total", "Answers to guests, by status; 0: there was none");
    let client = reqwest::Client::builder().timeout(ANSWER_WAIT).build().context("setting up the HTTP client")?;
    wait_until_ready(&client, &base_url, &shutdown).await;

    let traffic = Arc::new(Traffic {
        client,
        url: format!("{base_url}/rides"),
        progress: progress_bar(&config),
        ticks: ticks(&config).map(tokio::sync::Mutex::new),
        left_count: Mutex::new(config.count.unwrap_or(u64::MAX)),
        summary: Mutex::new(Summary::new()),
        calm: config.rate.is_none(),
        booked: config.booked,
        stop: shutdown.child_token(),
    });
    let started_at = Instant::now();
    let workers: Vec<_> = (0..config.concurrency)
        .map(|worker| {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(u64::from(worker)));
            tokio::spawn(traffic.clone().work(rng))
        })
        .collect();
    if let Some(duration) = config.duration {
        let stop = traffic.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            stop.cancel();
        });
    }
    for worker in workers {
        worker.await.context("a worker died")?;
    }
    traffic.progress.finish_and_clear();
    let mut summary = traffic.summary.lock().unwrap_or_else(PoisonError::into_inner).clone();
    summary.elapsed = started_at.elapsed();
    Ok(summary)
}

/// Posts one ride. Returns the status and the body.
///
/// # Errors
/// No answer came.
pub async fn run_once(client: &reqwest::Client, rides_url: &str, distance_m: f64) -> Result<(u16, String)> {
    let response = client
        .post(rides_url)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("distance={distance_m:.3}"))
        .send()
        .await
        .context("posting a ride")?;
    let status = response.status().as_u16();
    Ok((status, response.text().await.context("reading the answer")?))
}

struct Traffic {
    client: reqwest::Client,
    url: String,
    progress: ProgressBar,
    ticks: Option<tokio::sync::Mutex<Interval>>,
    left_count: Mutex<u64>,
    summary: Mutex<Summary>,
    calm: bool,
    booked: f64,
    stop: CancellationToken,
}

impl Traffic {
    async fn work(self: Arc<Self>, mut rng: StdRng) {
        let mut backoff = Backoff::up_to(REFUSED_WAIT_MAX);
        while self.may_start().await {
            let sent_at = Instant::now();
            let answer = match rng.random_bool(self.booked) {
                true => booked::book(&self.client, &self.url, &mut rng).await,
                false => run_once(&self.client, &self.url, rng.random_range(DISTANCE_M)).await,
            };
            let was_served = answer.as_ref().is_ok_and(|(status, _)| *status != 503);
            self.account(answer, sent_at.elapsed());
            if was_served {
                backoff.reset();
            } else {
                // A good client does not insist: the api is away, or asked for patience.
                sleep_or_stop(backoff.next_wait(), &self.stop).await;
            }
            if self.calm {
                sleep_or_stop(CALM_PAUSE_MAX.mul_f64(rng.random()), &self.stop).await;
            }
        }
    }

    /// Waits for the moment of the next ride. `false`: there is none.
    async fn may_start(&self) -> bool {
        if let Some(ticks) = &self.ticks {
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = async { ticks.lock().await.tick().await; } => {}
            }
        }
        let mut left_count = self.left_count.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stop.is_cancelled() || *left_count == 0 {
            return false;
        }
        *left_count -= 1;
        true
    }

    fn account(&self, answer: Result<(u16, String)>, latency: Duration) {
        let status = answer.as_ref().map_or(0, |answer| answer.0).to_string();
        monitor::counter!("rocket_rides_answers_total", "status" => status).increment(1);
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok((status, body)) => {
                summary.answered(status == 201, latency);
                match (self.calm, status) {
                    (true, _) => info!(status, body, "response"),
                    (false, 201) => debug!(status, body, "response"),
                    (false, _) => warn!(status, body, "response"),
                }
            }
            Err(error) => {
                summary.unanswered();
                warn!(error = format!("{error:#}"), "no response");
            }
        }
        self.progress.inc(1);
    }
}

async fn wait_until_ready(client: &reqwest::Client, base_url: &str, shutdown: &CancellationToken) {
    let mut backoff = Backoff::up_to(Duration::from_secs(1));
    while !shutdown.is_cancelled() {
        match client.get(format!("{base_url}/healthz")).send().await {
            Ok(response) if response.status().is_success() => return,
            Ok(response) => debug!(status = response.status().as_u16(), "the api is not ready"),
            Err(error) => debug!(%error, "the api is not there yet"),
        }
        sleep_or_stop(backoff.next_wait(), shutdown).await;
    }
}

fn ticks(config: &Config) -> Option<Interval> {
    let Some(Rate::PerSecond(rate)) = config.rate else { return None };
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    // A slow answer delays the rides behind it; they are made up for.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    Some(ticks)
}

/// Shown on a terminal only, and only if somebody knows when it will end.
fn progress_bar(config: &Config) -> ProgressBar {
    match config.count {
        Some(count) if std::io::stderr().is_terminal() => {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rides  {per_sec}  {eta} left");
            ProgressBar::new(count).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        }
        _ if std::io::stderr().is_terminal() && config.rate.is_some() => {
            let style = ProgressStyle::with_template("{spinner} {pos} rides  {per_sec}  {elapsed}");
            ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        }
        _ => ProgressBar::hidden(),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("give a number between 0 and 1, for example 0.5".to_owned()),
    }
}

fn parse_rate(text: &str) -> Result<Rate, String> {
    match (text, text.parse::<f64>()) {
        ("max", _) => Ok(Rate::Max),
        (_, Ok(rate)) if (0.001..=1_000_000.0).contains(&rate) => Ok(Rate::PerSecond(rate)),
        _ => Err("give rides per second, for example 50, or max".to_owned()),
    }
}
