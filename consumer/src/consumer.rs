//! The consumer between two steps: its memory, and which part of it a failure takes away.
//!
//! It folds some partitions of the log, or all. Each has a checkpoint and a state of its own, a [`Part`]. They share one session
//! with Postgres. After any failure the consumer forgets all states and loads the last commits (I4, I5). A step borrows everything
//! it needs as a [`Step`], so that within a step the connection is there and the states are loaded.

mod clock;
mod commit;
mod elsewhere;
mod guard;
mod heal;
mod loaded;
mod look;
mod one_by_one;
mod pages;
mod part;
mod plain;
mod read;
mod session;
mod standby;
mod step;
mod together;

use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use pglog::{Identity, Partition, Partitions};
use stream::StreamArgs;
use tokio::time::error::Elapsed;

use crate::advice::Whose;
use crate::bootstrap::{BASELINE, Role, Start};
use crate::config::{Config, Databases};
use crate::fault::Fault;
use crate::kind::Fold;
use crate::outcome::{Interruption, Progress};
use crate::stream_reader::StreamReader;
use clock::Clock;
use guard::Guard;
use heal::HEAL_PAGES_MAX;
use part::Part;
use session::ConsumerSession;
use step::{Committers, Step};

/// The longest step. Servers bound their own work (30 s per statement); this bound is for a connection that answers
/// nothing any more, not even a refusal.
const STEP_WAIT: Duration = Duration::from_secs(45);

/// Folds the log into states, one bounded step at a time.
pub struct Consumer<F> {
    whose: Whose,
    databases: Databases,
    /// `None`: the baseline, which reads Postgres alone.
    stream: Option<StreamArgs>,
    role: Role,
    shutdown: CancellationToken,
    /// One per part, or one that serves all.
    folds: Vec<F>,
    /// `None` before the first step, and after the connection was lost.
    session: Option<ConsumerSession>,
    /// Empty until Postgres has said which partitions there are.
    parts: Vec<Part>,
    reader: StreamReader,
    clock: Clock,
    /// Crashes on purpose, to be counted with the next commit.
    crash_count: i64,
    was_registered: bool,
}

impl<F: Fold> Consumer<F> {
    /// Connects when first used. `shutdown` cuts short the wait for entries, and nothing else.
    pub fn new(config: &Config, fold: F, shutdown: CancellationToken) -> Self {
        let stream = config.stream.clone();
        let whose = Whose { name: config.name.clone(), partitions: stream.partitions.clone() };
        Self::in_role(whose, Role::Consumer(config.from), config.databases(), Some(stream), fold, shutdown)
    }

    /// The reaper's own consumer of a partition, to be driven with [`fold_up_to`](Self::fold_up_to). It does not connect to Redis.
    pub fn baseline(postgres: &PostgresArgs, partition: Partition, fold: F, shutdown: CancellationToken) -> Self {
        let whose = Whose { name: BASELINE.to_owned(), partitions: Partitions::Only(vec![partition]) };
        let databases = Databases { log: postgres.database_url.clone(), own: None, standby: None };
        Self::in_role(whose, Role::Baseline, databases, None, fold, shutdown)
    }

