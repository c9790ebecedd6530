//! The streamer's one step, and what it remembers between two steps. Nothing it remembers matters: a new streamer finds
//! the same by asking Postgres for the order and the stream for its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::fault::die;
use pglog::{Reader, Record};
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::Config;
use crate::leadership::{Claim, Post};
use crate::publish::{Fault, send};
use crate::stream_end::{StreamEnd, read_end, set_aside};

/// Records a pipeline. Enough to make round trips cheap, and a few hundred kilobytes at most.
const BATCH_LEN_MAX: i64 = 1000;

/// How often an idle leader compares the stream's end with the log: how long a wiped Redis goes unnoticed.
const STREAM_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The longest step. Servers bound their own work (30 s a statement); this is for the connection on which no answer
/// comes any more, not even a refusal.
const STEP_WAIT: Duration = Duration::from_secs(45);

/// What [`Streamer::run_once`] did.
#[derive(Debug)]
pub enum Step {
    /// It published records. There may be more.
    Published(Published),
    /// Everything staged is published.
    Idle,
    /// Another streamer leads.
    StandingBy,
}

/// What was published.
#[derive(Debug, Clone, Copy)]
pub struct Published {
    /// The first record's offset.
    pub first_offset: i64,
    /// How many records, at least 1.
    pub record_count: usize,
    /// How many stream entries were added: more than `record_count` when records were sent twice.
    pub added_count: usize,
    /// How many entries Redis refused because it had them.
    pub refused_count: usize,
    /// How long appending took.
    pub elapsed: Duration,
}

impl Published {
    /// The last record's offset.
    pub fn last_offset(&self) -> i64 {
        self.first_offset + self.record_count as i64 - 1
    }
}

/// Carries records from Postgres to Redis, one bounded step at a time.
pub struct Streamer {
    postgres: tokio_postgres::Config,
    redis: redis::Client,
    key: String,
    partition: i32,
    hint: Arc<Notify>,
    claim: Claim,
    post: Option<Post>,
    stream: Option<MultiplexedConnection>,
    /// Where publishing goes on; `None` after every doubt.
    place: Option<Place>,
    /// Where the last page began. After a doubt publishing mostly goes on there or a little later, and in a batch of
    /// millions it takes long to find the place from the batch's beginning.
    page_start: Option<Reader>,
    /// The id of the stream's end whose entry was last seen to be ours, so that an idle stream is compared once.
    vouched_id: Option<String>,
}

struct Place {
    next_offset: i64,
    reader: Option<Reader>,
    /// When the stream's end was last seen to be `next_offset - 1`.
    checked_at: Instant,
}

impl Streamer {
    /// Connects when first used.
    pub fn new(config: &Config) -> Self {
        Self {
            postgres: config.postgres.database_url.clone(),
            redis: config.stream.redis_url.clone(),
            key: config.stream.key(),
            partition: config.stream.partition,
            hint: Arc::new(Notify::new()),
            claim: if config.lead_without_lock { Claim::Anyway } else { Claim::ByLock },
            post: None,
            stream: None,
            place: None,
            page_start: None,
            vouched_id: None,
        }
    }

    /// Waits for a hint that something was staged. It may never come.
    pub async fn hinted(&self) {
        self.hint.notified().await;
    }

    /// Gives offsets to what was staged since, and publishes the next page of at most 1000 records.
    ///
    /// # Errors
    /// A server is away, or refuses. Nothing is lost or skipped: the next call finds out where the stream ends.
    pub async fn run_once(&mut self, fault: Fault) -> Result<Step> {
        let step = tokio::time::timeout(STEP_WAIT, self.step(fault)).await;
        if !matches!(step, Ok(Ok(_))) {
            // What was sent may or may not have arrived. Ask again; and a connection that failed once is not asked again.
            self.place = None;
            self.vouched_id = None;
            self.stream = None;
            // An error of Postgres that comes with a sound connection may come with every statement on it: the server
            // was made read-only, say, and another one leads now. A new connection finds out.
            let by_postgres =
                matches!(&step, Ok(Err(error)) if error.chain().any(|cause| cause.is::<tokio_postgres::Error>()));
            if step.is_err() || by_postgres {
                self.post = None;
            }
        }
        step.with_context(|| format!("no answer within {STEP_WAIT:?}"))?
    }

