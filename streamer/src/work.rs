//! The streamer as the skeleton of processes repeats it: when to pause, what to log, and which errors are final.

use std::time::Duration;

use anyhow::{Error, Result};
use pglog::Partition;
use process::{Failure, Turn, Work};
use tracing::{info, warn};

use crate::config::Config;
use crate::fault::Fault;
use crate::leader::Step;
use crate::leadership::STANDBY_WAIT;
use crate::metrics::{self, LastPublished};
use crate::publish::Published;
use crate::refusal::Refused;
use crate::streamer::Streamer;

/// How long an idle leader waits for a hint before it looks at the table by itself. It bounds the delay of records whose
/// clients send no hint. A look costs two index probes.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// Leads the partition, or stands by.
pub(crate) struct Publishing {
    streamer: Streamer,
    last: LastPublished,
    partition: Partition,
    is_draining: bool,
    /// Whether this streamer leads, as the log says. `None` before it has said either.
    told_leads: Option<bool>,
}

impl Publishing {
    pub fn new(config: &Config, last: LastPublished) -> Self {
        Self {
            streamer: Streamer::new(config),
            last,
            partition: config.stream.partition(),
            is_draining: config.drain,
            told_leads: None,
        }
    }

    /// Logs whether this streamer leads, if that is news. A leader that leads again after an error logs nothing.
    fn tell(&mut self, leads: bool) {
        let before = self.told_leads.replace(leads);
        let partition = self.partition.number();
        if leads && before != Some(true) {
            info!(partition, "leading");
        } else if !leads && before != Some(false) {
            info!(partition, "standing by: another streamer leads");
        }
    }
}

impl Work for Publishing {
    type Fault = Fault;

    async fn run_once(&mut self, fault: Fault) -> Result<Turn, Failure> {
        let step = self.streamer.run_once(fault).await;
        let leads = self.streamer.leads();
        metrics::set_leader(leads);
        if leads {
            self.tell(true);
        }
        match step.map_err(classify_error)? {
            Step::Published(published) => {
                log(&published, fault);
                metrics::count(&published, fault != Fault::None, &self.last);
                // A client that stages a record while this process publishes sends a hint, which ends the pause.
                let goes_on = self.is_draining || self.streamer.is_behind_head();
                Ok(Turn::done().pausing(if goes_on { Duration::ZERO } else { IDLE_WAIT }))
            }
            Step::Searching => Ok(Turn::waiting()),
            Step::Idle => Ok(Turn::idle().pausing(IDLE_WAIT)),
            Step::StandingBy => {
                self.tell(false);
                metrics::forget_published(&self.last);
                let is_finished = self.is_draining && self.streamer.is_nothing_left().await;
                Ok(if is_finished { Turn::idle() } else { Turn::waiting().pausing(STANDBY_WAIT) })
            }
        }
    }

    /// A hint ends the leader's pause. A streamer that stands by asks for the leadership at its own pace.
    async fn woken(&self) {
        if self.told_leads == Some(false) { std::future::pending().await } else { self.streamer.hinted().await }
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "publishing failed, trying again");
    }
}

fn log(published: &Published, fault: Fault) {
    let first_offset = published.first_offset;
    info!(
        first_offset,
        last_offset = published.last_offset(),
        record_count = published.record_count,
        added_count = published.added_count,
        refused_count = published.refused_count,
        elapsed_ms = published.elapsed.as_millis() as u64,
        "batch published"
    );
    match fault {
        Fault::SendTwice => info!(first_offset, "double-send injected: every record was added twice"),
        Fault::ResendBatch => info!(first_offset, "double-send injected: the whole batch was sent again"),
        // This step did not reach the place where the process is to die: it cut no batch, for example.
        Fault::None | Fault::DieAfterAssign | Fault::DieMidPipeline | Fault::DieAfterPublish => {}
    }
}

/// Waiting does not help against a refusal or a damaged table.
fn classify_error(error: Error) -> Failure {
    if error.is::<Refused>() || error.downcast_ref().is_some_and(pglog::Error::is_final) {
        Failure::Final(error)
    } else {
        Failure::Passing(error)
    }
}
