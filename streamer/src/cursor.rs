//! The place in the log where publishing goes on, and the page that is read ahead from there.
//!
//! A cursor is a memory, not a truth: the stream's own last id says what is published. A streamer that doubts its cursor
//! drops it and makes another one from the stream's end.

use std::time::Instant;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Batch, Page, Partition, Reader};

/// Where publishing goes on.
pub(crate) struct Cursor {
    /// The offset of the first record that the stream does not have.
    pub next_offset: i64,
    /// The highest offset that is known to be assigned.
    pub head: i64,
    /// When the stream's end was last seen to be before `next_offset`.
    pub checked_at: Instant,
    /// Stands behind the records that were read, published or not.
    reader: Option<Reader>,
    /// Read ahead, to be published next.
    ready: Option<ReadyPage>,
}

/// A page to be published, and where it begins.
pub(crate) struct ReadyPage {
    pub page: Page,
    pub start: Reader,
}

impl ReadyPage {
    async fn read(reader: &mut Reader, client: &Client, len_max: i64) -> Result<Self, pglog::Error> {
        let start = reader.clone();
        let page = reader.next_page(client, len_max).await?;
        Ok(Self { page, start })
    }
}

/// The offset at which publishing goes on. The stream has the records up to `last_offset` (0: none), every consumer has
/// passed those up to `passed` (0: none), and Postgres still has those from `first_retained` on.
///
/// The stream may have lost records that every consumer has passed. They are not published again. Records that Postgres
/// has no more cannot be.
pub(crate) fn resume_offset(last_offset: i64, passed: i64, first_retained: i64) -> i64 {
    (last_offset.max(passed) + 1).max(first_retained)
}

impl Cursor {
    /// A cursor that was just compared with the stream's end.
    pub fn new(next_offset: i64, head: i64) -> Self {
        Self { next_offset, head, checked_at: Instant::now(), reader: None, ready: None }
    }

    /// Whether it is on its way to a place deep in a huge batch.
    pub fn is_searching(&self) -> bool {
        self.is_behind_head() && self.reader.as_ref().is_some_and(Reader::is_searching)
    }

    /// Whether records are known that the stream does not have.
    pub fn is_behind_head(&self) -> bool {
        self.next_offset <= self.head
    }

    /// Takes note of a batch that was just cut. `page` holds its records, if the statement that cut it also read them.
    pub fn add_batch(&mut self, batch: Batch, page: Option<Page>) {
        self.head = batch.last_offset();
        if self.next_offset != batch.first_offset {
            return;
        }
        let start = Reader::at_start_of(batch);
        let reader = self.reader.insert(start.clone());
        if let Some(page) = page {
            reader.pass(&page);
            self.ready = Some(ReadyPage { page, start });
        }
    }

    /// The records at `next_offset`: read ahead, or at most `len_max` read now. `None` if there are none. `nearby` may stand a little before
    /// them; then the batch is not counted from its beginning.
    ///
    /// # Errors
    /// Postgres is away, or the records cannot be read.
    pub async fn next_page(
        &mut self,
        client: &Client,
        partition: Partition,
        len_max: i64,
        nearby: impl FnOnce() -> Option<Reader>,
    ) -> Result<Option<ReadyPage>> {
        if let Some(ready) = self.ready.take() {
            return Ok(Some(ready));
        }
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => match open_reader(client, partition, self.next_offset, nearby()).await? {
                Some(reader) => reader,
                None => return Ok(None),
            },
        };
        let reader = self.reader.insert(reader);
        let ready = ReadyPage::read(reader, client, len_max).await.context("reading records to publish")?;
        Ok((!ready.page.is_empty()).then_some(ready))
    }

    /// Reads the page after the one that is being published, if there is one and it is not read yet. An error is dropped here:
    /// the step that needs the page reads it again, and meets the error if it lasts.
    pub async fn read_ahead(&mut self, client: &Client, len_max: i64) {
        let head = self.head;
        let is_read = self.ready.is_some();
        if let Some(reader) = self.reader.as_mut().filter(|reader| !is_read && reader.next_offset() <= head) {
            self.ready = ReadyPage::read(reader, client, len_max).await.ok().filter(|ready| !ready.page.is_empty());
        }
    }

    /// The stream has the next `record_count` records.
    pub fn advance(&mut self, record_count: usize) {
        self.next_offset += record_count as i64;
    }
}

/// A reader at `offset`; `None` if no record has this offset yet.
async fn open_reader(
    client: &Client,
    partition: Partition,
    offset: i64,
    nearby: Option<Reader>,
) -> Result<Option<Reader>, pglog::Error> {
    if let Some(mut reader) = nearby
        && reader.move_to(client, offset).await?
    {
        return Ok(Some(reader));
    }
    match Reader::at(client, partition, offset).await {
        Ok(reader) => Ok(Some(reader)),
        Err(pglog::Error::Unassigned { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::{Cursor, resume_offset};

    #[test]
    fn publishing_goes_on_behind_the_stream_s_end() {
        assert_eq!(resume_offset(0, 0, 1), 1, "a new log");
        assert_eq!(resume_offset(41, 0, 1), 42, "no consumer is registered, or none has begun");
        assert_eq!(resume_offset(41, 30, 10), 42, "consumers are behind the stream");
    }

    #[test]
    fn records_that_every_consumer_has_passed_are_not_published_again() {
        assert_eq!(resume_offset(0, 30, 1), 31, "the stream was wiped");
        assert_eq!(resume_offset(20, 30, 1), 31, "the stream lost its last entries");
    }

    #[test]
    fn reaped_records_are_passed_over() {
        assert_eq!(resume_offset(0, 0, 31), 31, "the only consumer was unregistered after the records were reaped");
        assert_eq!(resume_offset(20, 25, 31), 31);
        assert_eq!(resume_offset(30, 30, 31), 31, "the first retained record is the next one");
    }

    #[test]
    fn a_cursor_is_behind_until_it_has_passed_the_head() {
        let mut cursor = Cursor::new(9, 10);
        assert!(cursor.is_behind_head());
        cursor.advance(1);
        assert!(cursor.is_behind_head());
        cursor.advance(1);
        assert!(!cursor.is_behind_head());
    }
}
