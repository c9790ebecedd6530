//! The rides of the staged records that have no offset yet. They are rides, and no consumer has folded them.

use anyhow::{Context, Result};
use consumer::{DistanceFold, StateFold};
use deadpool_postgres::Transaction;
use pglog::{Partition, Record};

/// Records per query.
const PAGE_LEN_MAX: i64 = 1000;

/// The sum of the staged records that are visible and have no offset yet, and their number.
pub(super) async fn staged(tx: &Transaction<'_>, partition: Partition) -> Result<(DistanceFold, i64)> {
    let (mut fold, mut record_count, mut after_id) = (DistanceFold::default(), 0, i64::MIN);
    loop {
        let rows = tx
            .query(
                "-- operator::audit::staged
                 WITH edge AS MATERIALIZED (
                     SELECT COALESCE((SELECT snapshot FROM log_batches WHERE partition = $1
                                      ORDER BY first_offset DESC LIMIT 1), '1:1:'::pg_snapshot) AS last
                 )
                 SELECT id, object, action, data::text FROM staged_log_records
                 WHERE partition = $1 AND id > $2
                   AND NOT pg_visible_in_snapshot(transaction_id, (SELECT last FROM edge))
                 ORDER BY partition, id LIMIT $3",
                &[&partition, &after_id, &PAGE_LEN_MAX],
            )
            .await
            .context("reading staged records")?;
        for row in &rows {
            after_id = row.get("id");
            record_count += 1;
            let (object, action) = (row.get("object"), row.get("action"));
            let data = row.get("data");
            let record =
                Record { partition, offset: 0, token: 0, object, action, data, staged_at_us: 0, traceparent: None };
            if fold.takes(record.object, record.action) {
                // A record that the fold rejects will become a dead letter, and its ride does not count.
                let _ = fold.apply(&record);
            }
        }
        if (rows.len() as i64) < PAGE_LEN_MAX {
            return Ok((fold, record_count));
        }
    }
}
