//! Reading the log back from Postgres: the streamer publishes from here, a consumer heals its gaps from here.
//!
//! Whoever reads an offset, whenever, gets the same record (I2).

use std::time::SystemTime;

use tokio_postgres::{GenericClient, Row};

use crate::Error;
use crate::batch::{Batch, first_retained};

/// A record at its offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition: 1, 2, 3, …
    pub offset: i64,
    /// The token of its batch.
    pub token: i64,
    /// What it is about.
    pub object: String,
    /// What happened.
    pub action: String,
    /// The payload, byte for byte as it was staged.
    pub data: String,
    /// When it was staged, in microseconds since 1970 on Postgres's clock.
    pub staged_at_us: i64,
}

/// A place in the log from which pages of records are read, in offset order, with bounded memory.
#[derive(Debug, Clone)]
pub struct Reader {
    batch: Batch,
    next_offset: i64,
    /// Id of the record before `next_offset` within the batch; `i64::MIN` at the batch's start.
    after_id: i64,
}

/// Whether the data of a page's rows is wanted. Up to 64 KiB each are not fetched only to be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Fetched,
    LeftOut,
}

impl Reader {
    /// A reader whose first record will be the one at `offset`.
    ///
    /// # Errors
    /// [`Error::Unassigned`] beyond the head, [`Error::Reaped`] for a record that is gone; otherwise Postgres is away.
    pub async fn at(client: &impl GenericClient, partition: i32, offset: i64) -> Result<Self, Error> {
        let batch = find_batch(client, partition, offset).await?;
        let mut reader = Self { next_offset: batch.first_offset, after_id: i64::MIN, batch };
        let skip_count = offset - reader.batch.first_offset;
        if skip_count > 0 {
            reader.after_id = reader.id_at(client, skip_count).await?;
            reader.next_offset = offset;
        }
        Ok(reader)
    }

    /// Moves on to `offset`, if it lies in the same batch and not before the reader's place: cheaper than [`at`](Self::at),
    /// which counts from the batch's beginning. Returns whether it did.
    ///
    /// # Errors
    /// As [`next_page`](Self::next_page).
    pub async fn move_to(&mut self, client: &impl GenericClient, offset: i64) -> Result<bool, Error> {
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
    pub async fn next_page(&mut self, client: &impl GenericClient, len_max: i64) -> Result<Vec<Record>, Error> {
        if self.next_offset > self.batch.last_offset() {
            match find_batch(client, self.batch.partition, self.next_offset).await {
                Ok(batch) => (self.batch, self.after_id) = (batch, i64::MIN),
                Err(Error::Unassigned { .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        let expected_len = len_max.min(self.batch.last_offset() - self.next_offset + 1);
        let rows = self.page_rows(client, expected_len, Payload::Fetched).await?;
        if (rows.len() as i64) < expected_len {
            return Err(self.why_short(client, rows.len() as i64).await);
        }
        let records: Vec<Record> =
            rows.iter().zip(self.next_offset..).map(|(row, offset)| self.record(offset, row)).collect();
        if let Some(row) = rows.last() {
            self.after_id = row.get("id");
            self.next_offset += records.len() as i64;
        }
        Ok(records)
    }

    fn record(&self, offset: i64, row: &Row) -> Record {
        Record {
            offset,
            token: self.batch.token,
            object: row.get("object"),
            action: row.get("action"),
            data: row.get("data"),
            staged_at_us: micros_since_1970(row.get("staged_at")),
        }
    }

    /// Rows of the batch after `after_id`, in id order. Two sources, each read along an index and each stopping after
    /// `len_max` rows, so that a page costs the same however large the batch is:
    /// the batch's id range, and the few transactions that were in flight at the previous snapshot and wrote elsewhere.
    /// No rows if the batch was given up: the reaper marks it before it deletes anything, and a page that is read while
    /// the first rows go must not begin with a later one.
    async fn page_rows(&self, client: &impl GenericClient, len_max: i64, payload: Payload) -> Result<Vec<Row>, Error> {
        // An empty range when the batch has late rows only.
        let (first_id, last_id) = self.batch.fresh_ids.unwrap_or((0, -1));
        let rows = client
            .query(
                "-- pglog::page_rows
                 WITH snapshots AS MATERIALIZED (
                     SELECT $4::text::pg_snapshot AS previous, $5::text::pg_snapshot AS current
                     FROM log_batches
                     WHERE partition = $1 AND first_offset = $8 AND token = $9 AND reaped_at IS NULL
                 )
                 SELECT id, object, action, CASE WHEN $10 THEN data::text END AS data, staged_at
                 FROM (
                     (SELECT r.id, r.object, r.action, r.data, r.staged_at FROM staged_log_records r
                      WHERE EXISTS (SELECT FROM snapshots)
                        AND r.partition = $1 AND r.id > $2 AND r.id >= $6 AND r.id <= $7
                        AND NOT pg_visible_in_snapshot(r.transaction_id, (SELECT previous FROM snapshots))
                        AND pg_visible_in_snapshot(r.transaction_id, (SELECT current FROM snapshots))
                      ORDER BY r.partition, r.id LIMIT $3)
                     UNION ALL
                     (SELECT late.* FROM pg_snapshot_xip((SELECT previous FROM snapshots)) AS in_flight,
                      LATERAL (SELECT r.id, r.object, r.action, r.data, r.staged_at FROM staged_log_records r
                               WHERE r.partition = $1 AND r.transaction_id = in_flight AND r.id > $2
                                 AND (r.id < $6 OR r.id > $7)
                               ORDER BY r.partition, r.transaction_id, r.id LIMIT $3) AS late
                      WHERE pg_visible_in_snapshot(in_flight, (SELECT current FROM snapshots)))
                 ) AS page
                 ORDER BY id LIMIT $3",
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
                    &(payload == Payload::Fetched),
                ],
            )
            .await?;
        Ok(rows)
    }

    /// The id of the `position`th record after the reader's place. Walks the batch; needed only to resume inside one.
    async fn id_at(&mut self, client: &impl GenericClient, position: i64) -> Result<i64, Error> {
        const SKIP_LEN_MAX: i64 = 10_000;
        let mut skipped_count = 0;
        while skipped_count < position {
            let wanted = SKIP_LEN_MAX.min(position - skipped_count);
            let rows = self.page_rows(client, wanted, Payload::LeftOut).await?;
            skipped_count += rows.len() as i64;
            if (rows.len() as i64) < wanted {
                return Err(self.why_short(client, skipped_count).await);
            }
            self.after_id = rows[rows.len() - 1].get("id");
        }
        Ok(self.after_id)
    }

    /// A page came back short: reaped in the meantime, or damaged?
    async fn why_short(&self, client: &impl GenericClient, page_count: i64) -> Error {
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

fn micros_since_1970(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// The batch that holds `offset`, with its predecessor's snapshot.
async fn find_batch(client: &impl GenericClient, partition: i32, offset: i64) -> Result<Batch, Error> {
    let row = client
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
        .await?;
    let Some(row) = row else {
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
