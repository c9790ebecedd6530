//! Takes a sample twice a second, whether or not a page is open.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Error, Result};
use common::shutdown::{CancellationToken, sleep_or_stop};
use common::stay_down::StayDown;
use monitor::Pulse;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::container::Containers;
use crate::counting::Counts;
use crate::database::Database;
use crate::memory::SharedMemory;
use crate::processes::Watch;
use crate::rate::Rate;
use crate::sample::{Recount, Sample, Server, StreamState, Verdict, now_ms};
use crate::stream_end::Streams;
use crate::verdict::{compare, judge};
use crate::wallets::{Rates, Reader};

/// The pause between two samples.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long a server may take to answer all questions of a sample. After that the page says that the server does not answer.
/// A longer wait would delay the sample, and the page would look as if this process were gone.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_millis(1500);

/// The servers and processes that the sampler asks.
pub(crate) struct Sampler {
    pub database: Database,
    pub streams: Streams,
    pub watch: Watch,
    pub recounts: Counts<Recount>,
    pub wallets: Reader,
    pub containers: Containers,
}

/// A server's pulse beats when the server has answered.
pub(crate) struct Pulses {
    pub postgres: Pulse,
    pub redis: Pulse,
}

impl Sampler {
    /// Samples until `shutdown`. Each sample is put into `memory` before it is sent.
    ///
    /// # Errors
    /// The log lacks a partition that the settings name.
    pub async fn run(
        mut self,
        samples: watch::Sender<Option<Arc<Sample>>>,
        memory: SharedMemory,
        pulses: Pulses,
        shutdown: CancellationToken,
    ) -> Result<()> {
        let (mut rates, mut before) = ((Rate::default(), Rates::default()), None);
        loop {
            let began_at = Instant::now();
            let sample = Arc::new(self.take(&mut rates).await);
            if let Some(refusal) = self.database.refusal() {
                return Err(StayDown(Error::new(refusal).context("bad --partitions")).into());
            }
            if sample.postgres.is_up {
                pulses.postgres.beat();
            }
            if sample.redis.is_up {
                pulses.redis.beat();
            }
            log_changes(before.replace(Arc::clone(&sample)).as_deref(), &sample);
            memory.lock().unwrap_or_else(PoisonError::into_inner).remember(&sample);
            samples.send_replace(Some(sample));
            if !sleep_or_stop(INTERVAL.saturating_sub(began_at.elapsed()), &shutdown).await {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, (rides, rates): &mut (Rate, Rates)) -> Sample {
        let (log, (redis, streams), processes, recount, mut wallets) = tokio::join!(
            answered("postgres", self.database.read()),
            self.streams.read(),
            self.watch.ask(),
            self.recounts.fresh(),
            self.wallets.read()
        );
        let verdict = log.as_ref().map_or(Verdict::Unknown, |(_, log)| judge(log, recount.as_ref()));
        let rides_per_s = recount.as_ref().and_then(|recount| rides.after(recount.at_ms, recount.ride_count));
        let (postgres, mut log) = log.map_or((Server::DOWN, None), |(server, log)| (server, Some(log)));
        if let Some(log) = &mut log {
            compare(log, recount.as_ref());
        }
        let at_ms = now_ms();
        rates.fill(at_ms, &mut wallets, &processes);
        let container = self.containers.after(at_ms, &processes);
        Sample {
            at_ms,
            verdict,
            rides_per_s: rides_per_s.filter(|_| postgres.is_up),
            postgres,
            redis,
            log,
            stream: StreamState::sum(&streams),
            streams,
            recount,
            processes,
            wallets,
            container,
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

/// Logs outages and wrong totals, so that an operator finds them later. Samples themselves are not logged.
fn log_changes(before: Option<&Sample>, sample: &Sample) {
    let Some(before) = before else { return };
    for (server, was, is) in [("postgres", before.postgres, sample.postgres), ("redis", before.redis, sample.redis)] {
        match (was.is_up, is.is_up) {
            (true, false) => warn!(server, "a server does not answer"),
            (false, true) => info!(server, "a server answers again"),
            _ => {}
        }
    }
    if before.verdict != Verdict::Differs && sample.verdict == Verdict::Differs {
        warn!("a consumer at the head of the log has another total than a recount of the rides");
    }
    let is_money_wrong = |sample: &Sample| sample.wallets.money.as_ref().is_some_and(|money| !money.adds_up);
    if !is_money_wrong(before) && is_money_wrong(sample) {
        warn!("the balances of the wallets do not sum to accepted credits minus debits");
    }
}
