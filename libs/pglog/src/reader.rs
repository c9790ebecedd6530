//! Reading the log from Postgres. The streamer reads what it publishes, and a consumer reads the records that its stream
//! lacks. Every read of an offset returns the same record (I2).
//!
//! No statement here grows with the depth of an offset. A reader that begins deep in a huge batch goes there in bounded
//! steps, and keeps its place between them.

mod statements;

use std::time::{Duration, Instant};

use tokio_postgres::Row;

use crate::Error;
use crate::batch::{Batch, IDS_LEN_MAX, SKIP_LEN, first_retained};
use crate::partition::Partition;
use crate::record::Page;
use crate::session::Session;
use statements::{PAGE, PAGE_WITH_LATE, SKIP, SKIP_WITH_LATE, WHOLE_BATCHES};

/// How long one call of [`Reader::next_page`] may look for its first record. It is short: the caller may have other partitions to
/// work on.
const SEARCH_WAIT: Duration = Duration::from_millis(200);

/// A position in the log. It reads pages of records, in offset order, with bounded memory.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The batch of the last page, or of the next one.
    batch: Batch,
    next_offset: i64,
    /// All records of the batch with this id or a lower one lie before `reached_offset`; `i64::MIN` at the batch's start.
    after_id: i64,
    /// The offset of the first record after `after_id`. It is lower than `next_offset` while the reader is on its way.
    reached_offset: i64,
    /// Whether batches may follow this one. None does when it was just cut, and reading one batch alone is faster.
    is_followed: bool,
}

impl Reader {
    /// A reader whose first record will be the one at `offset`.
    ///
    /// # Errors
    /// [`Error::Unassigned`] beyond the head, [`Error::Reaped`] if the record was deleted; otherwise Postgres is away.
    pub async fn at(client: &impl Session, partition: Partition, offset: i64) -> Result<Self, Error> {
        let (batch, skip_id) = find_batch(client, partition, offset).await?;
        let mut reader = Self { next_offset: offset, is_followed: true, ..Self::at_start_of(batch) };
        if let Some(skip_id) = skip_id {
            reader.after_id = skip_id;
            reader.reached_offset += (offset - reader.batch.first_offset) / SKIP_LEN * SKIP_LEN;
        }
        Ok(reader)
    }

    /// A reader whose first record will be the first of `batch`, which has just been cut.
    pub fn at_start_of(batch: Batch) -> Self {
        let first_offset = batch.first_offset;
        Self { batch, next_offset: first_offset, after_id: i64::MIN, reached_offset: first_offset, is_followed: false }
    }

    /// Moves past a page that begins at the reader's position and that another query has read.
    pub fn pass(&mut self, page: &Page) {
        if let Some(last_id) = page.last_id() {
            self.after_id = last_id;
            self.next_offset += page.len() as i64;
            self.reached_offset = self.next_offset;
        }
    }

