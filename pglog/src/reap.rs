//! Giving up records that nobody needs any more (I8).
//!
//! Batches are given up oldest first, whole. So the rows to delete are simply those visible in the snapshot of the newest
//! batch given up; and that batch keeps its own row, because its snapshot is where the oldest readable batch begins.

use std::time::Duration;

use tokio_postgres::{Client, IsolationLevel};

use crate::Error;
use crate::checkpoint::{hold_registration, lowest_checkpoint};

/// Batches given up by one transaction.
const BATCHES_LEN_MAX: i64 = 1000;

/// Rows deleted by one statement.
const CHUNK_LEN_MAX: i64 = 10_000;

/// What [`reap`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reaped {
    /// Batches given up, at most 1000; if it is 1000 there may be more.
    pub batch_count: u64,
    /// Rows deleted from `staged_log_records`.
    pub record_count: u64,
}

/// Removes the oldest batches that every registered consumer has passed and that are older than `keep`. With no consumer
/// registered nothing is removed.
///
/// The batches are marked first, in a transaction during which no consumer can register: from then on readers get
/// [`Error::Reaped`] and never half a batch. The rows go after that, in bounded pieces. Killed in between, the next call
/// deletes what is left.
///
/// # Errors
/// Postgres is away; call again.
pub async fn reap(client: &mut Client, partition: i32, keep: Duration) -> Result<Reaped, Error> {
    // Said, because the session's default may be another: under repeatable read the snapshot would be older than the
    // lock, and a consumer that registered while we waited for it would not be seen.
    let tx = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    hold_registration(&tx).await?;
    let passed = lowest_checkpoint(&tx, partition).await?.unwrap_or(0);
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
               AND first_offset <= (SELECT max(first_offset) FROM oldest WHERE is_done)
               AND first_offset < COALESCE((SELECT min(first_offset) FROM oldest WHERE NOT is_done), first_offset + 1)",
            &[&partition, &passed, &keep.as_secs_f64(), &BATCHES_LEN_MAX],
        )
        .await?;
    tx.commit().await?;
    Ok(Reaped { batch_count, record_count: delete_marked(client, partition).await? })
}

/// Deletes the rows of marked batches, and all marked batches but the newest.
async fn delete_marked(client: &Client, partition: i32) -> Result<u64, Error> {
    let mut record_count = 0;
    loop {
        // Found by what makes them rows of these batches, deleted by their exact ids: never by a range of ids (I3).
        let chunk_count = client
            .execute(
                "-- pglog::delete_marked
                 WITH marked AS MATERIALIZED (
                     SELECT snapshot FROM log_batches WHERE partition = $1 AND reaped_at IS NOT NULL
                     ORDER BY first_offset DESC LIMIT 1
                 )
                 DELETE FROM staged_log_records WHERE partition = $1 AND id = ANY (ARRAY(
                     SELECT id FROM staged_log_records
                     WHERE partition = $1 AND transaction_id < (SELECT pg_snapshot_xmax(snapshot) FROM marked)
                       AND pg_visible_in_snapshot(transaction_id, (SELECT snapshot FROM marked))
                     ORDER BY partition, transaction_id LIMIT $2))",
                &[&partition, &CHUNK_LEN_MAX],
            )
            .await?;
        record_count += chunk_count;
        if chunk_count < CHUNK_LEN_MAX as u64 {
            break;
        }
    }
    client
        .execute(
            "-- pglog::delete_marked
             DELETE FROM log_batches WHERE partition = $1 AND first_offset <
                 (SELECT max(first_offset) FROM log_batches WHERE partition = $1 AND reaped_at IS NOT NULL)",
            &[&partition],
        )
        .await?;
    Ok(record_count)
}
