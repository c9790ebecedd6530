//! Reading the log from Postgres. The streamer reads what it publishes, and a consumer reads the records that its stream
//! lacks. Every read of an offset returns the same record (I2).

use tokio_postgres::Row;

use crate::Error;
use crate::batch::{Batch, first_retained};
use crate::partition::Partition;
use crate::record::Page;
use crate::session::Session;

/// A position in the log. It reads pages of records, in offset order, with bounded memory.
#[derive(Debug, Clone)]
pub struct Reader {
    batch: Batch,
    next_offset: i64,
    /// Id of the record before `next_offset` within the batch; `i64::MIN` at the batch's start.
    after_id: i64,
}

impl Reader {
    /// A reader whose first record will be the one at `offset`.
    ///
    /// # Errors
    /// [`Error::Unassigned`] beyond the head, [`Error::Reaped`] if the record was deleted; otherwise Postgres is away.
    pub async fn at(client: &impl Session, partition: Partition, offset: i64) -> Result<Self, Error> {
        let batch = find_batch(client, partition, offset).await?;
        let mut reader = Self::at_start_of(batch);
        let skip_count = offset - reader.batch.first_offset;
        if skip_count > 0 {
            reader.after_id = reader.id_at(client, skip_count).await?;
            reader.next_offset = offset;
        }
        Ok(reader)
    }

    /// A reader whose first record will be the first of `batch`, which has just been cut.
    pub fn at_start_of(batch: Batch) -> Self {
        Self { next_offset: batch.first_offset, after_id: i64::MIN, batch }
    }

    /// Moves past a page that begins at the reader's position and that another query has read.
    pub fn pass(&mut self, page: &Page) {
        if let Some(last_id) = page.last_id() {
            self.after_id = last_id;
            self.next_offset += page.len() as i64;
        }
    }

