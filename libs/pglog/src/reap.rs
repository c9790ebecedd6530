//! Deleting records that every consumer has passed (I8).
//!
//! The reaper gives up whole batches, the oldest first: it marks them, and deletes their rows later. So the rows to delete
//! are those visible in the snapshot of the newest marked batch. That batch keeps its own row in `log_batches`, because the
//! oldest readable batch begins at its snapshot.
//!
//! The baseline must contain a record before it is deleted. [`reapable`] returns an offset, the caller moves the baseline
//! there, and [`reap`] gives up only batches that the baseline has passed too. If the reaper is killed in between, no
//! record is lost that is not in the baseline.

use std::time::Duration;

use deadpool_postgres::{ClientWrapper as Client, Transaction};
use tokio_postgres::IsolationLevel;

use crate::Error;
use crate::batch::first_retained;
use crate::checkpoint::{hold_registration, lowest_checkpoint};
use crate::partition::Partition;
use crate::session::Session;

/// Batches that one transaction gives up.
const BATCHES_LEN_MAX: i64 = 1000;

/// While so many batches are marked, no further ones are: first their rows are deleted.
const MARKED_LEN_MAX: i64 = 10_000;

/// Rows that one statement deletes.
const CHUNK_LEN_MAX: i64 = 10_000;

/// Chunks per call.
const CHUNKS_LEN_MAX: usize = 10;

/// The numbers of batches and rows that [`reap`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReapedCounts {
    /// Batches given up, at most 1000.
    pub batch_count: u64,
    /// Rows deleted from `staged_log_records`, at most 100,000.
    pub record_count: u64,
}

/// The offset up to which the baseline may go: the last offset of the oldest batches (at most 1000) that every registered
/// consumer has passed and that are older than `keep`. `None` if there is no such batch, or no consumer.
///
/// # Errors
/// Postgres is away.
pub async fn reapable(client: &impl Session, partition: Partition, keep: Duration) -> Result<Option<i64>, Error> {
    let passed = lowest_checkpoint(client, partition).await?.unwrap_or(0);
    let row = client
        .query_one(
            "-- pglog::reapable
             WITH oldest AS (
                 SELECT first_offset, first_offset + record_count - 1 AS last_offset,
                        first_offset + record_count - 1 <= $2
                        AND created_at <= now() - $3::float8 * interval '1 second' AS is_done
                 FROM log_batches WHERE partition = $1 AND reaped_at IS NULL ORDER BY first_offset LIMIT $4
             )
             SELECT max(last_offset) FROM oldest
             WHERE first_offset < COALESCE((SELECT min(first_offset) FROM oldest WHERE NOT is_done), first_offset + 1)",
            &[&partition, &passed, &keep.as_secs_f64(), &BATCHES_LEN_MAX],
        )
        .await?;
    Ok(row.get(0))
}

/// Removes the oldest batches that every registered consumer and the baseline have passed and that are older than `keep`.
/// It removes nothing if no consumer is registered.
///
/// It first marks the batches, in a transaction during which no consumer can register. From then on readers get
/// [`Error::Reaped`], and never half a batch. Then it deletes the rows, in bounded chunks. If it is killed in between, the
/// next call deletes the rest.
///
/// # Errors
/// Postgres is away; call again.
pub async fn reap(client: &mut Client, partition: Partition, keep: Duration) -> Result<ReapedCounts, Error> {
    // The session's default may be another level. Under REPEATABLE READ the snapshot would be older than the lock, and this
    // transaction would not see a consumer that registered while it waited for the lock.
    let tx = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    hold_registration(&tx).await?;
    let passed = passed_by_all(&tx, partition).await?;
    let batch_count = tx
        .execute(
            "-- pglog::reap
             WITH oldest AS (
                 SELECT first_offset, first_offset + record_count - 1 <= $2
                        AND created_at <= now() - $3::float8 * interval '1 second' AS is_done
                 FROM log_batches WHERE partition = $1 AND reaped_at IS NULL ORDER BY first_offset LIMIT $4
             )
             UPDATE log_batches SET reaped_at = now()
             WHERE partition = $1 AND reaped_at IS NULL
               AND $5 > (SELECT count(*) FROM log_batches
                         WHERE partition = $1 AND first_offset < (SELECT min(first_offset) FROM oldest))
               AND first_offset <= (SELECT max(first_offset) FROM oldest WHERE is_done)
               AND first_offset < COALESCE((SELECT min(first_offset) FROM oldest WHERE NOT is_done), first_offset + 1)",
            &[&partition, &passed, &keep.as_secs_f64(), &BATCHES_LEN_MAX, &MARKED_LEN_MAX],
        )
        .await?;
    tx.commit().await?;
    Ok(ReapedCounts { batch_count, record_count: delete_marked(client, partition).await? })
}

