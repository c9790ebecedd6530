//! The log's records of one kind of thing: those that are retained or staged and, with `--from start`, those that the history
//! has.

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;
use pglog::Partition;

use super::Origin;

/// The records that an audit can read.
pub(super) struct Retained {
    /// The partitions.
    pub partitions: Vec<Partition>,
    /// The first retained offset of each.
    pub firsts: Vec<i64>,
    /// Whether the archived records before it are read, too.
    pub is_archive_read: bool,
    /// Whether every record that was ever staged can be read.
    pub is_whole: bool,
}

/// Looks which records there are.
pub(super) async fn look(tx: &Transaction<'_>, partitions: &[Partition], origin: Origin) -> Result<Retained> {
    let is_archive_read = origin == Origin::Start;
    let (mut firsts, mut is_whole) = (Vec::new(), true);
    for partition in partitions {
        let first = pglog::first_retained(tx, *partition).await.context("asking what is retained")?;
        is_whole &= first == 1 || is_archive_read && archived_count(tx, *partition, first).await? == first - 1;
        firsts.push(first);
    }
    Ok(Retained { partitions: partitions.to_vec(), firsts, is_archive_read, is_whole })
}

/// The common table expressions `edges` and `found`: action, data and traceparent of the records of a kind. The parameters are
/// the partitions, the first retained offsets, and whether the history is read.
pub(super) fn found(object: &str) -> String {
    format!(
        "WITH edges AS MATERIALIZED (
             SELECT p.partition, p.first_retained, COALESCE(
                 (SELECT b.snapshot FROM log_batches AS b WHERE b.partition = p.partition AND b.first_offset < p.first_retained
                  ORDER BY b.first_offset DESC LIMIT 1), '1:1:'::pg_snapshot) AS before
             FROM unnest($1::int[], $2::bigint[]) AS p (partition, first_retained)
         ), found AS MATERIALIZED (
             SELECT s.action, s.data::text, s.traceparent::text FROM edges JOIN staged_log_records AS s USING (partition)
             WHERE s.object = '{object}' AND NOT pg_visible_in_snapshot(s.transaction_id, edges.before)
             UNION ALL
             SELECT h.action, h.data::text, h.traceparent FROM edges JOIN history AS h USING (partition)
             WHERE $3 AND h.record_offset < edges.first_retained AND h.object = '{object}'
         )"
    )
}

/// The number of archived records before this offset.
async fn archived_count(tx: &Transaction<'_>, partition: Partition, first_retained: i64) -> Result<i64> {
    let row = tx
        .query_one(
            "-- operator::audit::archived_count
             SELECT count(*) FROM history WHERE partition = $1 AND record_offset < $2",
            &[&partition, &first_retained],
        )
        .await
        .context("counting archived records")?;
    Ok(row.get(0))
}