    async fn step(&mut self, fault: Fault) -> Result<Step> {
        if self.post.is_none() {
            self.post = Some(Post::connect(&self.postgres, self.hint.clone(), self.claim).await?);
        }
        let post = self.post.as_mut().context("no connection")?;
        if !post.leads(self.partition).await? {
            self.place = None;
            return Ok(Step::StandingBy);
        }
        let mut page = self.read_page().await?;
        if page.is_empty() {
            // Before the stream is asked for anything: the order is fixed, and consumers may read on from Postgres,
            // even while Redis is away.
            if self.assign().await? && fault == Fault::DieAfterAssign {
                die();
            }
            self.check_place().await?;
            page = self.read_page().await?;
        }
        if page.is_empty() {
            return Ok(Step::Idle);
        }
        self.publish(&page, fault).await.map(Step::Published)
    }

    /// Whether everything staged is published, seen from beside the leader. When a server is away that cannot be told yet.
    pub(crate) async fn nothing_left(&mut self) -> bool {
        let looked = tokio::time::timeout(STEP_WAIT, self.look_for_more()).await;
        if !matches!(looked, Ok(Ok(_))) {
            (self.post, self.stream) = (None, None);
        }
        matches!(looked, Ok(Ok(false)))
    }

    async fn look_for_more(&mut self) -> Result<bool> {
        let last_offset = self.read_end().await?.offset;
        let client = &self.post.as_ref().context("no connection")?.client;
        let head = pglog::head(client, self.partition).await?;
        // What every consumer has passed is not published again when the stream loses it.
        let passed = pglog::lowest_checkpoint(client, self.partition).await?.unwrap_or(0);
        Ok(last_offset.max(passed) < head || pglog::is_anything_staged(client, self.partition).await?)
    }

    /// Whether a batch was cut.
    async fn assign(&mut self) -> Result<bool> {
        let post = self.post.as_mut().context("no connection")?;
        // Not negative, so that it reads the same in every language.
        let token = rand::random::<i64>() & i64::MAX;
        let batch = pglog::assign(&post.client, self.partition, token).await?;
        if let Some(batch) = &batch {
            debug!(first_offset = batch.first_offset, record_count = batch.record_count, "batch cut");
        }
        Ok(batch.is_some())
    }

    async fn read_end(&mut self) -> Result<StreamEnd> {
        if self.stream.is_none() {
            self.stream = Some(common::redis::connect(&self.redis).await?);
        }
        read_end(self.stream.as_mut().context("no connection")?, &self.key).await
    }

    /// Makes sure that `place` is where the stream ends: after a doubt at once, otherwise every second.
    async fn check_place(&mut self) -> Result<()> {
        if let Some(place) = &mut self.place {
            if place.checked_at.elapsed() < STREAM_CHECK_INTERVAL {
                return Ok(());
            }
            place.checked_at = Instant::now();
        }
        let mut end = self.read_end().await?;
        // Read after the stream's end: whatever a true leader published was assigned before, so a stream that is ahead
        // of this head holds entries of no log we know.
        let client = &self.post.as_ref().context("no connection")?.client;
        let head = pglog::head(client, self.partition).await?;
        let found = if end.offset > head {
            Some("it ends beyond the head: its last entries are of no record")
        } else if self.is_strange(&end).await? {
            Some("its last entry does not carry the token of the record at its offset")
        } else {
            None
        };
        if let Some(found) = found {
            warn!(
                found,
                last_id = end.id,
                head,
                key = self.key,
                "the stream is not of this log (was the database restored?): set aside and built anew"
            );
            set_aside(self.stream.as_mut().context("no connection")?, &self.key, &end).await?;
            end = self.read_end().await?;
        }
        let last_offset = end.offset;
        let client = &self.post.as_ref().context("no connection")?.client;
        if self.place.as_ref().is_some_and(|place| place.next_offset == last_offset + 1) {
            return Ok(());
        }
        // Records that every consumer has passed need not be published again, and reaped ones cannot be.
        let passed = pglog::lowest_checkpoint(client, self.partition).await?.unwrap_or(0);
        let retained = pglog::first_retained(client, self.partition).await?;
        let next_offset = (last_offset.max(passed) + 1).max(retained);
        if self.place.as_ref().is_some_and(|place| place.next_offset == next_offset) {
            return Ok(());
        }
        if let Some(place) = &self.place {
            warn!(
                expected = place.next_offset - 1,
                last_offset, next_offset, "the stream lost entries: publishing again"
            );
        } else {
            info!(last_offset, head, next_offset, "publishing goes on where the stream ends");
        }
        self.place = Some(Place { next_offset, reader: None, checked_at: Instant::now() });
        Ok(())
    }

