//! The keys of the records: each key must have all of its records in one partition (P1). The function `partition_of` decides which
//! one. The records name their keys: a ride itself, charges and receipts their user, wallets and units themselves.

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;
use pglog::{Identity, PartitionCount};

use super::Origin;
use super::report::Report;
use super::retained::{self, Retained};

/// Records that are named.
const NAMED_LEN_MAX: i64 = 100;

/// Reports records in the partition of another key: those that are retained or staged and, with `--from start`, those that the
/// history has.
pub(super) async fn audit(
    tx: &Transaction<'_>,
    identity: &Identity,
    origin: Origin,
    report: &mut Report,
) -> Result<()> {
    if identity.partitions == PartitionCount::ONE {
        return Ok(());
    }
    if identity.log_id.is_none() {
        report.note(
            "the partitions of keys were not compared: this log had partitions before keys decided them".to_owned(),
        );
        return Ok(());
    }
    let all: Vec<_> = identity.partitions.partitions().collect();
    let Retained { partitions, firsts, is_archive_read, .. } = retained::look(tx, &all, origin).await?;
    // Everything is read, and the session's settings avoid that.
    tx.batch_execute("SET LOCAL enable_seqscan = on").await.context("setting up the reading of keys")?;
    // Postgres stores a JSON value with \u0000, and fails to read any key of it.
    let rows = tx
        .query(
            r#"-- operator::audit::keys
             WITH edges AS MATERIALIZED (
                 SELECT * FROM unnest($1::int[], $2::bigint[]) AS p (partition, first_retained)
             ), found AS (
                 SELECT partition, object, action, data FROM staged_log_records
                 UNION ALL
                 SELECT h.partition, h.object, h.action, h.data FROM edges JOIN history AS h USING (partition)
                 WHERE $3 AND h.record_offset < edges.first_retained
             ), keyed AS (
                 SELECT partition, object, action, CASE
                     WHEN strpos(data::text, '\u') > 0 THEN NULL
                     WHEN object = 'ride' AND action = 'create' THEN data->>'id'
                     WHEN object IN ('charge', 'receipt') THEN data->>'user_id'
                     WHEN object = 'wallet' THEN data->>'wallet_id'
                     WHEN object = 'unit' THEN data->>'resource' || '/' || (data->>'subject') END AS key
                 FROM found
             )
             SELECT partition, object, action, left(key, 200), partition_of(key) FROM keyed
             WHERE partition <> partition_of(key) ORDER BY 1, 2, 3, 4 LIMIT $4"#,
            &[&partitions, &firsts, &is_archive_read, &NAMED_LEN_MAX],
        )
        .await
        .context("comparing the partitions of keys")?;
    for row in &rows {
        let (partition, belongs_in): (i32, i32) = (row.get(0), row.get(4));
        let (object, action, key): (&str, &str, &str) = (row.get(1), row.get(2), row.get(3));
        report.differ(format!(
            "partition {partition}: it has a record {object} {action} with the key {key}, which belongs in partition \
             {belongs_in} (P1)"
        ));
    }
    Ok(())
}
