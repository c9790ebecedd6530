//! Reading the log back from Postgres: the streamer publishes from here, a consumer heals its gaps from here.
//!
//! Whoever reads an offset, whenever, gets the same record (I2).

use std::time::SystemTime;

use tokio_postgres::{GenericClient, Row};

use crate::Error;
use crate::batch::{Batch, head};

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
#[derive(Debug)]
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
        let rows = self.page_rows(client, expected_len).await?;
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
    async fn page_rows(&self, client: &impl GenericClient, len_max: i64) -> Result<Vec<Row>, Error> {
        // An empty range when the batch has late rows only.
        let (first_id, last_id) = self.batch.fresh_ids.unwrap_or((0, -1));
        let rows = client
            .query(
                "-- pglog::page_rows
                 WITH snapshots AS MATERIALIZED (
                     SELECT $4::text::pg_snapshot AS previous, $5::text::pg_snapshot AS current
                 )
                 SELECT id, object, action, data::text, staged_at
                 FROM (
                     (SELECT r.id, r.object, r.action, r.data, r.staged_at FROM staged_log_records r
                      WHERE r.partition = $1 AND r.id > $2 AND r.id >= $6 AND r.id <= $7
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
                ],
            )
            .await?;
        Ok(rows)
    }

    /// The id of the batch's `position`th record, counted from 1. Walks the batch; needed only to resume inside one.
    async fn id_at(&mut self, client: &impl GenericClient, position: i64) -> Result<i64, Error> {
        const SKIP_LEN_MAX: i64 = 10_000;
        let mut skipped_count = 0;
        while skipped_count < position {
            let wanted = SKIP_LEN_MAX.min(position - skipped_count);
            let rows = self.page_rows(client, wanted).await?;
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
    let reaped_or_unassigned = async || {
        let (first_retained, head) =
            (crate::batch::first_retained(client, partition).await?, head(client, partition).await?);
        Err(if offset < 1 || offset > head {
            Error::Unassigned { partition, offset, head }
        } else {
            Error::Reaped { partition, offset, first_retained }
        })
    };
    let Some(row) = row else { return reaped_or_unassigned().await };
    let batch = Batch::from_row(partition, &row);
    // Without its predecessor a batch cannot be derived; the reaper keeps one, so this batch was half reaped.
    if offset > batch.last_offset() || row.get("reaped") || row.get("orphaned") {
        return reaped_or_unassigned().await;
    }
    Ok(batch)
}
