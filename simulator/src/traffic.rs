//! The traffic: workers that post rides at the wanted rate, and count the responses.

use std::io::IsTerminal;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::backoff::Backoff;
use common::shutdown::sleep_or_stop;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::booked::book;
use crate::config::{Config, Rate};
use crate::end::End;
use crate::manifests::Filing;
use crate::ride::run_once;
use crate::summary::Summary;

/// Distances are drawn evenly from this range, in metres.
const DISTANCE_M: Range<f64> = 5.0..1000.0;

/// The longest pause of calm traffic; the mean is half of it.
const CALM_PAUSE_MAX: Duration = Duration::from_secs(2);

/// The longest wait of a client whose request was refused.
pub(crate) const REFUSED_WAIT_MAX: Duration = Duration::from_secs(1);

/// The state that all workers share.
pub(crate) struct Traffic {
    client: reqwest::Client,
    url: String,
    progress: ProgressBar,
    ticks: Option<tokio::sync::Mutex<Interval>>,
    summary: Mutex<Summary>,
    is_calm: bool,
    booked_share: f64,
    /// The api has refused a booking for good, so the other rides are not booked.
    books_nothing: AtomicBool,
    filing: Option<Arc<Filing>>,
    end: Arc<End>,
}

impl Traffic {
    /// Traffic as the flags say, against the rides at `rides_url`, until the `end`. Some rides get a manifest by `filing`.
    pub fn new(
        config: &Config,
        client: reqwest::Client,
        rides_url: String,
        filing: Option<Arc<Filing>>,
        end: Arc<End>,
    ) -> Self {
        Self {
            client,
            url: rides_url,
            progress: progress_bar(config),
            ticks: ticks(config).map(tokio::sync::Mutex::new),
            summary: Mutex::new(Summary::new()),
            is_calm: config.rate.is_none(),
            booked_share: config.booked,
            books_nothing: AtomicBool::new(false),
            filing,
            end,
        }
    }

    /// Posts rides from `worker_count` workers until the end, and sums up the responses.
    ///
    /// # Errors
    /// A worker panicked.
    pub async fn run(self, worker_count: u16, seed: u64) -> Result<Summary> {
        let started_at = Instant::now();
        let traffic = Arc::new(self);
        let workers: Vec<_> = (0..worker_count)
            .map(|worker| {
                let rng = StdRng::seed_from_u64(seed.wrapping_add(u64::from(worker)));
                tokio::spawn(traffic.clone().work(rng))
            })
            .collect();
        for worker in workers {
            worker.await.context("a worker died")?;
        }
        traffic.progress.finish_and_clear();
        let mut summary = traffic.summary.lock().unwrap_or_else(PoisonError::into_inner).clone();
        summary.elapsed = started_at.elapsed();
        Ok(summary)
    }

    async fn work(self: Arc<Self>, mut rng: StdRng) {
        let mut backoff = Backoff::up_to(REFUSED_WAIT_MAX);
        while self.may_start().await {
            let sent_at = Instant::now();
            // The dice are thrown in any case, so that a seed always gives the same rides.
            let is_booked = rng.random_bool(self.booked_share) && !self.books_nothing.load(Ordering::Relaxed);
            let response = if is_booked {
                let response = book(&self.client, &self.url, &mut rng).await;
                self.note_refusal(&response);
                response
            } else {
                run_once(&self.client, &self.url, rng.random_range(DISTANCE_M)).await
            };
            let was_served = response.as_ref().is_ok_and(|(status, _)| *status != 503);
            if let (Some(filing), Ok((201, body))) = (&self.filing, &response) {
                filing.maybe_file(body);
            }
            self.count(response, sent_at.elapsed());
            if was_served {
                backoff.reset();
            } else {
                // The api is away, or overloaded: a good client waits before its next request.
                sleep_or_stop(backoff.next_wait(), &self.end.stop).await;
            }
            if self.is_calm {
                sleep_or_stop(CALM_PAUSE_MAX.mul_f64(rng.random()), &self.end.stop).await;
            }
        }
    }

    /// Stops booking if the api does not know the user or does not book. Every further booking would be refused too.
    fn note_refusal(&self, response: &Result<(u16, String)>) {
        let Ok((status, body)) = response else { return };
        let is_final = *status == 401 || body.contains("bookings_off");
        if is_final && !self.books_nothing.swap(true, Ordering::Relaxed) {
            warn!(
                status,
                body, "the api refuses bookings, so no more rides are booked: ops/seed.sql has the user who books"
            );
        }
    }

    /// Waits for the moment of the next ride. `false`: no ride is to follow.
    async fn may_start(&self) -> bool {
        if let Some(ticks) = &self.ticks {
            tokio::select! {
                () = self.end.stop.cancelled() => return false,
                () = async { ticks.lock().await.tick().await; } => {}
            }
        }
        self.end.may_start()
    }

    fn count(&self, response: Result<(u16, String)>, latency: Duration) {
        let status = response.as_ref().map_or(0, |response| response.0).to_string();
        monitor::counter!("rocket_rides_answers_total", "status" => status).increment(1);
        let mut summary = self.summary.lock().unwrap_or_else(PoisonError::into_inner);
        match response {
            Ok((status, body)) => {
                summary.answered(status == 201, latency);
                match (self.is_calm, status) {
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

fn ticks(config: &Config) -> Option<Interval> {
    let Some(Rate::PerSecond(rate)) = config.rate else { return None };
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    // A slow response delays the rides behind it. They are sent as soon as possible, so that the rate holds on average.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    Some(ticks)
}

/// A bar if the count is known, a spinner if it is not; hidden in calm traffic without a count, and where stderr is no terminal.
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
