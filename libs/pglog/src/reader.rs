//! Reading the log back from Postgres: the streamer publishes from here, a consumer heals its gaps from here.
//!
//! Whoever reads an offset, whenever, gets the same record (I2).

use tokio_postgres::Row;

use crate::Error;
use crate::batch::{Batch, first_retained};
use crate::record::Page;
use crate::session::Session;

/// A place in the log from which pages of records are read, in offset order, with bounded memory.
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
    /// [`Error::Unassigned`] beyond the head, [`Error::Reaped`] for a record that is gone; otherwise Postgres is away.
    pub async fn at(client: &impl Session, partition: i32, offset: i64) -> Result<Self, Error> {
        let batch = find_batch(client, partition, offset).await?;
        let mut reader = Self::at_start_of(batch);
        let skip_count = offset - reader.batch.first_offset;
        if skip_count > 0 {
            reader.after_id = reader.id_at(client, skip_count).await?;
            reader.next_offset = offset;
        }
        Ok(reader)
    }

    /// A reader of a batch that has just been cut, and whatever follows it.
    pub fn at_start_of(batch: Batch) -> Self {
        Self { next_offset: batch.first_offset, after_id: i64::MIN, batch }
    }

    /// Moves on behind a page that begins at the reader's place and was read without it.
    pub fn pass(&mut self, page: &Page) {
        if let Some(last_id) = page.last_id() {
            self.after_id = last_id;
            self.next_offset += page.len() as i64;
        }
    }

    /// Moves on to `offset`, if it lies in the same batch and not before the reader's place: cheaper than [`at`](Self::at),
    /// which counts from the batch's beginning. Returns whether it did.
    ///
    /// # Errors
    /// As [`next_page`](Self::next_page).
    pub async fn move_to(&mut self, client: &impl Session, offset: i64) -> Result<bool, Error> {
        if offset < self.next_offset || offset > self.batch.last_offset() {
            return Ok(false);
        }
        self.after_id = self.id_at(client, offset - self.next_offset).await?;
        self.next_offset = offset;
        Ok(true)
    }

    /// The offset of the record that the next page begins with.
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// The next records, at most `len_max` of them and all of one batch. Empty at the head of the log.
    ///
    /// # Errors
    /// [`Error::RowsMissing`] if staged rows were deleted behind the log's back; [`Error::Reaped`] if they were reaped
    /// in the meantime; otherwise Postgres is away. The reader stays where it is and may be asked again.
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

    /// Rows of the batch after `after_id`, in id order. No rows if the batch was given up: the reaper marks it before it
    /// deletes anything, and a page that is read while the first rows go must not begin with a later one.
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

    /// The id of the `position`th record after the reader's place. Walks the batch; needed only to resume inside one.
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

    /// A page came back short: reaped in the meantime, or damaged?
    async fn why_short(&self, client: &impl Session, page_count: i64) -> Error {
        match find_batch(client, self.batch.partition, self.batch.first_offset).await {
            Err(error) => error,
            Ok(batch) => Error::RowsMissing {
                partition: batch.partition,
                first_offset: batch.first_offset,
                record_count: batch.record_count,
                found_count: self.next_offset - batch.first_offset + page_count,
            },
        }
    }
}

/// Rows of a batch, with the given columns, the first of which is `id`. Two sources, each read along an index and each
/// stopping after `$3` rows, so that a page costs the same however large the batch is: the batch's id range, and the few
/// transactions that were in flight at the previous snapshot and wrote elsewhere. Mostly there are none of these, and
/// half of the statement is left out.
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

/// What a [`Page`] is made of.
const PAGE: &str = page_statement!("id, object, action, data, staged_at, traceparent");
const PAGE_WITH_LATE: &str = page_statement!("id, object, action, data, staged_at, traceparent", with_late);

/// Up to 64 KiB of data a row are not fetched only to be skipped.
const IDS: &str = page_statement!("id");
const IDS_WITH_LATE: &str = page_statement!("id", with_late);

/// The batch that holds `offset`, with its predecessor's snapshot.
async fn find_batch(client: &impl Session, partition: i32, offset: i64) -> Result<Batch, Error> {
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
        // Batches follow each other without a gap, from 1 on. So either the first of them begins beyond this offset,
        // because those before are gone; or there was none, and nothing is assigned.
        let first = client
            .query_one(
                "-- pglog::find_batch
                 SELECT min(first_offset) FROM log_batches WHERE partition = $1",
                &[&partition],
            )
            .await?;
        return Err(match first.get::<_, Option<i64>>(0) {
            Some(first_offset) if (1..first_offset).contains(&offset) => {
                Error::Reaped { partition, offset, first_retained: first_retained(client, partition).await? }
            }
            _ => Error::Unassigned { partition, offset, head: 0 },
        });
    };
    // Decided by what this one statement saw: asked again, the head may have passed the offset.
    let batch = Batch::from_row(partition, &row);
    if offset > batch.last_offset() {
        return Err(Error::Unassigned { partition, offset, head: batch.last_offset() });
    }
    // Without its predecessor a batch cannot be derived; the reaper keeps one, so this batch was half reaped.
    if row.get("reaped") || row.get("orphaned") {
        let first_retained = first_retained(client, partition).await?;
        return Err(Error::Reaped { partition, offset, first_retained });
    }
    Ok(batch)
}
