//! The streamer's one step, and what it remembers between two steps. Nothing it remembers matters: a new streamer finds
//! the same by asking Postgres for the order and the stream for its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::fault::die;
use deadpool_postgres::ClientWrapper;
use pglog::{Page, Reader};
use stream::end::StreamEnd;
use stream::wire::Wire;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::Config;
use crate::foreign::{read_end, set_aside};
use crate::leadership::{Claim, Post};
use crate::publish::{Fault, encode, send, tell};

/// Records a pipeline. Enough to make round trips cheap, and a few hundred kilobytes at most.
const BATCH_LEN_MAX: i64 = 1000;

/// A batch of at most so many records is read by the statement that cuts it, which saves a round trip: at moderate rates
/// nearly all are so small.
const SMALL_LEN_MAX: i64 = 100;

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
    stream: Option<Wire>,
    /// Where publishing goes on; `None` after every doubt.
    place: Option<Place>,
    /// Where the last page began. After a doubt publishing mostly goes on there or a little later, and in a batch of
    /// millions it takes long to find the place from the batch's beginning.
    page_start: Option<Reader>,
    /// The id of the stream's end whose entry was last seen to be ours, so that an idle stream is compared once.
    vouched_id: Option<String>,
}

struct Place {
    /// The offset of the first record that the stream does not have.
    next_offset: i64,
    /// The highest offset that is known to be assigned.
    head: i64,
    /// Stands behind what was read, published or not.
    reader: Option<Reader>,
    /// Read ahead, to be published next.
    ready: Option<Ready>,
    /// When the stream's end was last seen to be `next_offset - 1`.
    checked_at: Instant,
}

/// A page to be published, and where it begins.
struct Ready {
    page: Page,
    start: Reader,
}

impl Ready {
    async fn read(reader: &mut Reader, client: &ClientWrapper) -> Result<Self, pglog::Error> {
        let start = reader.clone();
        let page = reader.next_page(client, BATCH_LEN_MAX).await?;
        Ok(Self { page, start })
    }
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
        let mut next = if self.is_behind_head() { self.read_page().await? } else { None };
        if next.is_none() {
            // Before the stream is asked for anything: the order is fixed, and consumers may read on from Postgres,
            // even while Redis is away.
            if self.assign().await? && fault == Fault::DieAfterAssign {
                die();
            }
            self.check_place().await?;
            // Nobody else cuts batches while we lead. Should somebody all the same, the next check finds them.
            if self.is_behind_head() {
                next = self.read_page().await?;
            }
        }
        match next {
            Some(next) => self.publish(next, fault).await.map(Step::Published),
            None => Ok(Step::Idle),
        }
    }

    /// Whether records are known to be there that are to be published. If not, a look at what was staged since comes first.
    pub(crate) fn is_behind_head(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.next_offset <= place.head)
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
        let cut = pglog::assign_and_read(&post.client, self.partition, token, SMALL_LEN_MAX).await?;
        let Some((batch, page)) = cut else { return Ok(false) };
        debug!(first_offset = batch.first_offset, record_count = batch.record_count, "batch cut");
        if let Some(place) = &mut self.place {
            place.head = batch.last_offset();
            if place.next_offset == batch.first_offset {
                let start = Reader::at_start_of(batch);
                let reader = place.reader.insert(start.clone());
                if let Some(page) = page {
                    reader.pass(&page);
                    place.ready = Some(Ready { page, start });
                }
            }
        }
        Ok(true)
    }

    async fn read_end(&mut self) -> Result<StreamEnd> {
        if self.stream.is_none() {
            self.stream = Some(Wire::connect(&self.redis, Duration::ZERO).await?);
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
        if let Some(place) = &mut self.place {
            place.head = head;
        }
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
        self.place = Some(Place { next_offset, head, reader: None, ready: None, checked_at: Instant::now() });
        Ok(())
    }

    /// Whether the stream's last entry is of another log: Postgres was put back, and has grown past the stream's end since.
    async fn is_strange(&mut self, end: &StreamEnd) -> Result<bool> {
        let Some(offset) = end.entry_offset() else { return Ok(false) };
        if self.vouched_id.as_ref() == Some(&end.id) {
            return Ok(false);
        }
        let client = &self.post.as_ref().context("no connection")?.client;
        let token = pglog::token_at(client, self.partition, offset)
            .await
            .context("looking up the token of the stream's last entry")?;
        let is_strange = token.is_some_and(|token| end.is_strange(token));
        self.vouched_id = (!is_strange).then(|| end.id.clone());
        Ok(is_strange)
    }

    /// The next records to publish; none at the head, or while it is not known where the stream ends.
    async fn read_page(&mut self) -> Result<Option<Ready>> {
        let Some(place) = &mut self.place else { return Ok(None) };
        if let Some(ready) = place.ready.take() {
            return Ok(Some(ready));
        }
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
                    Err(pglog::Error::Unassigned { .. }) => return Ok(None),
                    Err(error) => return Err(error.into()),
                },
            };
        }
        let reader = place.reader.as_mut().context("no reader")?;
        let ready = Ready::read(reader, client).await.context("reading records to publish")?;
        Ok((!ready.page.is_empty()).then_some(ready))
    }

    /// Appends the page, and reads the next one of the batch meanwhile: Redis and Postgres work side by side.
    async fn publish(&mut self, Ready { page, start }: Ready, fault: Fault) -> Result<Published> {
        let started_at = Instant::now();
        self.page_start = Some(start);
        let stream = self.stream.as_mut().context("no connection")?;
        let copies = if fault == Fault::SendTwice { 2 } else { 1 };
        if fault == Fault::DieMidPipeline {
            send(stream, &encode(&self.key, page.records().take(page.len() / 2), copies)).await?;
            die();
        }
        let commands = encode(&self.key, page.records(), copies);
        let client = &self.post.as_ref().context("no connection")?.client;
        let (sent, ready) = tokio::join!(send(stream, &commands), read_ahead(&mut self.place, client));
        let mut sent = sent?;
        if fault == Fault::DieAfterPublish {
            die();
        }
        if fault == Fault::ResendBatch {
            sent += send(stream, &commands).await?;
        }
        let published = Published {
            first_offset: page.first_offset(),
            record_count: page.len(),
            added_count: sent.added_count,
            refused_count: sent.refused_count,
            elapsed: started_at.elapsed(),
        };
        let refused_by_injection = if fault == Fault::ResendBatch { commands.count() } else { 0 };
        if sent.refused_count > refused_by_injection {
            // We began where the stream ended. So somebody else appends to it: another leader, or a stranger.
            warn!(
                first_offset = published.first_offset,
                refused_count = sent.refused_count,
                "entries refused that nobody else should have sent"
            );
            self.place = None;
        } else if let Some(place) = &mut self.place {
            place.next_offset += page.len() as i64;
            place.ready = ready;
        }
        tell(&self.key, &page, published.elapsed);
        Ok(published)
    }
}

/// The next page, if there is one. An error is nobody's yet: whoever needs the page reads it
/// again, and meets the error if it is still there.
async fn read_ahead(place: &mut Option<Place>, client: &ClientWrapper) -> Option<Ready> {
    let place = place.as_mut()?;
    let head = place.head;
    let reader = place.reader.as_mut().filter(|reader| reader.next_offset() <= head)?;
    Ready::read(reader, client).await.ok().filter(|ready| !ready.page.is_empty())
}
