//! Batches. They decide the offset of each record, once, and before it is published (I2, I3).

use tokio_postgres::Row;

use crate::Error;
use crate::partition::Partition;
use crate::record::Page;
use crate::session::Session;

/// First half of the key of the advisory lock that makes a session the leader of a partition. The second half is the
/// partition. Only the session that holds the lock may [`assign`].
pub const LEADER_LOCK: i32 = 0x524f_434b;

/// One row of `log_batches` together with the snapshot it starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The partition it belongs to.
    pub partition: Partition,
    /// Offset of its first record.
    pub first_offset: i64,
    /// How many records it has, at least 1.
    pub record_count: i64,
    /// The number that stream entries of this batch carry.
    pub token: i64,
    /// Its snapshot, as `pg_snapshot` prints it: `xmin:xmax:xip,xip…`.
    pub snapshot: String,
    /// The snapshot of the batch before; the empty snapshot if there is no such batch.
    pub previous_snapshot: String,
    /// First and last id of the rows whose transactions began after the previous snapshot. `None`: no such rows.
    pub fresh_ids: Option<(i64, i64)>,
}

impl Batch {
    /// Offset of its last record.
    pub fn last_offset(&self) -> i64 {
        self.first_offset + self.record_count - 1
    }

    /// Whether it may have late rows: rows of transactions that were open at the previous snapshot.
    pub(crate) fn may_have_late_rows(&self) -> bool {
        // xmin:xmax:xip,xip…
        !self.previous_snapshot.ends_with(':')
    }

    /// Reads the columns `first_offset, record_count, token, snapshot, previous_snapshot, fresh_first_id, fresh_last_id`.
    pub(crate) fn from_row(partition: Partition, row: &Row) -> Self {
        let fresh: (Option<i64>, Option<i64>) = (row.get("fresh_first_id"), row.get("fresh_last_id"));
        Self {
            partition,
            first_offset: row.get("first_offset"),
            record_count: row.get("record_count"),
            token: row.get("token"),
            snapshot: row.get("snapshot"),
            previous_snapshot: row.get("previous_snapshot"),
            fresh_ids: fresh.0.zip(fresh.1),
        }
    }
}

/// Cuts the next batch: every staged row that is visible now and was not visible in the previous batch's snapshot.
///
/// It is one statement, hence one snapshot: it counts exactly the rows that the stored snapshot describes. `token` is the
/// random number that the batch's stream entries will carry. Returns `None` if no record was staged, or if another streamer
/// has cut this batch (the primary key decides).
///
/// It reads two ranges of the index, and not all rows since `pg_snapshot_xmin`. So a transaction that stays open for an
/// hour costs nothing.
///
/// # Errors
/// [`Error::TransactionsStartedOver`] if the tables come from another cluster; otherwise Postgres is away.
pub async fn assign(client: &impl Session, partition: Partition, token: i64) -> Result<Option<Batch>, Error> {
    Ok(assign_and_read(client, partition, token, 0).await?.map(|(batch, _)| batch))
}

