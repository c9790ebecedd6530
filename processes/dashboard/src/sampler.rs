//! Takes a sample twice a second, whether or not a page is open.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Result;
use common::shutdown::{CancellationToken, sleep_or_stop};
use monitor::Pulse;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::database::Database;
use crate::memory::SharedMemory;
use crate::processes::Watch;
use crate::recount::Recounts;
use crate::sample::{Recount, Sample, Server, Verdict, now_ms};
use crate::stream_end::Stream;
use crate::verdict::judge;

/// The pause between two samples.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long a server may take to answer all questions of a sample. After that the page says that the server does not answer.
/// A longer wait would delay the sample, and the page would look as if this process were gone.
const ANSWER_WAIT: Duration = Duration::from_millis(1500);

/// The rate is measured over at least this many milliseconds.
const RATE_OVER_MS: u64 = 3000;

/// The servers and processes that the sampler asks.
pub(crate) struct Sampler {
    pub database: Database,
    pub stream: Stream,
    pub watch: Watch,
    pub recounts: Recounts,
}

/// A server's pulse beats when the server has answered.
pub(crate) struct Pulses {
    pub postgres: Pulse,
    pub redis: Pulse,
}

impl Sampler {
    /// Samples until `shutdown`. Each sample is put into `memory` before it is sent.
    pub async fn run(
        mut self,
        samples: watch::Sender<Option<Arc<Sample>>>,
        memory: SharedMemory,
        pulses: Pulses,
        shutdown: CancellationToken,
    ) {
        let (mut rate, mut before) = (Rate::default(), None);
        loop {
            let began_at = Instant::now();
            let sample = Arc::new(self.take(&mut rate).await);
            if sample.postgres.is_up {
                pulses.postgres.beat();
            }
            if sample.redis.is_up {
                pulses.redis.beat();
            }
            log_changes(before.replace((sample.verdict, sample.postgres.is_up, sample.redis.is_up)), &sample);
            memory.lock().unwrap_or_else(PoisonError::into_inner).remember(&sample);
            samples.send_replace(Some(sample));
            if !sleep_or_stop(INTERVAL.saturating_sub(began_at.elapsed()), &shutdown).await {
                return;
            }
        }
    }

    async fn take(&mut self, rate: &mut Rate) -> Sample {
        let (log, stream, processes, recount) = tokio::join!(
            answered("postgres", self.database.read()),
            answered("redis", self.stream.read()),
            self.watch.ask(),
            self.recounts.fresh()
        );
        let verdict = log.as_ref().map_or(Verdict::Unknown, |(_, log)| judge(log, recount.as_ref()));
        let rides_per_s = recount.as_ref().and_then(|recount| rate.after(recount));
        let (postgres, log) = log.map_or((Server::DOWN, None), |(server, log)| (server, Some(log)));
        let (redis, stream) = stream.map_or((Server::DOWN, None), |(server, stream)| (server, Some(stream)));
        Sample {
            at_ms: now_ms(),
            verdict,
            rides_per_s: rides_per_s.filter(|_| postgres.is_up),
            postgres,
            redis,
            log,
            stream,
            recount,
            processes,
        }
    }
}

async fn answered<T>(server: &str, reading: impl Future<Output = Result<T>>) -> Option<T> {
    match timeout(ANSWER_WAIT, reading).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(server, error = format!("{error:#}"), "a server cannot be asked");
            None
        }
        Err(_) => {
            tracing::debug!(server, "a server does not answer in time");
            None
        }
    }
}

/// Logs outages and a wrong total, so that an operator finds them later. Samples themselves are not logged.
fn log_changes(before: Option<(Verdict, bool, bool)>, sample: &Sample) {
    let Some((verdict, postgres, redis)) = before else { return };
    for (server, was_up, is_up) in [("postgres", postgres, sample.postgres.is_up), ("redis", redis, sample.redis.is_up)]
    {
        match (was_up, is_up) {
            (true, false) => warn!(server, "a server does not answer"),
            (false, true) => info!(server, "a server answers again"),
            _ => {}
        }
    }
    if verdict != Verdict::Differs && sample.verdict == Verdict::Differs {
        warn!("a consumer at the head of the log has another total than a recount of the rides");
    }
}

/// Rides per second, between two recounts.
#[derive(Default)]
struct Rate {
    /// Time and number of rides of each recount, the oldest first.
    counts: VecDeque<(u64, i64)>,
}

impl Rate {
    fn after(&mut self, recount: &Recount) -> Option<f64> {
        // The clock was put back: earlier counts cannot be compared any more.
        if self.counts.back().is_some_and(|(at_ms, _)| *at_ms > recount.at_ms) {
            self.counts.clear();
        }
        if self.counts.back().is_none_or(|(at_ms, _)| *at_ms < recount.at_ms) {
            self.counts.push_back((recount.at_ms, recount.ride_count));
        }
        // Keep the youngest count that is old enough as the first; earlier ones are not needed.
        while self.counts.get(1).is_some_and(|(at_ms, _)| recount.at_ms - at_ms >= RATE_OVER_MS) {
            self.counts.pop_front();
        }
        let (at_ms, ride_count) = *self.counts.front()?;
        let elapsed_ms = recount.at_ms - at_ms;
        (elapsed_ms > 0).then(|| (recount.ride_count - ride_count) as f64 / (elapsed_ms as f64 / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut rate = Rate::default();
        let mut after = |at_ms, ride_count| {
            rate.after(&Recount {
                at_ms,
                took_ms: 1.0,
                head: 0,
                head_token: 0,
                is_complete: true,
                ride_count,
                distance_mm: 0,
            })
        };
        assert_eq!(after(10_000, 100), None);
        assert_eq!(after(10_000, 100), None, "the same recount says nothing new");
        assert_eq!(after(12_000, 120), Some(10.0));
        assert_eq!(after(13_000, 160), Some(20.0));
        assert_eq!(after(16_000, 190), Some(10.0), "since the count at 13 s");
        assert_eq!(after(5_000, 191), None, "the clock was put back");
        assert_eq!(after(6_000, 192), Some(1.0));
    }
}
