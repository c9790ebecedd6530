//! The streamer between two steps: its memory, and which part of it an error takes away.
//!
//! Nothing that it remembers matters. A new streamer finds the same by asking Postgres for the order and the stream for
//! its end (I6, I7).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use pglog::{Partition, PartitionCount};
use tokio::time::Instant;
use tracing::warn;

use crate::appender::PageStarts;
use crate::config::Config;
use crate::fault::Fault;
use crate::hints::Hint;
use crate::leader::{Leader, Step, WITHOUT_REDIS_MAX};
use crate::leadership::STANDBY_WAIT;

/// The longest step. Servers bound their own work (30 s per statement); this bound is for a connection that answers
/// nothing any more, not even a refusal.
const STEP_WAIT: Duration = Duration::from_secs(45);

/// How long a streamer that stepped down does not ask for a lock: longer than a streamer that stands by takes to ask for it.
const STEP_ASIDE_WAIT: Duration = STANDBY_WAIT.saturating_mul(3);

/// Carries records from Postgres to Redis, one bounded step at a time.
pub struct Streamer {
    config: Config,
    hint: Arc<Hint>,
    /// `None` before the first step, and after an error of Postgres.
    leader: Option<Leader>,
    /// The first error of Redis since the last step that succeeded.
    without_redis_since: Option<Instant>,
    /// When the streamer may ask for a lock again after it stepped down.
    candidate_at: Option<Instant>,
    /// They outlive the leader.
    page_starts: PageStarts,
}

impl Streamer {
    /// Connects when first used.
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            hint: Arc::default(),
            leader: None,
            without_redis_since: None,
            candidate_at: None,
            page_starts: PageStarts::default(),
        }
    }

    /// Waits for a hint that a client staged a record. It may never come.
    pub async fn hinted(&self) {
        self.hint.arrived().await;
    }

    /// Gives offsets to the records that were staged since the last step, and publishes the next page of at most 1000
    /// records. If the log has several partitions, pages of others may be on their way when it returns.
    ///
    /// # Errors
    /// A server is away, or refuses, and no partition can be published. Nothing is lost or skipped: the next call finds out where
    /// the streams end.
    pub async fn run_once(&mut self, fault: Fault) -> Result<Step> {
        let step = tokio::time::timeout(STEP_WAIT, self.step(fault)).await;
        match (&step, &mut self.leader) {
            (Ok(Ok(_)), _) => self.without_redis_since = None,
            // Postgres was not concerned, so the locks are kept.
            (Ok(Err(error)), Some(_)) if !is_of_postgres(error) => self.step_down_if_redis_is_lost().await,
            // A session on which a statement fails may fail every later one, and it holds the lock. A new session, here or in
            // another streamer, does better. After silence no connection is trusted.
            _ => self.leader = None,
        }
        step.with_context(|| format!("no answer within {STEP_WAIT:?}"))?
    }

    async fn step_down_if_redis_is_lost(&mut self) {
        let since = *self.without_redis_since.get_or_insert_with(Instant::now);
        let Some(leader) = self.leader.as_mut().filter(|_| since.elapsed() >= WITHOUT_REDIS_MAX) else { return };
        self.without_redis_since = None;
        if leader.should_step_down().await {
            warn!(without_redis_s = since.elapsed().as_secs(), "stepping down: another streamer may reach redis");
            self.leader = None;
            self.candidate_at = Some(Instant::now() + STEP_ASIDE_WAIT);
        }
    }

    async fn step(&mut self, fault: Fault) -> Result<Step> {
        if let Some(candidate_at) = self.candidate_at {
            tokio::time::sleep_until(candidate_at).await;
            self.candidate_at = None;
        }
        let leader = match self.leader.take() {
            Some(leader) => leader,
            None => Leader::connect(&self.config, Arc::clone(&self.hint), self.page_starts.clone()).await?,
        };
        self.leader.insert(leader).step(fault).await
    }

    /// The partitions that this streamer leads.
    pub fn led(&self) -> BTreeSet<Partition> {
        self.leader.as_ref().map(Leader::led).cloned().unwrap_or_default()
    }

    /// The number of partitions that the log has; `None` while Postgres is away.
    pub(crate) fn partition_count(&self) -> Option<PartitionCount> {
        self.leader.as_ref().map(Leader::partition_count)
    }

    /// Whether a step that begins now may have something to do besides looking for staged records.
    pub(crate) fn has_more(&self) -> bool {
        self.leader.as_ref().is_some_and(Leader::has_more)
    }

    /// Whether everything staged is published in the partitions that other streamers lead. `false` while a server is away.
    pub(crate) async fn is_nothing_left(&mut self) -> bool {
        let Some(leader) = &mut self.leader else { return false };
        match tokio::time::timeout(STEP_WAIT, leader.is_anything_left_elsewhere()).await {
            Ok(Ok(is_anything_left)) => !is_anything_left,
            Ok(Err(error)) if !is_of_postgres(&error) => false,
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
