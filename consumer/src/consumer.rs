//! The consumer's one step, and what it remembers between two steps. After any failure it forgets everything and loads
//! what Postgres committed (I4, I5).

mod commit;
mod heal;
mod read;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use common::backoff::Backoff;
use common::shutdown::CancellationToken;
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use pglog::Reader;
use stream::StreamArgs;
use stream::codec::{EntryId, decode_xread};
use tokio::time::error::Elapsed;
use tracing::warn;

use crate::Config;
use crate::bootstrap::{self, BASELINE};
use crate::checkpoint::{self, Counts, Mark, Saver};
use crate::fold::Fold;
use crate::outcome::{Fault, Interruption, Progress};
use crate::tail::Tail;
use crate::vouch::Vouchers;

/// The longest wait between two attempts while Redis is away.
const REDIS_WAIT_MAX: Duration = Duration::from_secs(2);

/// The longest step. Servers bound their own work (30 s a statement); this is for the connection on which no answer
/// comes any more, not even a refusal.
const STEP_WAIT: Duration = Duration::from_secs(45);

/// How long Postgres may take to forget a transaction.
const ROLLBACK_WAIT: Duration = Duration::from_secs(2);

/// Commits do not wait for the disk. What a crash of Postgres takes away is state and checkpoint together, and whatever was
/// committed later by anybody, such as the reaping of these records; then they are folded again.
const NO_FLUSH: &str = "SET synchronous_commit = off";

/// Folds the log into a state, one bounded step at a time.
pub struct Consumer<F> {
    fold: F,
    name: String,
    partition: i32,
    key: String,
    postgres: tokio_postgres::Config,
    redis: redis::Client,
    shutdown: CancellationToken,
    client: Option<Client>,
    /// BEGIN was sent, and neither COMMIT nor ROLLBACK was answered.
    is_in_transaction: bool,
    stream: Option<Tail>,
    redis_backoff: Backoff,
    /// Redis is away: when to try it again.
    redis_again_at: Option<Instant>,
    /// `None` after every failure: the state in memory may be ahead of what was committed.
    place: Option<Place>,
    was_registered: bool,
    counts: Counts,
    /// Entries up to here were counted when they were rejected; a stranger is met again until the streamer removes it.
    rejected_to: EntryId,
}

struct Place {
    /// The state reflects the records 1 … last_offset.
    mark: Mark,
    saver: Saver,
    /// Reading goes on after this entry. Its offset is never beyond the checkpoint.
    position: EntryId,
    vouchers: Vouchers,
    /// Where healing stopped, so that a large gap is not searched from its batch's start each time.
    healer: Option<Reader>,
}

/// Where records were read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Postgres has to vouch for their tokens before they are committed.
    Stream,
    Postgres,
}

impl<F: Fold> Consumer<F> {
    /// Connects when first used. `shutdown` cuts short the wait for entries, and nothing else.
    pub fn new(config: &Config, fold: F, shutdown: CancellationToken) -> Self {
        Self::named(&config.name, &config.postgres, &config.stream, fold, shutdown)
    }

    /// The reaper's own consumer, to be driven with [`fold_up_to`](Self::fold_up_to). It does not connect to Redis.
    pub fn baseline(postgres: &PostgresArgs, stream: &StreamArgs, fold: F, shutdown: CancellationToken) -> Self {
        Self::named(BASELINE, postgres, stream, fold, shutdown)
    }

    fn named(name: &str, postgres: &PostgresArgs, stream: &StreamArgs, fold: F, shutdown: CancellationToken) -> Self {
        Self {
            fold,
            name: name.to_owned(),
            partition: stream.partition,
            key: stream.key(),
            postgres: postgres.database_url.clone(),
            redis: stream.redis_url.clone(),
            shutdown,
            client: None,
            is_in_transaction: false,
            stream: None,
            redis_backoff: Backoff::up_to(REDIS_WAIT_MAX),
            redis_again_at: None,
            place: None,
            was_registered: false,
            counts: Counts::default(),
            rejected_to: EntryId { offset: 0, copy: 0 },
        }
    }

    /// The last committed offset that this process knows of, and the state at that offset.
    pub fn state(&self) -> Option<(i64, &F)> {
        self.place.as_ref().map(|place| (place.mark.last_offset, &self.fold))
    }

    /// Whether the stream could be read when it was last tried.
    pub(crate) fn reads_stream(&self) -> bool {
        self.redis_again_at.is_none()
    }

    /// Waits up to `block` for entries (not at all if `None`), folds at most 1000 of them, and commits. When the stream
    /// has nothing to offer, or is away, what Postgres has beyond the checkpoint is read from there.
    ///
    /// # Errors
    /// A server is away, or an [`Interruption`]. Nothing is lost or counted twice: the next call loads the last commit.
    pub async fn run_once(&mut self, fault: Fault, block: Option<Duration>) -> Result<Progress> {
        let step = tokio::time::timeout(STEP_WAIT + block.unwrap_or_default(), self.step(fault, block)).await;
        self.believe(step).await
    }

