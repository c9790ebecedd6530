//! A connected streamer, and its one bounded step: fix the order of staged records in Postgres, then append to the streams
//! the records that they lack.
//!
//! The lifetimes are nested. The [`LeaderSession`] with Postgres survives errors of Redis, and with it the locks. The
//! connections to Redis live within it, and survive no error.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::die;
use pglog::{Cut, Cutters, Partition, PartitionCount};
use stream::{Servers, Stream};
use tracing::debug;

use crate::appender::PageStarts;
use crate::config::Config;
use crate::fault::Fault;
use crate::foreign::read_end;
use crate::hints::{Hint, Hints};
use crate::leadership::{LeaderSession, LockPolicy};
use crate::publish::Published;
use crate::publisher::{Publisher, Waited};

/// A batch of at most so many records is read by the statement that cuts it, which saves a round trip. At moderate rates
/// nearly all batches are this small.
const SMALL_LEN_MAX: i64 = 100;

/// A step in which nothing is published follows hints for so long.
const HINTED_MAX: Duration = Duration::from_millis(500);

/// The result of [`Streamer::run_once`](crate::Streamer::run_once).
#[derive(Debug)]
pub enum Step {
    /// It published a page of one partition. There may be more.
    Published(Published),
    /// It has come closer to the next records: it counts a huge batch, or looks for a place in it. Or it has waited a while for a
    /// node that does not answer. The next step goes on.
    Searching,
    /// Everything staged is published, in the partitions that it leads.
    Idle,
    /// Other streamers lead its partitions.
    StandingBy,
}

/// The result of looking for staged records.
enum Looked {
    Nothing,
    Batch,
    Counting,
}

/// How long Redis may be away before a streamer leaves the membership, or gives up the lead of a log that is not cut.
pub(crate) const WITHOUT_REDIS_MAX: Duration = Duration::from_secs(10);

/// A streamer that is connected to Postgres. It leads partitions while its session holds their locks; otherwise it stands by.
pub(crate) struct Leader {
    session: LeaderSession,
    cutters: Cutters,
    servers: Servers,
    stream: Stream,
    hint: Arc<Hint>,
    hints: Hints,
    publisher: Publisher,
}

impl Leader {
    /// Connects to Postgres. While it leads, a hint that records were staged is passed on to `hint`.
    ///
    /// # Errors
    /// Postgres is away, the tables are of another version, or the log lacks one of the partitions.
    pub async fn connect(config: &Config, hint: Arc<Hint>, page_starts: PageStarts) -> Result<Self> {
        let (postgres, args) = (&config.postgres.database_url, &config.stream);
        let policy = if config.lead_without_lock { LockPolicy::Ignore } else { LockPolicy::Require };
        let session = LeaderSession::connect(postgres, &args.partitions, policy).await?;
        let stream = args.stream(&session.log);
        let publisher = Publisher::new(&args.redis_url, stream.clone(), session.is_shared(), page_starts);
        Ok(Self {
            session,
            cutters: Cutters::default(),
            servers: args.redis_url.clone(),
            stream,
            hints: Hints::new(postgres, Arc::clone(&hint)),
            hint,
            publisher,
        })
    }

    /// The partitions that it leads.
    pub fn led(&self) -> &BTreeSet<Partition> {
        self.session.led()
    }

    /// The number of partitions that the log has.
    pub fn partition_count(&self) -> PartitionCount {
        self.session.log.partitions
    }

    /// Whether records are known that a stream does not have, and that can be sent; or something is under way.
    pub fn has_more(&self) -> bool {
        self.publisher.has_more()
    }

    /// Whether its session should end after ten seconds in which every attempt on a stream has failed. A member of those that
    /// share the partitions stays while any node of Redis answers: one dead node moves no partition.
    pub async fn should_step_down(&mut self) -> bool {
        !self.session.is_shared() || (self.session.is_inside() && !self.reaches_redis().await)
    }

    /// Whether a node of Redis answers, or has answered lately.
    async fn reaches_redis(&mut self) -> bool {
        let keys: Vec<String> =
            self.session.log.partitions.partitions().map(|partition| self.stream.key(partition)).collect();
        self.publisher.nodes.has_answered_within(WITHOUT_REDIS_MAX)
            || self.publisher.nodes.gives_a_sign(keys.into_iter()).await
    }

