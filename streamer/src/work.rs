//! The streamer as the skeleton of processes repeats it: when to pause, what to log, and which errors are final.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Error, Result};
use common::stay_down::StayDown;
use pglog::{Partition, PartitionCount};
use process::{Failure, Turn, Work};
use tracing::{info, warn};

use crate::config::Config;
use crate::fault::Fault;
use crate::leader::Step;
use crate::leadership::STANDBY_WAIT;
use crate::metrics::{self, LastPublished};
use crate::publish::Published;
use crate::publisher::{IDLE_WAIT, list};
use crate::refusal::Refused;
use crate::streamer::Streamer;

/// Leads partitions, or stands by.
pub(crate) struct Publishing {
    streamer: Streamer,
    last: LastPublished,
    is_draining: bool,
    /// The partitions that this streamer leads, as the log says. `None` before it has said anything.
    told: Option<BTreeSet<Partition>>,
    /// The same, as the metrics say.
    measured: BTreeSet<Partition>,
}

impl Publishing {
    pub fn new(config: &Config, last: LastPublished) -> Self {
        Self { streamer: Streamer::new(config), last, is_draining: config.drain, told: None, measured: BTreeSet::new() }
    }

    /// Logs which partitions this streamer leads, if that is news. A leader that leads again after an error logs nothing.
    fn tell(&mut self, led: BTreeSet<Partition>) {
        if self.told.as_ref() == Some(&led) {
            return;
        }
        // The only partition of a log is told by its number.
        let is_cut = self.streamer.partition_count() != Some(PartitionCount::ONE);
        let partition = (!is_cut).then_some(Partition::FIRST.number());
        if led.is_empty() {
            info!(partition, "standing by: another streamer leads");
        } else {
            info!(partition, partitions = is_cut.then(|| display(list(&led))), "leading");
        }
        self.told = Some(led);
    }

    /// Whether a streamer that drains has come to the end: also in the partitions that others lead.
    async fn is_finished(&mut self) -> bool {
        self.is_draining && self.streamer.is_nothing_left().await
    }
}

impl Work for Publishing {
    type Fault = Fault;

    /// Short, because the successor of a node that died is to be found soon.
    const RETRY_WAIT_MAX: Duration = Duration::from_millis(500);

    async fn run_once(&mut self, fault: Fault) -> Result<Turn, Failure> {
        let step = self.streamer.run_once(fault).await;
        let led = self.streamer.led();
        metrics::set_led(&led, &mut self.measured, &self.last);
        let partition_count = self.streamer.partition_count();
        if let Some(count) = partition_count {
            metrics::set_partition_count(count);
        }
        if !led.is_empty() {
            self.tell(led);
        }
        match step.map_err(classify_error)? {
            Step::Published(published) => {
                log(&published, partition_count != Some(PartitionCount::ONE));
                metrics::count(&published, &self.last);
                // A client that stages a record while this process publishes sends a hint, which ends the pause.
                let goes_on = self.is_draining || self.streamer.has_more();
                // The page that has the fault may be still on its way.
                let turn = if published.fault == fault { Turn::done() } else { Turn::waiting() };
                Ok(turn.pausing(if goes_on { Duration::ZERO } else { IDLE_WAIT }))
            }
            Step::Searching => Ok(Turn::waiting()),
            Step::Idle if self.is_draining && !self.is_finished().await => Ok(Turn::waiting().pausing(IDLE_WAIT)),
            Step::Idle => Ok(Turn::idle().pausing(IDLE_WAIT)),
            Step::StandingBy => {
                self.tell(BTreeSet::new());
                let is_finished = self.is_finished().await;
                Ok(if is_finished { Turn::idle() } else { Turn::waiting().pausing(STANDBY_WAIT) })
            }
        }
    }

    /// A hint ends the leader's pause. A streamer that stands by asks for the leadership at its own pace.
    async fn woken(&self) {
        let stands_by = self.told.as_ref().is_some_and(BTreeSet::is_empty);
        if stands_by { std::future::pending().await } else { self.streamer.hinted().await }
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "publishing failed, trying again");
    }
}

fn log(published: &Published, is_cut: bool) {
    let first_offset = published.first_offset;
    info!(
        // Said where it tells anything.
        partition = is_cut.then(|| published.partition.number()),
        first_offset,
        last_offset = published.last_offset(),
        record_count = published.record_count,
        added_count = published.added_count,
        refused_count = published.refused_count,
        elapsed_ms = published.elapsed.as_millis() as u64,
        "batch published"
    );
    match published.fault {
        Fault::SendTwice => info!(first_offset, "double-send injected: every record was added twice"),
        Fault::ResendBatch => info!(first_offset, "double-send injected: the whole batch was sent again"),
        // The process died where it was to die, or not at all.
        Fault::None | Fault::DieAfterAssign | Fault::DieMidPipeline | Fault::DieAfterPublish => {}
    }
}

/// Waiting does not help against a refusal, a damaged table or a partition that does not exist.
fn classify_error(error: Error) -> Failure {
    if error.is::<Refused>() || error.is::<StayDown>() || error.downcast_ref().is_some_and(pglog::Error::is_final) {
        Failure::Final(error)
    } else {
        Failure::Passing(error)
    }
}
