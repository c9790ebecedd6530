//! A consumer with a clock: the real consumer, driven step by step, which writes down the time of each record's commit. The case
//! latency starts three of them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Args;
use common::shutdown::CancellationToken;
use consumer::{CheckpointKey, Consumer, DistanceFold, Fault, Fold, FoldId, Kind, Rejection, State, Statement};
use pglog::Record;

/// How long a read waits for the next entry, as in the consumer.
const BLOCK: Duration = Duration::from_secs(1);

/// The consumer, and the file for its times.
#[derive(Debug, Clone, Args)]
pub struct TimedConfig {
    /// The consumer.
    #[command(flatten)]
    pub consumer: consumer::Config,

    /// The file to which the times are written at the end, one line per record: `<offset> <staged at> <committed at>`, in µs
    /// since 1970.
    #[arg(long)]
    pub times: PathBuf,
}

/// A folded record: its offset, and when it was staged.
type Note = (i64, i64);

/// The distance fold, which also writes down each record.
struct NotingFold {
    fold: State<DistanceFold>,
    notes: Arc<Mutex<Vec<Note>>>,
}

impl Fold for NotingFold {
    fn id(&self) -> FoldId {
        self.fold.id()
    }

    fn kind(&self) -> Kind {
        self.fold.kind()
    }

    fn restore(&mut self, state: Option<&str>) -> Result<()> {
        self.fold.restore(state)
    }

    fn restart(&mut self) {
        self.fold.restart();
    }

    fn begin_page(&mut self) {
        self.fold.begin_page();
    }

    fn takes(&self, object: &str, action: &str) -> bool {
        self.fold.takes(object, action)
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push((record.offset, record.staged_at_us));
        self.fold.apply(record)
    }

    fn state(&self) -> Result<Option<String>> {
        self.fold.state()
    }

    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        self.fold.statements(key)
    }

    fn summary(&self) -> String {
        self.fold.summary()
    }

    fn sibling(&self) -> Option<Self> {
        Some(Self { fold: self.fold.sibling()?, notes: Arc::clone(&self.notes) })
    }

    fn boxed_sibling(&self) -> Option<Box<dyn Fold>> {
        Some(Box::new(self.sibling()?))
    }
}

/// Folds until `shutdown`, then writes the times.
///
/// # Errors
/// A step failed. A figure that includes a failure would mean nothing.
pub async fn timed_consumer(config: TimedConfig, shutdown: CancellationToken) -> Result<()> {
    let notes: Arc<Mutex<Vec<Note>>> = Arc::default();
    let fold = NotingFold { fold: State::default(), notes: Arc::clone(&notes) };
    let mut consumer = Consumer::new(&config.consumer, fold, shutdown.clone());
    let mut times = String::new();
    while !shutdown.is_cancelled() {
        // It returns after the response to the commit.
        let progress = consumer.run_once(Fault::None, Some(BLOCK)).await?;
        let committed_at_us = now_us()?;
        let notes = std::mem::take(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(notes.len() == progress.applied_count, "a record was folded and not committed");
        for (offset, staged_at_us) in notes {
            writeln!(times, "{offset} {staged_at_us} {committed_at_us}").context("noting a time")?;
        }
    }
    std::fs::write(&config.times, times).with_context(|| format!("writing {}", config.times.display()))
}

fn now_us() -> Result<i64> {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("it is before 1970")?;
    Ok(i64::try_from(since_1970.as_micros())?)
}