    /// Publishes one page. Gives offsets to the records staged since, in the partitions of which no record is known to be missing,
    /// and looks at the streams' ends first.
    ///
    /// # Errors
    /// Postgres is away, or no partition can be published.
    pub async fn step(&mut self, fault: Fault) -> Result<Step> {
        self.keep_share().await?;
        if self.session.led().is_empty() {
            return Ok(Step::StandingBy);
        }
        self.hints.listen();
        let (began_at, mut may_look) = (Instant::now(), true);
        loop {
            self.publisher.take_answers(&self.session.client).await?;
            if let Some(result) = self.publisher.take_result() {
                return result.map(Step::Published);
            }
            self.publisher.send(&self.session.client, fault).await?;
            // Before any reply of Redis is waited for: consumers can read an assigned batch from Postgres, even while Redis is
            // away.
            if std::mem::take(&mut may_look) {
                match self.look().await? {
                    Looked::Batch if fault == Fault::DieAfterAssign => die(),
                    Looked::Batch => continue,
                    // The count would be lost with the leader if a Redis that is away failed this step.
                    Looked::Counting => return Ok(Step::Searching),
                    Looked::Nothing => {}
                }
            }
            match self.publisher.wait(&self.session.client, &self.hint).await? {
                Waited::Answered => {}
                // While one node is away and hints keep coming, the share is looked at all the same.
                Waited::Hinted if began_at.elapsed() >= HINTED_MAX => return Ok(Step::Searching),
                Waited::Hinted | Waited::LookAgain => may_look = true,
                Waited::InVain => return Ok(Step::Searching),
                Waited::Nothing if self.publisher.is_searching() => return Ok(Step::Searching),
                Waited::Nothing => return Ok(Step::Idle),
            }
        }
    }

    /// Takes and gives back partitions.
    async fn keep_share(&mut self) -> Result<()> {
        if self.session.is_look_due() {
            // A streamer that leads hears from Redis in its work.
            let asks = self.session.is_shared() && !self.session.is_inside();
            let reaches_redis = asks
                && if self.session.led().is_empty() {
                    self.reaches_redis().await
                } else {
                    self.publisher.nodes.has_answered_within(WITHOUT_REDIS_MAX)
                };
            self.session.look(reaches_redis).await?;
        }
        let nodes = &self.publisher.nodes;
        self.session.give_back(|partition| !nodes.is_asked_about(partition)).await?;
        let may_get_others = self.session.led().len() < self.session.wanted().len();
        self.publisher.lead(self.session.led(), self.session.excess(), may_get_others);
        Ok(())
    }

    /// Gives offsets to the records that were staged since the last batches.
    async fn look(&mut self) -> Result<Looked> {
        let (client, is_hinted) = (&self.session.client, self.hint.take());
        let partitions = self.publisher.to_cut();
        if partitions.is_empty() || (!is_hinted && !self.cutters.may_cut(client, &partitions).await?) {
            return Ok(Looked::Nothing);
        }
        // Tokens are not negative, so that they read the same in every language.
        let wanted: Vec<(Partition, i64)> =
            partitions.into_iter().map(|partition| (partition, rand::random::<i64>() & i64::MAX)).collect();
        let mut looked = Looked::Nothing;
        for (partition, cut) in self.cutters.cut(client, &wanted, SMALL_LEN_MAX).await? {
            looked = match (cut, looked) {
                (Cut::Nothing, looked) => looked,
                (Cut::Counting, Looked::Nothing) => Looked::Counting,
                (Cut::Counting, looked) => looked,
                (Cut::Batch(batch, page), _) => {
                    let (first_offset, record_count) = (batch.first_offset, batch.record_count);
                    debug!(partition = partition.number(), first_offset, record_count, "batch cut");
                    self.publisher.add_batch(batch, page);
                    Looked::Batch
                }
            };
        }
        Ok(looked)
    }

    /// Whether anything is not published yet in a partition that another streamer leads.
    ///
    /// # Errors
    /// A server is away, or Redis refuses.
    pub async fn is_anything_left_elsewhere(&mut self) -> Result<bool> {
        let elsewhere: Vec<Partition> =
            self.session.wanted().iter().copied().filter(|partition| !self.led().contains(partition)).collect();
        for partition in elsewhere {
            let key = self.stream.key(partition);
            let last_offset = read_end(&mut self.servers.wire(&key, Duration::ZERO).await?, &key).await?.offset;
            let client = &self.session.client;
            let head = pglog::head(client, partition).await?;
            // Records that every consumer has passed are not published again when the stream loses them.
            let passed = pglog::lowest_checkpoint(client, partition).await?.unwrap_or(0);
            if last_offset.max(passed) < head || pglog::is_anything_staged(client, partition).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
