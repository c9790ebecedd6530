//! The consumer as the skeleton of processes repeats it: when to pause, what to log, and which errors are final.

use std::time::Duration;

use anyhow::{Error, Result};
use common::stay_down::StayDown;
use monitor::{Pulse, counter};
use pglog::UnknownPartition;
use process::{Failure, Turn, Work};
use tracing::{info, warn};

use crate::advice::Whose;
use crate::consumer::Consumer;
use crate::fault::Fault;
use crate::kind::Fold;
use crate::metrics::{self, LastCommits};
use crate::outcome::{Interruption, Progress};

/// How long a read waits in Redis for the next entry. Then the consumer looks whether Postgres has more than the stream.
const BLOCK: Duration = Duration::from_secs(1);

/// The pause when the stream holds only entries that are not of this log: the streamer is about to set it aside.
const BLOCKED_WAIT: Duration = Duration::from_millis(200);

/// Folds page after page.
pub(crate) struct Folding<F: Fold> {
    pub consumer: Consumer<F>,
    /// Beats while all streams can be read.
    pub stream: Pulse,
    /// `None`: no metrics are served.
    pub last: Option<LastCommits>,
    pub whose: Whose,
    pub is_draining: bool,
}

impl<F: Fold> Work for Folding<F> {
    type Fault = Fault;

    async fn run_once(&mut self, fault: Fault) -> Result<Turn, Failure> {
        let block = (!self.is_draining).then_some(BLOCK);
        let progress = match self.consumer.run_once(fault, block).await {
            Ok(progress) => progress,
            Err(error) if matches!(error.downcast_ref(), Some(Interruption::Crash)) => {
                return Ok(self.survive_crash(&error));
            }
            Err(error) => return Err(classify_error(error, &self.whose)),
        };
        if self.consumer.reads_streams() {
            self.stream.beat();
        }
        metrics::count(&self.whose.name, &progress);
        if let Some(last) = &self.last {
            let places = self.consumer.places().map(|(part, last_offset, _)| (part.key.partition, last_offset));
            metrics::set_checkpoints(last, places);
        }
        if progress.record_count() > 0 {
            log(&self.whose.name, &self.consumer);
            Ok(Turn::done())
        } else if progress.blocked {
            Ok(Turn::idle().pausing(BLOCKED_WAIT))
        } else if progress == Progress::default() {
            Ok(Turn::idle())
        } else {
            Ok(Turn::waiting())
        }
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(consumer = self.whose.name, error, wait_ms = wait.as_millis() as u64, "step failed, trying again");
    }
}

impl<F: Fold> Folding<F> {
    /// The simulated crash is over. The next unit starts from the last commit.
    fn survive_crash(&self, crash: &Error) -> Turn {
        info!(consumer = self.whose.name, "{crash}");
        counter!("rocket_rides_crashes_survived_total", "consumer" => self.whose.name.clone()).increment(1);
        Turn::crashed()
    }
}

/// One line for each partition in which records were committed.
fn log<F: Fold>(name: &str, consumer: &Consumer<F>) {
    for (part, last_offset, fold) in consumer.places().filter(|(part, ..)| part.progress.record_count() > 0) {
        info!(
            consumer = name,
            partition = part.label,
            last_offset,
            applied_count = part.progress.applied_count,
            duplicate_count = part.progress.duplicate_count,
            healed_count = part.progress.healed_count,
            dead_letter_count = part.progress.dead_letter_count,
            "batch committed {}",
            fold.summary()
        );
    }
}

/// Waiting does not help against some errors. Those end the consumer, with advice.
fn classify_error(error: Error, whose: &Whose) -> Failure {
    let stays_down =
        matches!(error.downcast_ref(), Some(Interruption::StaysUnregistered { .. } | Interruption::OtherFold(_)));
    if stays_down || error.is::<UnknownPartition>() {
        return Failure::Final(StayDown(error).into());
    }
    if error.downcast_ref().is_some_and(Interruption::is_final) {
        return Failure::Final(error);
    }
    let advice = match error.downcast_ref() {
        Some(pglog::Error::Reaped { .. }) => format!(
            "consumer {} needs records that are gone: run {}, then {}. OTHER is a consumer of the same fold that is further on, \
             or baseline, if that has this fold",
            whose.name,
            whose.command(&["--unregister"]),
            whose.command(&["--copy-from", "OTHER"])
        ),
        Some(pglog::Error::RowsMissing { .. }) => {
            "staged_log_records were deleted by hand: restore them from a backup".to_owned()
        }
        Some(error) if error.is_final() => "the log cannot be read".to_owned(),
        _ => return Failure::Passing(error),
    };
    Failure::Final(error.context(advice))
}