    /// Moves forward to `offset` if it lies in the same batch, and the log still has this batch. Returns whether it did. This
    /// is cheaper than [`at`](Self::at), which counts from the beginning of the batch.
    ///
    /// # Errors
    /// As [`next_page`](Self::next_page).
    pub async fn move_to(&mut self, client: &impl Session, offset: i64) -> Result<bool, Error> {
        if !(self.reached_offset..=self.batch.last_offset()).contains(&offset) {
            return Ok(false);
        }
        match find_batch(client, self.batch.partition, self.batch.first_offset).await {
            Ok((batch, _)) if batch.token == self.batch.token => {}
            Ok(_) | Err(Error::Unassigned { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        self.next_offset = offset;
        Ok(true)
    }

    /// The offset of the record that the next page begins with.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// Whether it is inside of a batch. If it is after an empty page, it has come closer to its place deep in a huge batch, and
    /// [`next_page`](Self::next_page) is to be called again.
    pub fn is_searching(&self) -> bool {
        self.next_offset <= self.batch.last_offset()
    }

    /// The next records, at most `len_max`. The page is empty at the head of the log, and while the reader
    /// [is searching](Self::is_searching).
    ///
    /// # Errors
    /// [`Error::RowsMissing`] if staged rows were deleted, but not by the reaper; [`Error::Reaped`] if they were reaped in
    /// the meantime; [`Error::Replaced`] if the log was put back; otherwise Postgres is away. The reader keeps its position,
    /// and the call may be repeated.
    pub async fn next_page(&mut self, client: &impl Session, len_max: i64) -> Result<Page, Error> {
        if !self.is_searching() {
            match find_batch(client, self.batch.partition, self.next_offset).await {
                Ok((batch, _)) => *self = Self { is_followed: true, ..Self::at_start_of(batch) },
                Err(Error::Unassigned { .. }) => return Ok(Page::default()),
                Err(error) => return Err(error),
            }
        }
        if self.is_followed && self.next_offset == self.batch.first_offset && self.is_small(len_max) {
            return self.whole_batches(client, len_max).await;
        }
        let began_at = Instant::now();
        self.jump();
        while self.reached_offset < self.next_offset {
            if began_at.elapsed() >= SEARCH_WAIT {
                return Ok(Page::default());
            }
            self.skip(client).await?;
        }
        let expected_len = len_max.min(self.batch.last_offset() - self.next_offset + 1);
        loop {
            let to_id = self.to_id();
            let rows = self.rows(client, PAGE, PAGE_WITH_LATE, expected_len, to_id).await?;
            let is_full = rows.len() as i64 == expected_len;
            if !is_full && to_id == i64::MAX {
                return Err(self.why_short(client, rows.len() as i64).await);
            }
            let page = Page::new(self.batch.partition, self.next_offset, self.batch.token, rows);
            self.pass(&page);
            if is_full {
                return Ok(page);
            }
            self.after_id = to_id;
            if !page.is_empty() || began_at.elapsed() >= SEARCH_WAIT {
                return Ok(page);
            }
        }
    }

    /// The batch at the reader's position and those that follow it, all of them whole. Small batches would cost two statements
    /// each if they were read one by one.
    async fn whole_batches(&mut self, client: &impl Session, len_max: i64) -> Result<Page, Error> {
        let partition = self.batch.partition;
        let mut rows = client.query(WHOLE_BATCHES, &[&partition, &self.next_offset, &len_max, &IDS_LEN_MAX]).await?;
        let first_count = rows.iter().take_while(|row| row.get::<_, i64>("first_offset") == self.next_offset).count();
        rows.truncate(sound_len(&rows, self.next_offset));
        if rows.is_empty() {
            return Err(self.why_short(client, first_count as i64).await);
        }
        let page = Page::of_batches(partition, self.next_offset, rows);
        self.next_offset += page.len() as i64;
        self.reached_offset = self.next_offset;
        Ok(page)
    }

    /// Whether one statement may read the whole batch.
    fn is_small(&self, len_max: i64) -> bool {
        let id_count = self.batch.fresh_ids.map_or(0, |(first_id, last_id)| last_id - first_id + 1);
        self.batch.record_count <= len_max && id_count <= IDS_LEN_MAX
    }

    /// Computes the place of `next_offset` instead of counting to it, if the ids of the batch follow each other without a gap.
    /// Those of a batch of adopted records do.
    fn jump(&mut self) {
        let Some((first_id, last_id)) = self.batch.fresh_ids else { return };
        if self.batch.may_have_late_rows() || last_id - first_id + 1 != self.batch.record_count {
            return;
        }
        self.after_id = first_id + (self.next_offset - self.batch.first_offset) - 1;
        self.reached_offset = self.next_offset;
    }

    /// Goes one step on the way to `next_offset`, which lies deep in the batch.
    async fn skip(&mut self, client: &impl Session) -> Result<(), Error> {
        let (wanted, to_id) = (SKIP_LEN.min(self.next_offset - self.reached_offset), self.to_id());
        let rows = self.rows(client, SKIP, SKIP_WITH_LATE, wanted, to_id).await?;
        let (skipped_count, last_id): (i64, Option<i64>) = (rows[0].get(0), rows[0].get(1));
        if skipped_count < wanted && to_id == i64::MAX {
            return Err(self.why_short(client, self.reached_offset - self.next_offset + skipped_count).await);
        }
        self.reached_offset += skipped_count;
        self.after_id = if skipped_count < wanted { to_id } else { last_id.unwrap_or(to_id) };
        Ok(())
    }

    /// The highest id that the next statement looks at; `i64::MAX` if that ends the batch.
    fn to_id(&self) -> i64 {
        // Without fresh rows there are rows of known transactions only, and no others lie between them in their index.
        let Some((first_id, last_id)) = self.batch.fresh_ids else { return i64::MAX };
        let to_id = self.after_id.max(first_id - 1).saturating_add(IDS_LEN_MAX);
        if to_id >= last_id { i64::MAX } else { to_id }
    }

    /// Rows of the batch after `after_id`, in id order; none if the batch is marked as reaped. The reaper marks a batch
    /// before it deletes the first rows, so that no reader takes a later row for the first.
    async fn rows(
        &self,
        client: &impl Session,
        plain: &str,
        with_late: &str,
        len_max: i64,
        to_id: i64,
    ) -> Result<Vec<Row>, Error> {
        // An empty range when the batch has late rows only.
        let (first_id, last_id) = self.batch.fresh_ids.unwrap_or((0, -1));
        let statement = if self.batch.may_have_late_rows() { with_late } else { plain };
        let rows = client
            .query(
                statement,
                &[
                    &self.batch.partition,
                    &self.after_id,
                    &len_max,
                    &self.batch.previous_snapshot,
                    &self.batch.snapshot,
                    &first_id,
                    &last_id,
                    &self.batch.first_offset,
                    &self.batch.token,
                    &to_id,
                ],
            )
            .await?;
        Ok(rows)
    }

    /// The reason why a page has too few rows: the batch was reaped in the meantime, the log has another one (its token
    /// tells), or rows are missing.
    async fn why_short(&self, client: &impl Session, page_count: i64) -> Error {
        let Batch { partition, first_offset, token, .. } = self.batch;
        match find_batch(client, partition, first_offset).await {
            Err(Error::Unassigned { .. }) => Error::Replaced { partition, first_offset },
            Err(error) => error,
            Ok((batch, _)) if batch.token != token => Error::Replaced { partition, first_offset },
            Ok((batch, _)) => Error::RowsMissing {
                partition: batch.partition,
                first_offset: batch.first_offset,
                record_count: batch.record_count,
                found_count: self.next_offset - batch.first_offset + page_count,
            },
        }
    }
}

/// The number of rows, from `next_offset` on, whose batches follow each other and have all their rows.
fn sound_len(rows: &[Row], next_offset: i64) -> usize {
    let mut sound_len = 0;
    for batch in rows.chunk_by(|one, next| one.get::<_, i64>("first_offset") == next.get::<_, i64>("first_offset")) {
        let (first_offset, record_count): (i64, i64) = (batch[0].get("first_offset"), batch[0].get("record_count"));
        if first_offset != next_offset + sound_len as i64 || record_count != batch.len() as i64 {
            break;
        }
        sound_len += batch.len();
    }
    sound_len
}

/// The batch that contains `offset`, with the snapshot of the batch before it; and the id of the last record at or before
/// `offset - 1` whose place in the batch is a multiple of [`SKIP_LEN`], if it is stored.
async fn find_batch(client: &impl Session, partition: Partition, offset: i64) -> Result<(Batch, Option<i64>), Error> {
    let Some(row) = client
        .query_opt(
            "-- pglog::find_batch
             SELECT batch.first_offset, batch.record_count, batch.token, batch.snapshot::text,
                    batch.fresh_first_id, batch.fresh_last_id, batch.reaped_at IS NOT NULL AS reaped,
                    batch.skip_ids[($2 - batch.first_offset) / $3] AS skip_id,
                    COALESCE(previous.snapshot::text, '1:1:') AS previous_snapshot,
                    previous.snapshot IS NULL AND batch.first_offset > 1 AS orphaned
             FROM log_batches AS batch
             LEFT JOIN LATERAL (SELECT snapshot FROM log_batches
                                WHERE partition = $1 AND first_offset < batch.first_offset
                                ORDER BY first_offset DESC LIMIT 1) AS previous ON true
             WHERE batch.partition = $1 AND batch.first_offset <= $2
             ORDER BY batch.first_offset DESC LIMIT 1",
            &[&partition, &offset, &SKIP_LEN],
        )
        .await?
    else {
        // Batches follow each other without a gap, from offset 1 on. So either the first of them begins beyond this offset,
        // because earlier batches were deleted, or there was never a batch, and no offset is assigned.
        let first = client
            .query_one(
                "-- pglog::find_batch
                 SELECT min(first_offset) FROM log_batches WHERE partition = $1",
                &[&partition],
            )
            .await?;
        return Err(match first.get::<_, Option<i64>>(0) {
            Some(first_offset) if (1..first_offset).contains(&offset) => {
                let first_retained = first_retained(client, partition).await?;
                Error::Reaped { partition, offset, first_retained, is_archive_read: false }
            }
            _ => Error::Unassigned { partition, offset, head: 0 },
        });
    };
    // Only the result of the statement above decides: by now the head may have passed the offset.
    let batch = Batch::from_row(partition, &row);
    if offset > batch.last_offset() {
        return Err(Error::Unassigned { partition, offset, head: batch.last_offset() });
    }
    // A batch cannot be derived without the batch before it. The reaper keeps that one, so this batch is being reaped.
    if row.get("reaped") || row.get("orphaned") {
        let first_retained = first_retained(client, partition).await?;
        return Err(Error::Reaped { partition, offset, first_retained, is_archive_read: false });
    }
    Ok((batch, row.get("skip_id")))
}