    fn in_role(
        whose: Whose,
        role: Role,
        databases: Databases,
        stream: Option<StreamArgs>,
        fold: F,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            whose,
            databases,
            reader: StreamReader::new(stream.as_ref().map(|stream| &stream.redis_url)),
            stream,
            role,
            shutdown,
            folds: vec![fold],
            session: None,
            parts: Vec::new(),
            clock: Clock::default(),
            crash_count: 0,
            was_registered: false,
        }
    }

    /// Registers in both databases a consumer whose state is elsewhere, also if it was unregistered before. Returns where it begins in
    /// each partition.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`].
    pub(crate) async fn register_elsewhere(&mut self, start: Start) -> Result<Vec<(Partition, i64)>> {
        self.role = Role::Anew(start);
        self.load(Fault::None, None).await?;
        Ok(self.parts.iter().map(|part| (part.key.partition, part.loaded().last_offset())).collect())
    }

    /// The last committed offset of the first partition that it folds, as far as this process knows, and the state at that offset.
    pub fn state(&self) -> Option<(i64, &F)> {
        let loaded = self.parts.first()?.loaded.as_ref()?;
        Some((loaded.last_offset(), &self.folds[0]))
    }

    /// In each partition: the last committed offset, the state at that offset, and the work of the last step.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Part, i64, &F)> {
        self.parts.iter().enumerate().filter_map(|(index, part)| {
            let last_offset = part.loaded.as_ref()?.last_offset();
            Some((part, last_offset, &self.folds[part::fold_of(index, self.folds.len())]))
        })
    }

    /// Whether every stream could be read when it was last tried.
    pub(crate) fn reads_streams(&self) -> bool {
        self.reader.is_readable()
    }

    /// Waits up to `block` for entries (not at all if `None`), folds at most some 4000 of them (1000 of one partition), and commits.
    /// If the streams have nothing to offer, or are away, the records that Postgres has beyond the checkpoints are read from there.
    ///
    /// # Errors
    /// A server is away, or an [`Interruption`]. Nothing is lost or counted twice: the next call loads the last commit.
    pub async fn run_once(&mut self, fault: Fault, block: Option<Duration>) -> Result<Progress> {
        let step = tokio::time::timeout(STEP_WAIT + block.unwrap_or_default(), self.step(fault, block)).await;
        self.forget_if_failed(step).await
    }

    /// Folds the first of its partitions from Postgres alone, up to `last_offset` and at most ten pages of 1000 records. Returns
    /// whether it reached `last_offset`.
    ///
    /// # Errors
    /// As [`run_once`](Self::run_once).
    pub async fn fold_up_to(&mut self, last_offset: i64) -> Result<bool> {
        let step = tokio::time::timeout(STEP_WAIT, self.step_up_to(last_offset)).await;
        self.forget_if_failed(step).await
    }

    async fn step(&mut self, fault: Fault, block: Option<Duration>) -> Result<Progress> {
        let shutdown = self.shutdown.clone();
        let mut step = self.load(fault, block).await?;
        step.run(&shutdown).await?;
        Ok(step.committers.progress())
    }

    async fn step_up_to(&mut self, last_offset: i64) -> Result<bool> {
        self.load(Fault::None, None).await?.committers.of(0).heal(last_offset, HEAL_PAGES_MAX).await
    }

    /// Connects, registers and loads the last commits, as far as needed.
    async fn load(&mut self, fault: Fault, block: Option<Duration>) -> Result<Step<'_, F>> {
        if self.session.is_none() {
            let (session, identity) = ConsumerSession::connect(&self.databases, &self.whose.name).await?;
            self.adopt(&identity)?;
            self.session = Some(session);
        }
        let session = self.session.as_mut().expect("it was just opened");
        if self.parts.iter().any(|part| part.loaded.is_none()) {
            let role = (!self.was_registered).then_some(self.role);
            let (folds, parts, whose) = (&mut self.folds, &mut self.parts, &self.whose);
            match session.both() {
                Some(both) => elsewhere::load(both, folds, parts, whose, role).await?,
                None => part::load(&mut session.client, folds, parts, whose, role).await?,
            }
            self.was_registered = true;
            self.clock.forget_told();
        }
        self.parts.iter_mut().for_each(|part| part.progress = Progress::default());
        let committers = Committers {
            whose: &self.whose,
            guard: Guard::of(self.role),
            parts: &mut self.parts,
            folds: &mut self.folds,
            session,
            crash_count: &mut self.crash_count,
            fault,
        };
        Ok(Step { committers, reader: &mut self.reader, clock: &mut self.clock, block })
    }

    /// Takes up what the log says of itself: which partitions there are, and the keys of their streams. Nothing is loaded then.
    ///
    /// # Errors
    /// An [`UnknownPartition`](pglog::UnknownPartition).
    fn adopt(&mut self, identity: &Identity) -> Result<()> {
        let partitions = self.whose.partitions.of(identity.partitions)?;
        let stream = self.stream.as_ref().map(|stream| stream.stream(identity));
        let keys = partitions.iter().filter_map(|partition| Some(stream.as_ref()?.key(*partition))).collect();
        self.reader.read_keys(keys);
        let is_cut = identity.partitions.number() > 1;
        let is_known = self.parts.iter().map(|part| part.key.partition).eq(partitions.iter().copied());
        if is_known {
            self.parts.iter_mut().for_each(|part| part.loaded = None);
            return Ok(());
        }
        self.parts = partitions.into_iter().map(|partition| Part::new(&self.whose.name, partition, is_cut)).collect();
        self.folds.truncate(1);
        while self.folds.len() < self.parts.len()
            && let Some(sibling) = self.folds[0].sibling()
        {
            self.folds.push(sibling);
        }
        Ok(())
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
        self.parts.iter_mut().for_each(Part::forget);
        if matches!(error.downcast_ref(), Some(Interruption::Crash)) {
            self.crash_count += 1;
        }
        let Some(session) = &mut self.session else { return };
        if was_silent || session.is_closed() {
            self.session = None;
            self.reader.disconnect();
        } else if session.roll_back().await.is_err() {
            self.session = None;
        }
    }
}