/// As [`assign`], and reads the batch in the same statement if it has at most `len_max` records and no late rows. If the
/// page is `None`, the batch is still to be read.
///
/// # Errors
/// As [`assign`].
pub async fn assign_and_read(
    client: &impl Session,
    partition: Partition,
    token: i64,
    len_max: i64,
) -> Result<Option<(Batch, Option<Page>)>, Error> {
    let rows = client
        .query(
            "-- pglog::assign
             WITH edge AS MATERIALIZED (
                 SELECT COALESCE(max(first_offset + record_count), 1) AS next_offset,
                        -- The empty snapshot: nothing was visible before the first batch.
                        COALESCE(max(snapshot::text), '1:1:')::pg_snapshot AS snapshot
                 FROM (SELECT first_offset, record_count, snapshot FROM log_batches WHERE partition = $1
                       ORDER BY first_offset DESC LIMIT 1) AS newest
             ), fresh AS (
                 SELECT count(*) AS count, min(id) AS first_id, max(id) AS last_id FROM staged_log_records
                 WHERE partition = $1 AND transaction_id >= (SELECT pg_snapshot_xmax(snapshot) FROM edge)
             ), late AS (
                 -- A look-up per transaction. With = ANY (array), a plan made while the table is small reads the whole index.
                 SELECT COALESCE(sum(of_one.count), 0)::bigint AS count
                 FROM edge, pg_snapshot_xip(edge.snapshot) AS in_flight,
                      LATERAL (SELECT count(*) AS count FROM staged_log_records
                               WHERE partition = $1 AND transaction_id = in_flight) AS of_one
             ), cut AS (
                 INSERT INTO log_batches
                     (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id, token)
                 SELECT $1, edge.next_offset, fresh.count + late.count, pg_current_snapshot(),
                        fresh.first_id, fresh.last_id, $2
                 FROM edge, fresh, late
                 WHERE fresh.count + late.count > 0
                   AND pg_snapshot_xmax(pg_current_snapshot()) >= pg_snapshot_xmax(edge.snapshot)
                 ON CONFLICT (partition, first_offset) DO NOTHING
                 RETURNING first_offset, record_count, token, snapshot::text, fresh_first_id, fresh_last_id
             )
             SELECT page.*, cut.*, edge.snapshot::text AS previous_snapshot,
                    pg_snapshot_xmax(pg_current_snapshot())::text AS cluster_xmax,
                    pg_snapshot_xmax(edge.snapshot)::text AS batch_xmax,
                    pg_snapshot_xmax(pg_current_snapshot()) >= pg_snapshot_xmax(edge.snapshot) AS in_order
             FROM edge LEFT JOIN cut ON true
             LEFT JOIN LATERAL (
                 SELECT id, object, action, data, staged_at, traceparent FROM staged_log_records
                 WHERE cut.record_count <= $3 AND (SELECT count FROM late) = 0
                   AND partition = $1 AND id >= cut.fresh_first_id AND id <= cut.fresh_last_id
                   AND transaction_id >= (SELECT pg_snapshot_xmax(snapshot) FROM edge)
                   AND pg_visible_in_snapshot(transaction_id, pg_current_snapshot())
                 ORDER BY partition, id
             ) AS page ON true
             ORDER BY page.id",
            &[&partition, &token, &len_max],
        )
        .await?;
    let row = rows.first().expect("edge has exactly one row");
    if !row.get::<_, bool>("in_order") {
        let (batch_xmax, cluster_xmax) = (row.get("batch_xmax"), row.get("cluster_xmax"));
        return Err(Error::TransactionsStartedOver { partition, batch_xmax, cluster_xmax });
    }
    if row.get::<_, Option<i64>>("first_offset").is_none() {
        return Ok(None);
    }
    let batch = Batch::from_row(partition, row);
    // A restored row may carry a transaction id of the future. It is counted and not read; the reader reports it.
    let is_read = row.get::<_, Option<i64>>("id").is_some() && rows.len() as i64 == batch.record_count;
    let page = is_read.then(|| Page::new(batch.first_offset, batch.token, rows));
    Ok(Some((batch, page)))
}

/// Whether [`assign`] would find rows for a batch. It changes nothing, so it needs no leadership.
///
/// # Errors
/// Postgres is away.
pub async fn is_anything_staged(client: &impl Session, partition: Partition) -> Result<bool, Error> {
    let edge = edge(client, partition).await?;
    let row = client
        .query_one(
            "-- pglog::is_anything_staged
             SELECT (SELECT transaction_id FROM staged_log_records
                     WHERE partition = $1 AND transaction_id >= pg_snapshot_xmax($2::text::pg_snapshot)
                     -- Without ORDER BY, a plan made while the table is small reads the whole of another index.
                     ORDER BY partition, transaction_id LIMIT 1) IS NOT NULL
                 OR EXISTS (SELECT FROM pg_snapshot_xip($2::text::pg_snapshot) AS in_flight,
                                 LATERAL (SELECT FROM staged_log_records
                                          WHERE partition = $1 AND transaction_id = in_flight LIMIT 1) AS late)",
            &[&partition, &edge.snapshot],
        )
        .await?;
    Ok(row.get(0))
}

