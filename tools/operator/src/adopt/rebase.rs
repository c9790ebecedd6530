//! One partition, step by step: derive the rows of each batch, check that no row is missing, and write all rows again.
//!
//! ```text
//! before   batch 1..300 (reaped)   batch 301..340   batch 341..355   …   staged, in no batch      old transaction ids
//! after    1..300 reaped '3:3:'    301..355 '4:4:', transaction 3        the same, transaction 4
//! ```
//!
//! 3 is the first transaction id that Postgres gives, during initdb, so every later transaction of any cluster has an id
//! above 4. The columns are of type xid8 and are compared as plain 64-bit numbers; neither the wraparound of the 32-bit
//! counter nor VACUUM affects them. Rows of transaction 3 are visible in '4:4:' and not in '3:3:', so they form the batch.
//! Rows of transaction 4 are not visible in '4:4:', so they belong to the next batch.

use anyhow::{Context, Result, ensure};
use deadpool_postgres::Transaction;
use pglog::Partition;

use super::order::{add_waiting, check_batches, check_chain, check_doubtful, derive};

/// The result for one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebased {
    /// The partition.
    pub partition: Partition,
    /// The lowest offset that can be read.
    pub first_retained: i64,
    /// The number of records that have an offset and can be read. They are one batch now.
    pub record_count: i64,
    /// The number of batches that these records were.
    pub batch_count: i64,
    /// The number of staged records that wait for their offset.
    pub waiting_count: i64,
    /// The number of rows of reaped batches that were still in the dump. They were removed.
    pub leftover_count: i64,
}

impl std::fmt::Display for Rebased {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { partition, first_retained, record_count, batch_count, waiting_count, leftover_count } = self;
        write!(f, "partition {partition}: ")?;
        match record_count {
            0 => write!(f, "no record with an offset, the next one is {first_retained}")?,
            _ => write!(
                f,
                "{record_count} records of {batch_count} batches, offsets {first_retained} to {}, are one batch now",
                first_retained + record_count - 1
            )?,
        }
        write!(f, "; {waiting_count} staged records wait for their offsets")?;
        match leftover_count {
            0 => Ok(()),
            _ => write!(f, "; {leftover_count} remains of reaped records were removed"),
        }
    }
}

