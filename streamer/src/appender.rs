//! The stream as the leader sees it: a connection to Redis, and where publishing goes on.
//!
//! The appender adds entries in offset order, beginning right behind the stream's end. It looks at the end before its
//! first page, and then once a second, so a wiped or restored Redis is noticed.

use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::die;
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Reader};
use stream::StreamArgs;
use stream::end::StreamEnd;
use stream::wire::Wire;
use tracing::{info, warn};

use crate::cursor::{Cursor, ReadyPage, resume_offset};
use crate::fault::Fault;
use crate::foreign::{has_foreign_entry, read_end, set_aside};
use crate::publish::{Published, Sent, encode, send, trace_page};

/// How often an idle leader compares the stream's end with the log: how long a wiped Redis goes unnoticed.
const END_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Which stream to append to.
#[derive(Clone)]
pub(crate) struct StreamAddress {
    redis: redis::Client,
    key: String,
    /// The partition of the log that the stream is a copy of.
    pub partition: Partition,
}

impl StreamAddress {
    pub fn new(args: &StreamArgs) -> Self {
        Self { redis: args.redis_url.first().clone(), key: args.key(), partition: args.partition() }
    }
}

/// Appends pages to the stream. It is dropped at the first error: a pipeline that failed may or may not have arrived, so
/// connection and cursor are both in doubt.
pub(crate) struct Appender {
    address: StreamAddress,
    wire: Wire,
    /// The id of the stream's end when its entry was last seen to be of this log, so that an idle stream is compared once.
    vouched_id: Option<String>,
    /// `None` before the first look at the stream's end, and while it is in doubt.
    cursor: Option<Cursor>,
}

impl Appender {
    /// # Errors
    /// Redis is away.
    pub async fn connect(address: &StreamAddress) -> Result<Self> {
        let wire = Wire::connect(&address.redis, Duration::ZERO).await?;
        Ok(Self { address: address.clone(), wire, vouched_id: None, cursor: None })
    }

    pub fn cursor(&mut self) -> Option<&mut Cursor> {
        self.cursor.as_mut()
    }