/// Where the next batch starts.
struct Edge {
    next_offset: i64,
    snapshot: String,
    /// The token of the batch before; 0 if there is none.
    token: i64,
}

async fn edge(client: &impl Session, partition: Partition) -> Result<Edge, Error> {
    let row = client
        .query_opt(
            "-- pglog::edge
             SELECT first_offset + record_count AS next_offset, snapshot::text, token FROM log_batches
             WHERE partition = $1 ORDER BY first_offset DESC LIMIT 1",
            &[&partition],
        )
        .await?;
    Ok(match row {
        Some(row) => {
            Edge { next_offset: row.get("next_offset"), snapshot: row.get("snapshot"), token: row.get("token") }
        }
        // The empty snapshot: nothing was visible before the first batch.
        None => Edge { next_offset: 1, snapshot: "1:1:".to_owned(), token: 0 },
    })
}

/// The highest assigned offset, 0 if there is none.
///
/// # Errors
/// Postgres is away.
pub async fn head(client: &impl Session, partition: Partition) -> Result<i64, Error> {
    Ok(edge(client, partition).await?.next_offset - 1)
}

/// The [`head`], and the token of its batch (0 if there is none). Both together tell a log from itself before Postgres was
/// put back to an older state: the same offsets have other tokens then.
///
/// # Errors
/// Postgres is away.
pub async fn marked_head(client: &impl Session, partition: Partition) -> Result<(i64, i64), Error> {
    let edge = edge(client, partition).await?;
    Ok((edge.next_offset - 1, edge.token))
}

/// The lowest offset whose record can still be read, or the one after the head if none can.
///
/// # Errors
/// Postgres is away.
pub async fn first_retained(client: &impl Session, partition: Partition) -> Result<i64, Error> {
    // One statement. Between two statements a batch might be cut, and the offset after the head would be far too high.
    let row = client
        .query_one(
            "-- pglog::first_retained
             SELECT COALESCE(
                 (SELECT first_offset FROM log_batches WHERE partition = $1 AND reaped_at IS NULL
                  ORDER BY first_offset LIMIT 1),
                 (SELECT first_offset + record_count FROM log_batches WHERE partition = $1
                  ORDER BY first_offset DESC LIMIT 1),
                 1)",
            &[&partition],
        )
        .await?;
    Ok(row.get(0))
}

/// The offsets that share one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRange {
    /// First offset.
    pub first_offset: i64,
    /// Last offset.
    pub last_offset: i64,
    /// The token of every entry with these offsets.
    pub token: i64,
}

/// The ranges of at most `count_max` batches, in order, beginning with the batch that contains `from_offset`.
///
/// # Errors
/// Postgres is away.
pub async fn batch_ranges(
    client: &impl Session,
    partition: Partition,
    from_offset: i64,
    count_max: i64,
) -> Result<Vec<BatchRange>, Error> {
    let rows = client
        .query(
            "-- pglog::batch_ranges
             SELECT first_offset, first_offset + record_count - 1 AS last_offset, token FROM log_batches
             WHERE partition = $1
               -- Not max(): a plan made while the table is small might read the whole table, and plans are kept.
               AND first_offset >= COALESCE((SELECT first_offset FROM log_batches
                                             WHERE partition = $1 AND first_offset <= $2
                                             ORDER BY first_offset DESC LIMIT 1), 0)
             ORDER BY first_offset LIMIT $3",
            &[&partition, &from_offset, &count_max],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| BatchRange { first_offset: row.get(0), last_offset: row.get(1), token: row.get(2) })
        .filter(|range| range.last_offset >= from_offset)
        .collect())
}

/// The token of the batch that contains `offset`. `None`: the batch was deleted, or does not exist yet.
///
/// # Errors
/// Postgres is away.
pub async fn token_at(client: &impl Session, partition: Partition, offset: i64) -> Result<Option<i64>, Error> {
    let ranges = batch_ranges(client, partition, offset, 1).await?;
    // If the batch of this offset was deleted, the first range is that of a later batch.
    Ok(ranges.first().filter(|range| range.first_offset <= offset).map(|range| range.token))
}