    /// Moves forward to `offset` if it lies in the same batch, and the log still has this batch. Returns whether it did. This
    /// is cheaper than [`at`](Self::at), which counts from the beginning of the batch.
    ///
    /// # Errors
    /// As [`next_page`](Self::next_page).
    pub async fn move_to(&mut self, client: &impl Session, offset: i64) -> Result<bool, Error> {
        if offset < self.next_offset || offset > self.batch.last_offset() {
            return Ok(false);
        }
        match find_batch(client, self.batch.partition, self.batch.first_offset).await {
            Ok(batch) if batch.token == self.batch.token => {}
            Ok(_) | Err(Error::Unassigned { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        self.after_id = self.id_at(client, offset - self.next_offset).await?;
        self.next_offset = offset;
        Ok(true)
    }

    /// The offset of the record that the next page begins with.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// The next records, at most `len_max` and all of one batch. The page is empty at the head of the log.
    ///
    /// # Errors
    /// [`Error::RowsMissing`] if staged rows were deleted, but not by the reaper; [`Error::Reaped`] if they were reaped in
    /// the meantime; [`Error::Replaced`] if the log was put back; otherwise Postgres is away. The reader keeps its position,
    /// and the call may be repeated.
    pub async fn next_page(&mut self, client: &impl Session, len_max: i64) -> Result<Page, Error> {
        if self.next_offset > self.batch.last_offset() {
            match find_batch(client, self.batch.partition, self.next_offset).await {
                Ok(batch) => (self.batch, self.after_id) = (batch, i64::MIN),
                Err(Error::Unassigned { .. }) => return Ok(Page::default()),
                Err(error) => return Err(error),
            }
        }
        let expected_len = len_max.min(self.batch.last_offset() - self.next_offset + 1);
        let rows = self.page_rows(client, PAGE, PAGE_WITH_LATE, expected_len).await?;
        if (rows.len() as i64) < expected_len {
            return Err(self.why_short(client, rows.len() as i64).await);
        }
        let page = Page::new(self.next_offset, self.batch.token, rows);
        self.pass(&page);
        Ok(page)
    }

    /// Rows of the batch after `after_id`, in id order; none if the batch is marked as reaped. The reaper marks a batch
    /// before it deletes the first rows, so that no reader takes a later row for the first.
    async fn page_rows(
        &self,
        client: &impl Session,
        plain: &str,
        with_late: &str,
        len_max: i64,
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
                ],
            )
            .await?;
        Ok(rows)
    }

    /// The id of the `position`th record after the reader's position. It walks through the batch; a reader needs it only to
    /// begin inside a batch.
    async fn id_at(&mut self, client: &impl Session, position: i64) -> Result<i64, Error> {
        const SKIP_LEN_MAX: i64 = 10_000;
        let mut skipped_count = 0;
        while skipped_count < position {
            let wanted = SKIP_LEN_MAX.min(position - skipped_count);
            let rows = self.page_rows(client, IDS, IDS_WITH_LATE, wanted).await?;
            skipped_count += rows.len() as i64;
            if (rows.len() as i64) < wanted {
                return Err(self.why_short(client, skipped_count).await);
            }
            self.after_id = rows[rows.len() - 1].get(0);
        }
        Ok(self.after_id)
    }

    /// The reason why a page has too few rows: the batch was reaped in the meantime, the log has another one (its token
    /// tells), or rows are missing.
    async fn why_short(&self, client: &impl Session, page_count: i64) -> Error {
        let Batch { partition, first_offset, token, .. } = self.batch;
        match find_batch(client, partition, first_offset).await {
            Err(Error::Unassigned { .. }) => Error::Replaced { partition, first_offset },
            Err(error) => error,
            Ok(batch) if batch.token != token => Error::Replaced { partition, first_offset },
            Ok(batch) => Error::RowsMissing {
                partition: batch.partition,
                first_offset: batch.first_offset,
                record_count: batch.record_count,
                found_count: self.next_offset - batch.first_offset + page_count,
            },
        }
    }
}

/// A statement that selects rows of a batch, with the given columns, the first of which is `id`. It has two sources: the
/// id range of the batch, and the few transactions that were open at the previous snapshot and wrote outside of that range.
/// It reads each along an index and stops after `$3` rows, so that a page costs the same in a batch of any size. Most
/// batches have no such transactions; for these the second half of the statement is left out.
macro_rules! page_statement {
    ($columns:literal) => {
        concat!("-- pglog::page\n", page_statement!(snapshots), page_statement!(fresh, $columns))
    };
    ($columns:literal, with_late) => {
        concat!(
            "-- pglog::page_with_late\n",
            page_statement!(snapshots),
            "SELECT * FROM ((",
            page_statement!(fresh, $columns),
            ") UNION ALL
             (SELECT late.* FROM pg_snapshot_xip((SELECT previous FROM snapshots)) AS in_flight,
              LATERAL (SELECT ",
            $columns,
            " FROM staged_log_records
                       WHERE partition = $1 AND transaction_id = in_flight AND id > $2 AND (id < $6 OR id > $7)
                       ORDER BY partition, transaction_id, id LIMIT $3) AS late
              WHERE pg_visible_in_snapshot(in_flight, (SELECT current FROM snapshots)))) AS page
             ORDER BY id LIMIT $3"
        )
    };
    (snapshots) => {
        "WITH snapshots AS MATERIALIZED (
             SELECT $4::text::pg_snapshot AS previous, $5::text::pg_snapshot AS current FROM log_batches
             WHERE partition = $1 AND first_offset = $8 AND token = $9 AND reaped_at IS NULL
         )
         "
    };
    (fresh, $columns:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM staged_log_records
             WHERE EXISTS (SELECT FROM snapshots)
               AND partition = $1 AND id > $2 AND id >= $6 AND id <= $7
               AND NOT pg_visible_in_snapshot(transaction_id, (SELECT previous FROM snapshots))
               AND pg_visible_in_snapshot(transaction_id, (SELECT current FROM snapshots))
             ORDER BY partition, id LIMIT $3"
        )
    };
}

/// Selects the columns of a [`Page`].
const PAGE: &str = page_statement!("id, object, action, data, staged_at, traceparent");
const PAGE_WITH_LATE: &str = page_statement!("id, object, action, data, staged_at, traceparent", with_late);

/// Selects ids only, to skip rows: their data may be 64 KiB each.
const IDS: &str = page_statement!("id");
const IDS_WITH_LATE: &str = page_statement!("id", with_late);

/// The batch that contains `offset`, with the snapshot of the batch before it.
async fn find_batch(client: &impl Session, partition: Partition, offset: i64) -> Result<Batch, Error> {
    let Some(row) = client
        .query_opt(
            "-- pglog::find_batch
             SELECT batch.first_offset, batch.record_count, batch.token, batch.snapshot::text,
                    batch.fresh_first_id, batch.fresh_last_id, batch.reaped_at IS NOT NULL AS reaped,
                    COALESCE(previous.snapshot::text, '1:1:') AS previous_snapshot,
                    previous.snapshot IS NULL AND batch.first_offset > 1 AS orphaned
             FROM log_batches AS batch
             LEFT JOIN LATERAL (SELECT snapshot FROM log_batches
                                WHERE partition = $1 AND first_offset < batch.first_offset
                                ORDER BY first_offset DESC LIMIT 1) AS previous ON true
             WHERE batch.partition = $1 AND batch.first_offset <= $2
             ORDER BY batch.first_offset DESC LIMIT 1",
            &[&partition, &offset],
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
    Ok(batch)
}
