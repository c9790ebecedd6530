//! The stream of one partition as its leader sees it: on which node it is, and where publishing goes on.
//!
//! Entries are added in offset order, beginning right behind the stream's end. The end is looked at before the first page, and
//! then once a second, so a wiped or restored Redis is noticed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Batch, Page, Partition, Reader};
use stream::end::StreamEnd;
use tracing::{info, warn};

use crate::cursor::{Cursor, ReadyPage, resume_offset};
use crate::foreign::has_foreign_entry;
use crate::nodes::Node;
use crate::publish::Sent;

/// How often an idle leader compares the stream's end with the log: how long a wiped Redis goes unnoticed.
const END_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The pauses between two attempts on a stream whose node is away. They are short: a node's successor answers at once.
const RETRY_WAITS: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

/// Where the last pages began, per partition. After an error publishing mostly goes on there or a little later, and in a batch of
/// millions it takes long to find the place from the batch's beginning.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageStarts(Arc<Mutex<BTreeMap<Partition, Reader>>>);

impl PageStarts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Partition, Reader>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On which node a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not known: it is to be sought.
    Lost,
    /// A search is under way.
    Sought,
    /// On this node, as far as known.
    At(Node),
}

/// Appends pages to the stream of one partition. After an error a pipeline may or may not have arrived, so the cursor is in
/// doubt, and is given up.
pub(crate) struct Appender {
    pub partition: Partition,
    pub key: String,
    pub place: Place,
    /// Whether the last answer named another node.
    pub was_moved: bool,
    /// Whether the partition is to be given back. Nothing is sent any more.
    pub is_leaving: bool,
    /// The id of the stream's end when its entry was last seen to be of this log, so that an idle stream is compared once.
    vouched_id: Option<String>,
    /// `None` before the first look at the stream's end, and while it is in doubt.
    cursor: Option<Cursor>,
    /// The end of a stream that is not of this log, and is to be set aside.
    foreign_end: Option<StreamEnd>,
    page_starts: PageStarts,
    /// Attempts have failed since the last one that succeeded.
    trouble: Option<Trouble>,
    /// The partition, for log lines. `None` if the log has no other.
    told: Option<i32>,
}

#[derive(Debug, Clone, Copy)]
struct Trouble {
    retry_at: Instant,
    /// How many attempts have failed.
    count: usize,
    is_refused: bool,
}

impl Appender {
    pub fn new(partition: Partition, key: String, is_cut: bool, page_starts: PageStarts) -> Self {
        Self {
            partition,
            key,
            place: Place::Lost,
            was_moved: false,
            is_leaving: false,
            vouched_id: None,
            cursor: None,
            foreign_end: None,
            page_starts,
            trouble: None,
            told: is_cut.then(|| partition.number()),
        }
    }

    /// Whether it is at this node.
    pub fn is_at(&self, node: &Node) -> bool {
        matches!(&self.place, Place::At(own) if own == node)
    }