    /// Folds from Postgres alone, up to `last_offset` and at most ten pages of 1000 records. Returns whether it is there.
    ///
    /// # Errors
    /// As [`run_once`](Self::run_once).
    pub async fn fold_up_to(&mut self, last_offset: i64) -> Result<bool> {
        let step = tokio::time::timeout(STEP_WAIT, self.step_up_to(last_offset)).await;
        self.believe(step).await
    }

    async fn step_up_to(&mut self, last_offset: i64) -> Result<bool> {
        self.load().await?;
        self.heal(last_offset, &mut Fault::None, &mut Progress::default()).await
    }

    /// After a failure nothing in memory is believed, and after a silence no connection either.
    async fn believe<T>(&mut self, step: Result<Result<T>, Elapsed>) -> Result<T> {
        let was_silent = step.is_err();
        let result = step.unwrap_or_else(|_| Err(anyhow!("no answer within {STEP_WAIT:?}")));
        if let Err(error) = &result {
            self.place = None;
            // What was not committed will be met, and counted, again.
            self.counts = Counts { crash_count: self.counts.crash_count, ..Counts::default() };
            if matches!(error.downcast_ref(), Some(Interruption::Crash)) {
                self.counts.crash_count += 1;
            }
            if was_silent || self.client.as_ref().is_some_and(|client| client.is_closed()) {
                (self.client, self.stream) = (None, None);
            }
            self.roll_back().await;
        }
        result
    }

    /// Ends a transaction that is not to be committed. A connection on which that fails is given up, which ends it too.
    async fn roll_back(&mut self) {
        if std::mem::take(&mut self.is_in_transaction)
            && let Some(client) = self.client.take()
            && let Ok(Ok(())) = tokio::time::timeout(ROLLBACK_WAIT, client.batch_execute("ROLLBACK")).await
        {
            self.client = Some(client);
        }
    }

    async fn step(&mut self, mut fault: Fault, block: Option<Duration>) -> Result<Progress> {
        self.load().await?;
        let mut progress = Progress::default();
        let page = self.read_stream(block).await;
        if self.shutdown.is_cancelled() {
            return Ok(progress);
        }
        let entries = match &page {
            Ok(page) => decode_xread(page).map_err(anyhow::Error::from),
            Err(error) => Err(anyhow!("{error:#}")),
        };
        if entries.is_ok() && self.redis_again_at.is_none() {
            self.redis_backoff.reset();
        }
        match entries {
            Ok(entries) if entries.is_empty() => self.catch_up(&mut fault, &mut progress).await?,
            Ok(entries) => self.fold_entries(&entries, block, &mut fault, &mut progress).await?,
            Err(error) => {
                // A connection on which a reply is overdue is of no use any more.
                self.stream = None;
                let wait = self.redis_backoff.next_wait();
                self.redis_again_at = Some(Instant::now() + wait);
                warn!(
                    consumer = self.name,
                    error = format!("{error:#}"),
                    wait_ms = wait.as_millis() as u64,
                    "the stream cannot be read, reading on from Postgres"
                );
                self.catch_up(&mut fault, &mut progress).await?;
            }
        }
        Ok(progress)
    }

    /// Connects, registers and loads what is committed, as far as needed.
    async fn load(&mut self) -> Result<()> {
        if self.client.is_none() {
            self.place = None;
            let client = connect::postgres::connect(&self.postgres, &format!("consumer {}", self.name), || {}).await?;
            pglog::prepare_session(&client).await.context("setting up the session")?;
            client.batch_execute(NO_FLUSH).await.context("setting up the session")?;
            self.client = Some(client);
        }
        if self.place.is_some() {
            return Ok(());
        }
        let client = self.client.as_mut().context("no connection")?;
        let tx = client.transaction().await.context("beginning to load")?;
        let mark = match checkpoint::find(&tx, &self.name, self.partition).await? {
            Some(mark) => mark,
            None if self.was_registered => return Err(Interruption::Unregistered.into()),
            None => bootstrap::register(&tx, &self.fold, &self.name, self.partition).await?,
        };
        self.fold.load(&tx, &self.name, self.partition).await?;
        tx.commit().await.context("committing the registration")?;
        self.was_registered = true;
        let position = EntryId { offset: mark.last_offset, copy: 0 };
        self.place =
            Some(Place { mark, saver: Saver::default(), position, vouchers: Vouchers::default(), healer: None });
        Ok(())
    }

    fn checkpoint(&self) -> Result<i64> {
        Ok(self.place.as_ref().context("nothing is loaded")?.mark.last_offset)
    }

    fn parts(&mut self) -> Result<(&Client, &mut Place)> {
        let client = self.client.as_ref().context("no connection")?;
        Ok((client, self.place.as_mut().context("nothing is loaded")?))
    }
}
