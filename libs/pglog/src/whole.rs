//! Reading the whole log. The reaper deletes records that every consumer has passed, but the history keeps them (I2: a
//! record has the same offset in both). A reader that may begin at any offset reads retained records from the batches, and
//! reaped records from the history.
//!
//! The streamer uses [`Reader`] alone, because it must not publish archived records again.

use crate::Error;
use crate::partition::Partition;
use crate::reader::Reader;
use crate::record::Page;
use crate::session::Session;

/// A position in the log, from any offset on: retained records are read from the batches, reaped ones from the history.
#[derive(Debug, Clone)]
pub struct WholeReader {
    partition: Partition,
    next_offset: i64,
    /// `None` until a retained record was found, and after the reaper has deleted the records at this position.
    retained: Option<Reader>,
    /// Whether the last page came from the history. Then the next page is most likely there, too.
    is_in_history: bool,
}

impl WholeReader {
    /// A reader whose first record will be the one at `offset`. It does not look yet whether there is one.
    pub fn at(partition: Partition, offset: i64) -> Self {
        Self { partition, next_offset: offset, retained: None, is_in_history: false }
    }

    /// The offset of the record that the next page begins with.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// As [`Reader::is_searching`].
    pub fn is_searching(&self) -> bool {
        !self.is_in_history && self.retained.as_ref().is_some_and(Reader::is_searching)
    }

    /// The next records, at most `len_max`, which is at least 1. The page is empty at the head of the log, and while the reader
    /// [is searching](Self::is_searching). The token of an
    /// archived page is 0, because the history does not keep the tokens.
    ///
    /// # Errors
    /// [`Error::Reaped`] if the record is reaped and the history does not have it; [`Error::Unassigned`] if the position is
    /// beyond the record that comes next; otherwise as [`Reader::next_page`]. The reader keeps its position, and the call
    /// may be repeated.
    pub async fn next_page(&mut self, client: &impl Session, len_max: i64) -> Result<Page, Error> {
        let page = self.find_page(client, len_max).await?;
        self.next_offset += page.len() as i64;
        Ok(page)
    }

    async fn find_page(&mut self, client: &impl Session, len_max: i64) -> Result<Page, Error> {
        if self.is_in_history {
            let page = history_page(client, self.partition, self.next_offset, len_max).await?;
            if !page.is_empty() {
                return Ok(page);
            }
            self.is_in_history = false;
        }
        match self.retained_page(client, len_max).await {
            Err(Error::Unassigned { offset, head, .. }) if offset == head + 1 => Ok(Page::default()),
            Err(Error::Reaped { partition, offset, first_retained, .. }) => {
                self.retained = None;
                // The history is read after the batches, even if it was read before. A record is archived before it is
                // reaped. So a record that is in neither of them at this moment is in the history by now, or lost.
                let page = history_page(client, self.partition, self.next_offset, len_max).await?;
                if page.is_empty() {
                    return Err(Error::Reaped { partition, offset, first_retained, is_archive_read: true });
                }
                self.is_in_history = true;
                Ok(page)
            }
            read => read,
        }
    }

    async fn retained_page(&mut self, client: &impl Session, len_max: i64) -> Result<Page, Error> {
        let mut reader = match self.retained.take() {
            // Archived pages may have been read since.
            Some(reader) if reader.next_offset() == self.next_offset => reader,
            _ => Reader::at(client, self.partition, self.next_offset).await?,
        };
        let page = reader.next_page(client, len_max).await;
        self.retained = Some(reader);
        page
    }
}

/// The longest run of archived records without a gap that begins at `first_offset`, at most `len_max`. The page is empty if
/// the history does not have the record at `first_offset`. Its token is 0, because the history does not keep the tokens.
///
/// # Errors
/// Postgres is away.
pub async fn history_page(
    client: &impl Session,
    partition: Partition,
    first_offset: i64,
    len_max: i64,
) -> Result<Page, Error> {
    let last_offset = first_offset.saturating_add(len_max - 1);
    let mut rows = client
        .query(
            "-- pglog::history_page
             SELECT record_offset, object, action, data, staged_at, traceparent FROM history
             WHERE partition = $1 AND record_offset >= $2 AND record_offset <= $3 ORDER BY record_offset LIMIT $4",
            &[&partition, &first_offset, &last_offset, &len_max],
        )
        .await?;
    let contiguous =
        rows.iter().zip(first_offset..=last_offset).take_while(|(row, offset)| row.get::<_, i64>(0) == *offset);
    let contiguous_len = contiguous.count();
    rows.truncate(contiguous_len);
    Ok(Page::new(partition, first_offset, 0, rows))
}