    /// Whether records are known that the stream does not have.
    pub fn is_behind_head(&self) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::is_behind_head)
    }

    /// Whether it is on its way to the records that come next.
    pub fn is_searching(&self) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::is_searching)
    }

    /// Whether attempts fail.
    pub fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Whether the last attempt was refused for a reason that does not pass.
    pub fn is_refused(&self) -> bool {
        self.trouble.is_some_and(|trouble| trouble.is_refused)
    }

    /// Whether something may be sent now. If `is_impatient`, the pause after a failed attempt does not count.
    pub fn is_due(&self, is_impatient: bool) -> bool {
        !self.is_leaving && self.trouble.is_none_or(|trouble| is_impatient || trouble.retry_at <= Instant::now())
    }

    /// An attempt failed. The stream is sought anew, and its end is looked at, after a pause.
    pub fn fail(&mut self, is_refused: bool) {
        self.forget();
        let count = self.trouble.map_or(0, |trouble| trouble.count);
        let retry_at = Instant::now() + RETRY_WAITS[count.min(RETRY_WAITS.len() - 1)];
        self.trouble = Some(Trouble { retry_at, count: count + 1, is_refused });
    }

    /// The stream answers.
    fn recover(&mut self) {
        self.trouble = None;
        self.was_moved = false;
    }

    /// Forgets on which node the stream is, and where publishing goes on.
    pub fn forget(&mut self) {
        self.place = Place::Lost;
        self.cursor = None;
        self.foreign_end = None;
    }

    /// The end of the stream, if the stream is to be set aside.
    pub fn foreign_end(&self) -> Option<&StreamEnd> {
        self.foreign_end.as_ref()
    }

    /// The stream was set aside. The new one has an end, which is to be looked at.
    pub fn was_set_aside(&mut self) {
        self.foreign_end = None;
        self.cursor = None;
    }

    /// Whether the stream's end is to be looked at: its place is in doubt, or it was not compared for a second.
    pub fn needs_end_check(&self) -> bool {
        self.cursor
            .as_ref()
            .is_none_or(|cursor| !cursor.is_behind_head() && cursor.checked_at.elapsed() >= END_CHECK_INTERVAL)
    }

    /// Makes sure that the cursor stands right behind the stream's end. `head` was read after the end: a true leader assigns
    /// offsets before it publishes, so a stream that is ahead of this head holds entries of another log. Such a stream is to be
    /// set aside.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn take_end(&mut self, client: &Client, end: StreamEnd, head: i64) -> Result<()> {
        self.recover();
        if let Some(found) = self.find_foreign(client, &end, head).await? {
            warn!(
                partition = self.told,
                found,
                last_id = end.id,
                head,
                key = self.key,
                "the stream is not of this log (was the database restored?): set aside and built anew"
            );
            self.foreign_end = Some(end);
            return Ok(());
        }
        let last_offset = end.offset;
        if let Some(cursor) = &mut self.cursor {
            cursor.checked_at = Instant::now();
            cursor.head = head;
            if cursor.next_offset == last_offset + 1 {
                return Ok(());
            }
        }
        let passed = pglog::lowest_checkpoint(client, self.partition).await?.unwrap_or(0);
        let first_retained = pglog::first_retained(client, self.partition).await?;
        let next_offset = resume_offset(last_offset, passed, first_retained);
        let partition = self.told;
        match &self.cursor {
            Some(cursor) if cursor.next_offset == next_offset => return Ok(()),
            Some(cursor) => warn!(
                partition,
                expected = cursor.next_offset - 1,
                last_offset,
                next_offset,
                "the stream lost entries: publishing again"
            ),
            None => info!(partition, last_offset, head, next_offset, "publishing goes on where the stream ends"),
        }
        self.cursor = Some(Cursor::new(next_offset, head));
        Ok(())
    }

    /// Why the stream is not of this log; `None` if it is.
    async fn find_foreign(&mut self, client: &Client, end: &StreamEnd, head: i64) -> Result<Option<&'static str>> {
        if end.offset > head {
            return Ok(Some("it ends beyond the head: its last entries are of no record"));
        }
        if self.vouched_id.as_ref() == Some(&end.id) {
            return Ok(None);
        }
        if has_foreign_entry(end, client, self.partition).await? {
            self.vouched_id = None;
            return Ok(Some("its last entry does not carry the token of the record at its offset"));
        }
        self.vouched_id = end.entry_offset().map(|_| end.id.clone());
        Ok(None)
    }

    /// Takes note of a batch that was just cut, and of its records if the same statement has read them.
    pub fn add_batch(&mut self, batch: Batch, page: Option<Page>) {
        if let Some(cursor) = &mut self.cursor {
            cursor.add_batch(batch, page);
        }
    }

    /// The next records to publish, at most `len_max` unless they are read already; `None` at the head, and while it is in doubt
    /// where the stream ends.
    ///
    /// # Errors
    /// Postgres is away, or the records cannot be read.
    pub async fn next_page(&mut self, client: &Client, len_max: i64) -> Result<Option<Page>> {
        let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.is_behind_head()) else { return Ok(None) };
        let nearby = || self.page_starts.lock().remove(&self.partition);
        let Some(ReadyPage { page, start }) = cursor.next_page(client, self.partition, len_max, nearby).await? else {
            return Ok(None);
        };
        self.page_starts.lock().insert(self.partition, start);
        Ok(Some(page))
    }

    /// Reads the page after the one that is being published.
    pub async fn read_ahead(&mut self, client: &Client, len_max: i64) {
        if let Some(cursor) = &mut self.cursor {
            cursor.read_ahead(client, len_max).await;
        }
    }

    /// Moves the cursor behind a page, or gives the cursor up. The page began where the stream ended, so a refused entry
    /// means that another process appends too: a second leader, or a program that is no streamer.
    pub fn note_sent(&mut self, first_offset: i64, record_count: usize, sent: Sent, expected_refusals: usize) {
        self.recover();
        if sent.refused_count > expected_refusals {
            warn!(
                partition = self.told,
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