    /// Whether records are known that the stream does not have.
    pub fn is_behind_head(&self) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::is_behind_head)
    }

    /// Whether it is on its way to the records that come next.
    pub fn is_searching(&self) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::is_searching)
    }

    /// Forgets where publishing goes on: the next [`check_end`](Self::check_end) finds out.
    pub fn forget_cursor(&mut self) {
        self.cursor = None;
    }

    /// The offset of the stream's last entry, 0 if there is no stream.
    ///
    /// # Errors
    /// Redis is away, or refuses.
    pub async fn last_offset(&mut self) -> Result<i64> {
        Ok(read_end(&mut self.wire, &self.address.key).await?.offset)
    }

    /// Makes sure that the cursor stands right behind the stream's end: at once if it is in doubt, otherwise every second.
    ///
    /// # Errors
    /// A server is away, or Redis refuses.
    pub async fn check_end(&mut self, client: &Client) -> Result<()> {
        if let Some(cursor) = &mut self.cursor {
            if cursor.checked_at.elapsed() < END_CHECK_INTERVAL {
                return Ok(());
            }
            cursor.checked_at = Instant::now();
        }
        let (last_offset, head) = self.find_own_end(client).await?;
        if let Some(cursor) = &mut self.cursor {
            cursor.head = head;
            if cursor.next_offset == last_offset + 1 {
                return Ok(());
            }
        }
        let passed = pglog::lowest_checkpoint(client, self.address.partition).await?.unwrap_or(0);
        let first_retained = pglog::first_retained(client, self.address.partition).await?;
        let next_offset = resume_offset(last_offset, passed, first_retained);
        match &self.cursor {
            Some(cursor) if cursor.next_offset == next_offset => return Ok(()),
            Some(cursor) => warn!(
                expected = cursor.next_offset - 1,
                last_offset, next_offset, "the stream lost entries: publishing again"
            ),
            None => info!(last_offset, head, next_offset, "publishing goes on where the stream ends"),
        }
        self.cursor = Some(Cursor::new(next_offset, head));
        Ok(())
    }

    /// The stream's last offset, and the head of the log. A stream that is not of this log is set aside first; the new one
    /// ends at offset 0.
    async fn find_own_end(&mut self, client: &Client) -> Result<(i64, i64)> {
        let end = read_end(&mut self.wire, &self.address.key).await?;
        // Read after the stream's end: a true leader assigns offsets before it publishes, so a stream that is ahead of this
        // head holds entries of another log.
        let head = pglog::head(client, self.address.partition).await?;
        let Some(found) = self.find_foreign(client, &end, head).await? else { return Ok((end.offset, head)) };
        warn!(
            found,
            last_id = end.id,
            head,
            key = self.address.key,
            "the stream is not of this log (was the database restored?): set aside and built anew"
        );
        set_aside(&mut self.wire, &self.address.key, &end).await?;
        Ok((self.last_offset().await?, head))
    }

    /// Why the stream is not of this log; `None` if it is.
    async fn find_foreign(&mut self, client: &Client, end: &StreamEnd, head: i64) -> Result<Option<&'static str>> {
        if end.offset > head {
            return Ok(Some("it ends beyond the head: its last entries are of no record"));
        }
        if self.vouched_id.as_ref() == Some(&end.id) {
            return Ok(None);
        }
        if has_foreign_entry(end, client, self.address.partition).await? {
            self.vouched_id = None;
            return Ok(Some("its last entry does not carry the token of the record at its offset"));
        }
        self.vouched_id = end.entry_offset().map(|_| end.id.clone());
        Ok(None)
    }

    /// The next records to publish; `None` at the head, and while it is in doubt where the stream ends.
    ///
    /// # Errors
    /// Postgres is away, or the records cannot be read.
    pub async fn next_page(&mut self, client: &Client, nearby: &mut Option<Reader>) -> Result<Option<ReadyPage>> {
        match &mut self.cursor {
            Some(cursor) if cursor.is_behind_head() => cursor.next_page(client, self.address.partition, nearby).await,
            _ => Ok(None),
        }
    }

    /// Appends the page, and reads the next one meanwhile: Redis and Postgres work side by side. Notes in `page_start`
    /// where the page begins.
    ///
    /// # Errors
    /// A server is away, or Redis refuses. Some entries may be in the stream.
    pub async fn publish(
        &mut self,
        client: &Client,
        ReadyPage { page, start }: ReadyPage,
        page_start: &mut Option<Reader>,
        fault: Fault,
    ) -> Result<Published> {
        let started_at = Instant::now();
        *page_start = Some(start);
        let key = &self.address.key;
        let copies = if fault == Fault::SendTwice { 2 } else { 1 };
        if fault == Fault::DieMidPipeline {
            send(&mut self.wire, &encode(key, page.records().take(page.len() / 2), copies)).await?;
            die();
        }
        let commands = encode(key, page.records(), copies);
        let reading = async {
            if let Some(cursor) = &mut self.cursor {
                cursor.read_ahead(client).await;
            }
        };
        let (sent, ()) = tokio::join!(send(&mut self.wire, &commands), reading);
        let mut sent = sent?;
        if fault == Fault::DieAfterPublish {
            die();
        }
        let mut expected_refusals = 0;
        if fault == Fault::ResendBatch {
            sent += send(&mut self.wire, &commands).await?;
            expected_refusals = commands.count();
        }
        let elapsed = started_at.elapsed();
        trace_page(key, &page, elapsed);
        let first_offset = page.first_offset();
        self.note_sent(first_offset, page.len(), sent, expected_refusals);
        let Sent { added_count, refused_count } = sent;
        Ok(Published { first_offset, record_count: page.len(), added_count, refused_count, elapsed })
    }

    /// Moves the cursor behind a page, or gives the cursor up. The page began where the stream ended, so a refused entry
    /// means that another process appends too: a second leader, or a program that is no streamer.
    fn note_sent(&mut self, first_offset: i64, record_count: usize, sent: Sent, expected_refusals: usize) {
        if sent.refused_count > expected_refusals {
            warn!(
                first_offset,
                refused_count = sent.refused_count,
                "redis refused entries: another process appends to the stream"
            );
            self.cursor = None;
        } else if let Some(cursor) = &mut self.cursor {
            cursor.advance(record_count);
        }
    }
}
