//! Batches. They decide the offset of each record, once, and before it is published (I2, I3).

use tokio_postgres::Row;

use crate::Error;
use crate::partition::Partition;
use crate::session::Session;

/// First half of the key of the advisory lock that makes a session the leader of a partition, before the function `log_key`
/// makes it a lock of this log alone: `LEADER_LOCK # log_key()`. The second half is the partition. Only the session that holds
/// the lock may [`assign`](crate::assign).
pub const LEADER_LOCK: i32 = 0x524f_434b;

/// First half of the key of the advisory locks by which streamers count each other, as [`LEADER_LOCK`] is of the leaders' locks.
/// The second half is 0 for a streamer that shares all partitions with others. A streamer that works on some partitions only
/// holds a lock for each of them: its number plus 1. All are shared locks.
pub const MEMBER_LOCK: i32 = 0x524f_434c;

/// Records of a batch between two whose ids are stored, and rows that one statement counts or skips.
pub(crate) const SKIP_LEN: i64 = 100_000;

/// Ids that one statement looks at. Rows of other batches may lie between those of a batch: a transaction with millions of
/// rows, say, that committed later.
pub(crate) const IDS_LEN_MAX: i64 = 1_000_000;

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

/// Whether [`assign`](crate::assign) would find rows for a batch. It changes nothing, so it needs no leadership.
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
                                          WHERE partition = $1 AND transaction_id = in_flight
                                          ORDER BY partition, transaction_id LIMIT 1) AS late
                            WHERE pg_visible_in_snapshot(in_flight, pg_current_snapshot()))",
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

/// The head of each of these partitions, in their order, by one statement.
///
/// # Errors
/// Postgres is away.
pub async fn heads(client: &impl Session, partitions: &[Partition]) -> Result<Vec<i64>, Error> {
    let marked = marked_heads(client, partitions).await?;
    Ok(marked.into_iter().map(|(offset, _)| offset).collect())
}

/// As [`heads`], with the tokens: the [`marked_head`] of each.
///
/// # Errors
/// Postgres is away.
pub async fn marked_heads(client: &impl Session, partitions: &[Partition]) -> Result<Vec<(i64, i64)>, Error> {
    let rows = client
        .query(
            "-- pglog::marked_heads
             SELECT COALESCE(last.first_offset + last.record_count - 1, 0), COALESCE(last.token, 0)
             FROM unnest($1::int[]) WITH ORDINALITY AS wanted (partition, place)
             LEFT JOIN LATERAL (SELECT first_offset, record_count, token FROM log_batches
                                WHERE partition = wanted.partition ORDER BY first_offset DESC LIMIT 1) AS last ON true
             ORDER BY wanted.place",
            &[&partitions],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The token of the batch that contains an offset, and the head, of each of these partitions; in their order, by one statement.
/// The token is `None` if the batch was deleted, or does not exist yet.
///
/// # Errors
/// Postgres is away.
pub async fn tokens_at(
    client: &impl Session,
    partitions: &[Partition],
    offsets: &[i64],
) -> Result<Vec<(Option<i64>, i64)>, Error> {
    let rows = client
        .query(
            "-- pglog::tokens_at
             SELECT CASE WHEN wanted.last_offset <= held.last_offset THEN held.token END, COALESCE(newest.last_offset, 0)
             FROM unnest($1::int[], $2::bigint[]) WITH ORDINALITY AS wanted (partition, last_offset, place)
             LEFT JOIN LATERAL (SELECT first_offset + record_count - 1 AS last_offset, token FROM log_batches
                                WHERE partition = wanted.partition AND first_offset <= wanted.last_offset
                                ORDER BY first_offset DESC LIMIT 1) AS held ON true
             LEFT JOIN LATERAL (SELECT first_offset + record_count - 1 AS last_offset FROM log_batches
                                WHERE partition = wanted.partition ORDER BY first_offset DESC LIMIT 1) AS newest ON true
             ORDER BY wanted.place",
            &[&partitions, &offsets],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
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