    /// Whether the stream's last entry is of another log: Postgres was put back, and has grown past the stream's end since.
    async fn is_strange(&mut self, end: &StreamEnd) -> Result<bool> {
        let Some(entry) = &end.entry else { return Ok(false) };
        if self.vouched_id.as_ref() == Some(&end.id) {
            return Ok(false);
        }
        let client = &self.post.as_ref().context("no connection")?.client;
        let ranges = pglog::batch_ranges(client, self.partition, entry.id.offset, 1)
            .await
            .context("looking up the token of the stream's last entry")?;
        let is_strange = end.is_strange(ranges.first());
        self.vouched_id = (!is_strange).then(|| end.id.clone());
        Ok(is_strange)
    }

    /// The next records to publish; none at the head, or while it is not known where the stream ends.
    async fn read_page(&mut self) -> Result<Vec<Record>> {
        let Some(place) = &mut self.place else { return Ok(Vec::new()) };
        let client = &self.post.as_ref().context("no connection")?.client;
        if place.reader.is_none() {
            let mut start = self.page_start.take();
            let near = match &mut start {
                Some(reader) => reader.move_to(client, place.next_offset).await?,
                None => false,
            };
            place.reader = match start {
                Some(reader) if near => Some(reader),
                _ => match Reader::at(client, self.partition, place.next_offset).await {
                    Ok(reader) => Some(reader),
                    Err(pglog::Error::Unassigned { .. }) => return Ok(Vec::new()),
                    Err(error) => return Err(error.into()),
                },
            };
        }
        let reader = place.reader.as_mut().context("no reader")?;
        self.page_start = Some(reader.clone());
        reader.next_page(client, BATCH_LEN_MAX).await.context("reading records to publish")
    }

    async fn publish(&mut self, page: &[Record], fault: Fault) -> Result<Published> {
        let started_at = Instant::now();
        let stream = self.stream.as_mut().context("no connection")?;
        let copies = if fault == Fault::SendTwice { 2 } else { 1 };
        if fault == Fault::DieMidPipeline {
            send(stream, &self.key, &page[..page.len() / 2], copies).await?;
            die();
        }
        let mut sent = send(stream, &self.key, page, copies).await?;
        if fault == Fault::DieAfterPublish {
            die();
        }
        if sent.refused_count > 0 {
            // We began where the stream ended. So somebody else appends to it: another leader, or a stranger.
            warn!(
                first_offset = page[0].offset,
                refused_count = sent.refused_count,
                "entries refused that nobody else should have sent"
            );
            self.place = None;
        } else if let Some(place) = &mut self.place {
            place.next_offset += page.len() as i64;
        }
        if fault == Fault::ResendBatch {
            let again = send(stream, &self.key, page, copies).await?;
            sent.added_count += again.added_count;
            sent.refused_count += again.refused_count;
        }
        for record in page {
            debug!(offset = record.offset, object = record.object, action = record.action, "record published");
        }
        Ok(Published {
            first_offset: page[0].offset,
            record_count: page.len(),
            added_count: sent.added_count,
            refused_count: sent.refused_count,
            elapsed: started_at.elapsed(),
        })
    }
}
