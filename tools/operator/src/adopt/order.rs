//! The rows of each batch: derived from the old snapshots for the last time, and checked before anything is written.
//!
//! Rows that were staged in the new cluster, after the restore, have higher ids than every restored row, because the
//! sequence was restored too. But their transaction ids are those of the new cluster, and a small id looks like a finished
//! transaction in an old snapshot. So visibility alone does not decide which batch a row belongs to: the id range and the
//! record count of the batch decide too.

use anyhow::{Context, Result, bail, ensure};
use deadpool_postgres::Transaction;
use pglog::Partition;

/// Rows of unknown origin that are named.
const DOUBTFUL_LEN_MAX: i64 = 10;

/// Checks that the batches follow each other without a gap: reaped batches first, and at least one of them before the first
/// readable batch, unless that begins at offset 1.
pub(super) async fn check_chain(tx: &Transaction<'_>, partition: Partition) -> Result<()> {
    let broken = tx
        .query_opt(
            "-- operator::adopt::check_chain
             SELECT first_offset FROM (
                 SELECT first_offset, reaped_at IS NULL AS retained,
                        lag(first_offset + record_count) OVER following AS expected_offset,
                        lag(reaped_at IS NULL) OVER following AS previous_retained
                 FROM log_batches WHERE partition = $1 WINDOW following AS (ORDER BY first_offset)) AS chain
             WHERE CASE WHEN expected_offset IS NULL THEN retained AND first_offset > 1
                        ELSE first_offset <> expected_offset OR previous_retained AND NOT retained END
             ORDER BY first_offset LIMIT 1",
            &[&partition],
        )
        .await
        .context("looking at the batches")?;
    match broken {
        None => Ok(()),
        Some(row) => bail!(
            "log_batches of partition {partition} are damaged: the batch before offset {} is missing. Restore another \
             dump (nothing was changed)",
            row.get::<_, i64>(0)
        ),
    }
}

/// Fills `adopted_records` with the row of each offset, as `pglog::Reader` would find it in the old cluster.
pub(super) async fn derive(tx: &Transaction<'_>, partition: Partition) -> Result<()> {
    // A restored table has no statistics yet. Every statement here is meant to use indexes.
    tx.batch_execute(
        "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off;
         SET LOCAL enable_mergejoin = off; SET LOCAL jit = off;
         CREATE TEMPORARY TABLE IF NOT EXISTS adopted_records (
             id BIGINT PRIMARY KEY, record_offset BIGINT UNIQUE) ON COMMIT DROP;
         TRUNCATE adopted_records",
    )
    .await
    .context("preparing a temporary table")?;
    tx.execute(
        "-- operator::adopt::derive
         INSERT INTO adopted_records (id, record_offset)
         WITH batches AS MATERIALIZED (
             SELECT first_offset, record_count, snapshot, reaped_at IS NULL AS retained,
                    COALESCE(lag(snapshot) OVER (ORDER BY first_offset), '1:1:') AS previous,
                    COALESCE(fresh_first_id, 0) AS first_id, COALESCE(fresh_last_id, -1) AS last_id
             FROM log_batches WHERE partition = $1
         ), candidates AS (
             SELECT batch.first_offset, batch.record_count, fresh.id
             FROM batches AS batch, LATERAL (
                 SELECT id FROM staged_log_records
                 WHERE partition = $1 AND id >= batch.first_id AND id <= batch.last_id
                   AND NOT pg_visible_in_snapshot(transaction_id, batch.previous)
                   AND pg_visible_in_snapshot(transaction_id, batch.snapshot) OFFSET 0) AS fresh
             WHERE batch.retained
             UNION ALL
             SELECT batch.first_offset, batch.record_count, late.id
             FROM batches AS batch, pg_snapshot_xip(batch.previous) AS in_flight, LATERAL (
                 SELECT id FROM staged_log_records
                 WHERE partition = $1 AND transaction_id = in_flight
                   AND (id < batch.first_id OR id > batch.last_id) OFFSET 0) AS late
             WHERE batch.retained AND pg_visible_in_snapshot(in_flight, batch.snapshot)
         ), numbered AS (
             SELECT id, first_offset, record_count,
                    row_number() OVER (PARTITION BY first_offset ORDER BY id) AS position FROM candidates
         )
         -- A row that was staged after the restore may look late. Its id is higher than all ids of the batch.
         SELECT id, first_offset + position - 1 FROM numbered WHERE position <= record_count",
        &[&partition],
    )
    .await
    .context("deriving the records of each batch")?;
    Ok(())
}