/// The partitions that have batches or staged records.
pub(super) async fn partitions(tx: &Transaction<'_>) -> Result<Vec<Partition>> {
    let rows = tx
        .query(
            "-- operator::adopt::partitions
             SELECT partition FROM log_batches UNION SELECT partition FROM staged_log_records ORDER BY 1",
            &[],
        )
        .await
        .context("looking for partitions")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The highest id that any staged row ever had. New ids begin above it, so that no id is used twice.
pub(super) async fn last_id(tx: &Transaction<'_>) -> Result<i64> {
    let row = tx
        .query_one(
            "-- operator::adopt::last_id
             SELECT greatest(COALESCE((SELECT max(id) FROM staged_log_records), 0),
                             COALESCE(pg_sequence_last_value(pg_get_serial_sequence('staged_log_records', 'id')), 0))",
            &[],
        )
        .await
        .context("looking for the highest id")?;
    Ok(row.get(0))
}

/// Makes the sequence go on above `last_id`.
pub(super) async fn set_last_id(tx: &Transaction<'_>, last_id: i64) -> Result<()> {
    if last_id > 0 {
        tx.execute(
            "-- operator::adopt::set_last_id
             SELECT setval(pg_get_serial_sequence('staged_log_records', 'id'), $1)",
            &[&last_id],
        )
        .await
        .context("setting the sequence")?;
    }
    Ok(())
}

/// Writes the rows and batches of a partition again, with ids above `last_id`. The caller holds all locks.
///
/// # Errors
/// [`pglog::Error::RowsMissing`] and other damage: the caller must roll back.
pub(super) async fn rebase(tx: &Transaction<'_>, partition: Partition, last_id: i64) -> Result<Rebased> {
    check_chain(tx, partition).await?;
    let first_retained = pglog::first_retained(tx, partition).await?;
    let head = pglog::head(tx, partition).await?;
    derive(tx, partition).await?;
    check_batches(tx, partition).await?;
    check_doubtful(tx, partition).await?;
    let waiting_count = add_waiting(tx, partition).await?;
    let record_count = head + 1 - first_retained;
    let kept_count = record_count + waiting_count;
    let leftover_count = rewrite_rows(tx, partition, last_id, kept_count).await?;
    let batch_count = rewrite_batches(tx, partition, first_retained, record_count, last_id).await?;
    Ok(Rebased { partition, first_retained, record_count, batch_count, waiting_count, leftover_count })
}

/// Writes the rows again, in order, and deletes the old ones. Returns the number of old rows that were not written again.
async fn rewrite_rows(tx: &Transaction<'_>, partition: Partition, last_id: i64, kept_count: i64) -> Result<i64> {
    let written_count = tx
        .execute(
            "-- operator::adopt::rewrite_rows
             INSERT INTO staged_log_records (transaction_id, partition, id, staged_at, object, action, data, traceparent)
             OVERRIDING SYSTEM VALUE
             SELECT CASE WHEN ordered.record_offset IS NULL THEN '4'::xid8 ELSE '3'::xid8 END, $1, $2 + ordered.position,
                    old.staged_at, old.object, old.action, old.data, old.traceparent
             FROM (SELECT id, record_offset, row_number() OVER (ORDER BY record_offset NULLS LAST, id) AS position
                   FROM adopted_records) AS ordered
             JOIN staged_log_records AS old ON old.partition = $1 AND old.id = ordered.id",
            &[&partition, &last_id],
        )
        .await
        .context("writing the records anew")? as i64;
    ensure!(written_count == kept_count, "{written_count} records were written, and {kept_count} were expected");
    let removed_count = tx
        .execute(
            "-- operator::adopt::rewrite_rows
             DELETE FROM staged_log_records WHERE partition = $1 AND id <= $2",
            &[&partition, &last_id],
        )
        .await
        .context("removing the old rows")? as i64;
    Ok(removed_count - written_count)
}

/// Replaces all readable batches by one, and all reaped batches by one before it. The tokens are new, so that readers ignore
/// the entries that the old cluster's streamer has published. Returns the number of readable batches before.
async fn rewrite_batches(
    tx: &Transaction<'_>,
    partition: Partition,
    first_retained: i64,
    record_count: i64,
    last_id: i64,
) -> Result<i64> {
    let token = || rand::random::<i64>() & i64::MAX;
    let row = tx
        .query_one(
            "-- operator::adopt::rewrite_batches
             SELECT count(*) FILTER (WHERE reaped_at IS NULL), max(created_at) FILTER (WHERE reaped_at IS NULL),
                    max(created_at), max(reaped_at)
             FROM log_batches WHERE partition = $1",
            &[&partition],
        )
        .await
        .context("reading the batches")?;
    type Time = Option<std::time::SystemTime>;
    let (retained_at, created_at, reaped_at): (Time, Time, Time) = (row.get(1), row.get(2), row.get(3));
    tx.execute(
        "-- operator::adopt::rewrite_batches
         DELETE FROM log_batches WHERE partition = $1",
        &[&partition],
    )
    .await
    .context("removing the old batches")?;
    if first_retained > 1 {
        tx.execute(
            "-- operator::adopt::rewrite_batches
             INSERT INTO log_batches
                 (partition, first_offset, record_count, snapshot, token, created_at, reaped_at, last_id)
             VALUES ($1, 1, $2, '3:3:', $3, $4, $5, $6)",
            &[&partition, &(first_retained - 1), &token(), &created_at, &reaped_at, &last_id],
        )
        .await
        .context("writing the reaped batch")?;
    }
    if record_count > 0 {
        tx.execute(
            "-- operator::adopt::rewrite_batches
             INSERT INTO log_batches (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id,
                                      token, created_at, last_id)
             VALUES ($1, $2, $3, '4:4:', $4, $5, $6, $7, $5)",
            &[
                &partition,
                &first_retained,
                &record_count,
                &(last_id + 1),
                &(last_id + record_count),
                &token(),
                &retained_at,
            ],
        )
        .await
        .context("writing the readable batch")?;
    }
    Ok(row.get(0))
}
