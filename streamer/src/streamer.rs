//! The streamer between two steps: its memory, and which part of it an error takes away.
//!
//! Nothing that it remembers matters. A new streamer finds the same by asking Postgres for the order and the stream for
//! its end (I6, I7).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use pglog::Reader;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::appender::StreamAddress;
use crate::config::Config;
use crate::fault::Fault;
use crate::leader::{Leader, Step};
use crate::leadership::{LockPolicy, STANDBY_WAIT};

/// The longest step. Servers bound their own work (30 s per statement); this bound is for a connection that answers
/// nothing any more, not even a refusal.
const STEP_WAIT: Duration = Duration::from_secs(45);

/// A leader that cannot use Redis for so long ends its session, because another streamer may reach Redis.
const WITHOUT_REDIS_MAX: Duration = Duration::from_secs(10);

/// How long it does not ask for the lock then: longer than a streamer that stands by takes to ask for it.
const STEP_ASIDE_WAIT: Duration = STANDBY_WAIT.saturating_mul(3);

/// Carries records from Postgres to Redis, one bounded step at a time.
pub struct Streamer {
    postgres: tokio_postgres::Config,
    address: StreamAddress,
    lock_policy: LockPolicy,
    hint: Arc<Notify>,
    /// `None` before the first step, and after an error of Postgres.
    leader: Option<Leader>,
    /// The first error of Redis since the last step that succeeded.
    without_redis_since: Option<Instant>,
    /// When the streamer may ask for the lock again after it stepped down.
    candidate_at: Option<Instant>,
    /// Where the last page began. After an error publishing mostly goes on there or a little later, and in a batch of
    /// millions it takes long to find the place from the batch's beginning.
    page_start: Option<Reader>,
}

impl Streamer {
    /// Connects when first used.
    pub fn new(config: &Config) -> Self {
        Self {
            postgres: config.postgres.database_url.clone(),
            address: StreamAddress::new(&config.stream),
            lock_policy: if config.lead_without_lock { LockPolicy::Ignore } else { LockPolicy::Require },
            hint: Arc::new(Notify::new()),
            leader: None,
            without_redis_since: None,
            candidate_at: None,
            page_start: None,
        }
    }

    /// Waits for a hint that a client staged a record. It may never come.
    pub async fn hinted(&self) {
        self.hint.notified().await;
    }

    /// Gives offsets to the records that were staged since the last step, and publishes the next page of at most 1000
    /// records.
    ///
    /// # Errors
    /// A server is away, or refuses. Nothing is lost or skipped: the next call finds out where the stream ends.
    pub async fn run_once(&mut self, fault: Fault) -> Result<Step> {
        let step = tokio::time::timeout(STEP_WAIT, self.step(fault)).await;
        match (&step, &mut self.leader) {
            (Ok(Ok(_)), _) => self.without_redis_since = None,
            // The pipeline may or may not have arrived: the next step asks the stream, on a new connection. Postgres was
            // not concerned, so the lock is kept.
            (Ok(Err(error)), Some(leader)) if !is_of_postgres(error) => {
                leader.forget_stream();
                self.step_down_if_redis_is_lost();
            }
            // A session on which a statement fails may fail every later one, and it holds the lock. A new session, here or in
            // another streamer, does better. After silence no connection is trusted.
            _ => self.leader = None,
        }
        step.with_context(|| format!("no answer within {STEP_WAIT:?}"))?
    }

    fn step_down_if_redis_is_lost(&mut self) {
        let since = *self.without_redis_since.get_or_insert_with(Instant::now);
        if since.elapsed() < WITHOUT_REDIS_MAX {
            return;
        }
        warn!(without_redis_s = since.elapsed().as_secs(), "stepping down: another streamer may reach redis");
        self.leader = None;
        self.without_redis_since = None;
        self.candidate_at = Some(Instant::now() + STEP_ASIDE_WAIT);
    }

    async fn step(&mut self, fault: Fault) -> Result<Step> {
        if let Some(candidate_at) = self.candidate_at {
            tokio::time::sleep_until(candidate_at).await;
            self.candidate_at = None;
        }
        let leader = match self.leader.take() {
            Some(leader) => leader,
            None => Leader::connect(&self.postgres, &self.address, self.hint.clone(), self.lock_policy).await?,
        };
        self.leader.insert(leader).step(fault, &mut self.page_start).await
    }

    /// Whether this streamer leads.
    pub(crate) fn leads(&self) -> bool {
        self.leader.as_ref().is_some_and(Leader::leads)
    }

    /// Whether records are known that the stream does not have. If not, the next step looks for staged records first.
    pub(crate) fn is_behind_head(&self) -> bool {
        self.leader.as_ref().is_some_and(Leader::is_behind_head)
    }

    /// Whether everything staged is published, as a streamer that stands by sees it. `false` while a server is away.
    pub(crate) async fn is_nothing_left(&mut self) -> bool {
        let Some(leader) = &mut self.leader else { return false };
        match tokio::time::timeout(STEP_WAIT, leader.is_anything_left()).await {
            Ok(Ok(is_anything_left)) => !is_anything_left,
            Ok(Err(_)) | Err(_) => {
                self.leader = None;
                false
            }
        }
    }
}

fn is_of_postgres(error: &Error) -> bool {
    error.chain().any(|cause| cause.is::<tokio_postgres::Error>() || cause.is::<pglog::Error>())
}
