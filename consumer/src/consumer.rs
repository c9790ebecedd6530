//! The consumer between two steps: its memory, and which part of it a failure takes away.
//!
//! After any failure it forgets the state and loads the last commit (I4, I5). A step borrows everything it needs as a
//! [`Reading`], so that within a step the connection is there and the state is loaded.

mod commit;
mod guard;
mod heal;
mod loaded;
mod pages;
mod read;
mod session;

use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use stream::StreamArgs;
use stream::codec::EntryId;
use tokio::time::error::Elapsed;

use crate::bootstrap::{BASELINE, Role};
use crate::checkpoint::Counts;
use crate::config::Config;
use crate::fault::Fault;
use crate::fold::CheckpointKey;
use crate::kind::Fold;
use crate::outcome::{Interruption, Progress};
use crate::stream_reader::StreamReader;
use commit::Committer;
use guard::Guard;
use loaded::Loaded;
use read::Reading;
use session::ConsumerSession;

/// The longest step. Servers bound their own work (30 s per statement); this bound is for a connection that answers
/// nothing any more, not even a refusal.
const STEP_WAIT: Duration = Duration::from_secs(45);

/// Folds the log into a state, one bounded step at a time.
pub struct Consumer<F> {
    key: CheckpointKey,
    postgres: tokio_postgres::Config,
    role: Role,
    shutdown: CancellationToken,
    fold: F,
    /// `None` before the first step, and after the connection was lost.
    session: Option<ConsumerSession>,
    /// `None` after every failure: the state in memory may be ahead of the committed one.
    loaded: Option<Loaded>,
    stream: StreamReader,
    was_registered: bool,
    counts: Counts,
    rejected_to: EntryId,
}

impl<F: Fold> Consumer<F> {
    /// Connects when first used. `shutdown` cuts short the wait for entries, and nothing else.
    pub fn new(config: &Config, fold: F, shutdown: CancellationToken) -> Self {
        let role = Role::Consumer(config.from);
        Self::in_role(&config.name, role, &config.postgres, &config.stream, fold, shutdown)
    }

    /// The reaper's own consumer, to be driven with [`fold_up_to`](Self::fold_up_to). It does not connect to Redis.
    pub fn baseline(postgres: &PostgresArgs, stream: &StreamArgs, fold: F, shutdown: CancellationToken) -> Self {
        Self::in_role(BASELINE, Role::Baseline, postgres, stream, fold, shutdown)
    }

    fn in_role(
        name: &str,
        role: Role,
        postgres: &PostgresArgs,
        stream: &StreamArgs,
        fold: F,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            key: CheckpointKey { name: name.to_owned(), partition: stream.partition() },
            postgres: postgres.database_url.clone(),
            role,
            shutdown,
            fold,
            session: None,
            loaded: None,
            stream: StreamReader::new(stream),
            was_registered: false,
            counts: Counts::default(),
            rejected_to: EntryId { offset: 0, copy: 0 },
        }
    }

    /// The last committed offset that this process knows of, and the state at that offset.
    pub fn state(&self) -> Option<(i64, &F)> {
        self.loaded.as_ref().map(|loaded| (loaded.last_offset(), &self.fold))
    }

    /// Whether the stream could be read when it was last tried.
    pub(crate) fn reads_stream(&self) -> bool {
        self.stream.is_readable()
    }

    /// Waits up to `block` for entries (not at all if `None`), folds at most 1000 of them, and commits. If the stream has
    /// nothing to offer, or is away, the records that Postgres has beyond the checkpoint are read from there.
    ///
    /// # Errors
    /// A server is away, or an [`Interruption`]. Nothing is lost or counted twice: the next call loads the last commit.
    pub async fn run_once(&mut self, fault: Fault, block: Option<Duration>) -> Result<Progress> {
        let step = tokio::time::timeout(STEP_WAIT + block.unwrap_or_default(), self.step(fault, block)).await;
        self.forget_if_failed(step).await
    }

    /// Folds from Postgres alone, up to `last_offset` and at most ten pages of 1000 records. Returns whether it reached
    /// `last_offset`.
    ///
    /// # Errors
    /// As [`run_once`](Self::run_once).
    pub async fn fold_up_to(&mut self, last_offset: i64) -> Result<bool> {
        let step = tokio::time::timeout(STEP_WAIT, self.step_up_to(last_offset)).await;
        self.forget_if_failed(step).await
    }

    async fn step(&mut self, fault: Fault, block: Option<Duration>) -> Result<Progress> {
        let shutdown = self.shutdown.clone();
        let mut reading = self.load(fault, block).await?;
        let page = reading.read_page(&shutdown).await?;
        if !shutdown.is_cancelled() {
            reading.fold_page(page).await?;
        }
        Ok(reading.committer.progress)
    }

    async fn step_up_to(&mut self, last_offset: i64) -> Result<bool> {
        self.load(Fault::None, None).await?.committer.heal(last_offset).await
    }

    /// Connects, registers and loads the last commit, as far as needed.
    async fn load(&mut self, fault: Fault, block: Option<Duration>) -> Result<Reading<'_, F>> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                self.loaded = None;
                ConsumerSession::connect(&self.postgres, &self.key.name).await?
            }
        };
        let session = self.session.insert(session);
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => {
                let role = (!self.was_registered).then_some(self.role);
                Loaded::load(&mut session.client, &mut self.fold, &self.key, role).await?
            }
        };
        self.was_registered = true;
        let committer = Committer {
            key: &self.key,
            guard: Guard::of(self.role),
            fold: &mut self.fold,
            session,
            loaded: self.loaded.insert(loaded),
            counts: &mut self.counts,
            fault,
            progress: Progress::default(),
        };
        Ok(Reading { committer, stream: &mut self.stream, rejected_to: &mut self.rejected_to, block })
    }

    /// After a failure nothing in memory is trusted, and after silence no connection either.
    async fn forget_if_failed<T>(&mut self, step: Result<Result<T>, Elapsed>) -> Result<T> {
        let was_silent = step.is_err();
        let result = step.unwrap_or_else(|_| Err(anyhow!("no answer within {STEP_WAIT:?}")));
        if let Err(error) = &result {
            self.forget(error, was_silent).await;
        }
        result
    }

    async fn forget(&mut self, error: &Error, was_silent: bool) {
        self.loaded = None;
        // Entries that were counted and not committed will be met, and counted, again.
        self.counts = Counts { crash_count: self.counts.crash_count, ..Counts::default() };
        if matches!(error.downcast_ref(), Some(Interruption::Crash)) {
            self.counts.crash_count += 1;
        }
        let Some(session) = &mut self.session else { return };
        if was_silent || session.client.is_closed() {
            self.session = None;
            self.stream.disconnect();
        } else if session.roll_back().await.is_err() {
            self.session = None;
        }
    }
}