/// The lowest of the consumers' checkpoints and the baseline; 0 if there is no consumer or no baseline.
async fn passed_by_all(tx: &Transaction<'_>, partition: Partition) -> Result<i64, Error> {
    // Two minima and not one: without a baseline nothing may be deleted, and neither without a consumer.
    let row = tx
        .query_one(
            "-- pglog::passed_by_all
             SELECT least(COALESCE(min(last_offset) FILTER (WHERE NOT is_baseline), 0),
                          COALESCE(min(last_offset) FILTER (WHERE is_baseline), 0))
             FROM checkpoints WHERE partition = $1",
            &[&partition],
        )
        .await?;
    Ok(row.get(0))
}

/// Deletes the rows of marked batches. When no row is left, it deletes the batches too.
async fn delete_marked(client: &Client, partition: Partition) -> Result<u64, Error> {
    // Marked batches are the oldest ones. There are few of them, and perhaps millions behind them.
    let first_retained = first_retained(client, partition).await?;
    let mut record_count = 0;
    for _ in 0..CHUNKS_LEN_MAX {
        // The rows are found by their visibility in the snapshot, never by a range of ids (I3): they are those of the
        // transactions between two that were open, which are passed over, however many rows they have written. The rows are
        // deleted by ctid, which never changes because rows are never updated. The DELETE names no partition, so that no plan
        // can read the whole index for it.
        let chunk_count = client
            .execute(
                "-- pglog::delete_marked
                 WITH marked AS MATERIALIZED (
                     SELECT snapshot FROM log_batches WHERE partition = $1 AND first_offset < $3
                     ORDER BY first_offset DESC LIMIT 1
                 ), hidden AS (
                     SELECT '0'::xid8 AS transaction_id
                     UNION ALL SELECT pg_snapshot_xip(snapshot) FROM marked
                     UNION ALL SELECT pg_snapshot_xmax(snapshot) FROM marked
                 ), visible AS MATERIALIZED (
                     SELECT transaction_id AS after, lead(transaction_id) OVER (ORDER BY transaction_id) AS before
                     FROM hidden
                 )
                 DELETE FROM staged_log_records WHERE ctid = ANY (ARRAY(
                     SELECT found.ctid FROM visible, LATERAL (
                         SELECT ctid FROM staged_log_records
                         WHERE partition = $1 AND transaction_id > visible.after AND transaction_id < visible.before
                         ORDER BY partition, transaction_id LIMIT $2) AS found
                     LIMIT $2))",
                &[&partition, &CHUNK_LEN_MAX, &first_retained],
            )
            .await?;
        record_count += chunk_count;
        if chunk_count < CHUNK_LEN_MAX as u64 {
            delete_batches(client, partition, first_retained).await?;
            break;
        }
    }
    Ok(record_count)
}

/// Deletes marked batches, the oldest first, except the newest: the oldest readable batch begins at its snapshot.
async fn delete_batches(client: &Client, partition: Partition, first_retained: i64) -> Result<(), Error> {
    client
        .execute(
            "-- pglog::delete_batches
             DELETE FROM log_batches WHERE partition = $1 AND first_offset <
                 (SELECT max(first_offset) FROM (
                      SELECT first_offset FROM log_batches WHERE partition = $1 AND first_offset < $2
                      ORDER BY first_offset LIMIT $3) AS oldest)",
            &[&partition, &first_retained, &(MARKED_LEN_MAX + BATCHES_LEN_MAX)],
        )
        .await?;
    Ok(())
}