pub(super) async fn check_batches(tx: &Transaction<'_>, partition: Partition) -> Result<()> {
    let short = tx
        .query_opt(
            "-- operator::adopt::check_batches
             SELECT first_offset, record_count, found.count
             FROM log_batches AS batch, LATERAL (
                 SELECT count(*) FROM adopted_records
                 WHERE record_offset >= batch.first_offset
                   AND record_offset < batch.first_offset + batch.record_count) AS found
             WHERE partition = $1 AND reaped_at IS NULL AND found.count <> record_count
             ORDER BY first_offset LIMIT 1",
            &[&partition],
        )
        .await
        .context("counting the records of each batch")?;
    match short {
        None => Ok(()),
        Some(row) => Err(anyhow::Error::new(pglog::Error::RowsMissing {
            partition,
            first_offset: row.get(0),
            record_count: row.get(1),
            found_count: row.get(2),
        })
        .context("the restored log is damaged, and nothing was changed: restore another dump")),
    }
}

/// Checks that no row is of unknown origin: it looks reaped, and its id is higher than all ids that are known to be those of
/// batches. Such a row was either staged after the restore, and must be kept, or it belongs to a reaped batch whose rows were
/// only partly deleted, and must go.
///
/// There is no such row if the reaped batches state their highest ids. Batches from before version 6 do not. Of their rows
/// only the time tells: a row that was staged after the reaper marked the batch is of no such batch. A row's `xmin` tells
/// nothing: after pg_upgrade, and in the log's own cluster, it is that of the transaction that staged the row.
pub(super) async fn check_doubtful(tx: &Transaction<'_>, partition: Partition) -> Result<()> {
    let rows = tx
        .query(
            &format!(
                "-- operator::adopt::check_doubtful
                 {REAPED}
                 SELECT staged.id FROM reaped, staged_log_records AS staged
                 WHERE NOT reaped.is_exact AND staged.partition = $1 AND staged.id > reaped.last_id
                   AND pg_visible_in_snapshot(staged.transaction_id, reaped.snapshot)
                   AND staged.staged_at <= reaped.reaped_at
                   AND NOT EXISTS (SELECT FROM adopted_records WHERE id = staged.id)
                 ORDER BY staged.id LIMIT $2"
            ),
            &[&partition, &DOUBTFUL_LEN_MAX],
        )
        .await
        .context("looking for remains of reaped records")?;
    let ids: Vec<String> = rows.iter().map(|row| row.get::<_, i64>(0).to_string()).collect();
    ensure!(
        ids.is_empty(),
        "partition {partition} has staged rows that may belong to reaped batches, or to none: id {}{}. Look at them in \
         staged_log_records: if all consumers have passed them, delete them and run adopt again (nothing was changed)",
        ids.join(", "),
        if ids.len() as i64 == DOUBTFUL_LEN_MAX { ", and perhaps more" } else { "" }
    );
    Ok(())
}

/// Adds the rows that are in no batch to `adopted_records`, without an offset. Returns their number.
pub(super) async fn add_waiting(tx: &Transaction<'_>, partition: Partition) -> Result<i64> {
    let waiting_count = tx
        .execute(
            &format!(
                "-- operator::adopt::add_waiting
                 INSERT INTO adopted_records (id)
                 {REAPED}
                 SELECT staged.id FROM staged_log_records AS staged LEFT JOIN reaped ON true
                 WHERE staged.partition = $1
                   AND NOT COALESCE(staged.id <= reaped.last_id
                                    AND pg_visible_in_snapshot(staged.transaction_id, reaped.snapshot), false)
                   AND NOT EXISTS (SELECT FROM adopted_records WHERE id = staged.id)"
            ),
            &[&partition],
        )
        .await
        .context("looking for records in no batch")?;
    Ok(waiting_count as i64)
}

/// A CTE: the newest reaped batch, the highest id that is known to be of a batch, and whether no reaped batch has a higher one.
const REAPED: &str = "WITH reaped AS MATERIALIZED (
                     SELECT snapshot, reaped_at,
                            greatest((SELECT max(greatest(fresh_last_id, last_id)) FROM log_batches WHERE partition = $1),
                                     (SELECT max(id) FROM adopted_records WHERE record_offset IS NOT NULL), 0) AS last_id,
                            (SELECT bool_and(last_id IS NOT NULL) FROM log_batches
                             WHERE partition = $1 AND reaped_at IS NOT NULL) AS is_exact
                     FROM log_batches WHERE partition = $1 AND reaped_at IS NOT NULL
                     ORDER BY first_offset DESC LIMIT 1)";
