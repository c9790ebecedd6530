//! The rides, compared with their records: the same number and the same total distance.

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;

use crate::audit::report::{Report, RidesLine};

/// The limit for the search for the rides that differ, in ms.
const SEARCH_WAIT_MS: u32 = 60_000;

/// The rides of all records, staged ones included.
#[derive(Debug, Clone, Copy)]
pub(in crate::audit) struct Logged {
    pub ride_count: i64,
    /// The fold rejects a ride beyond 64 bits, and neither the records nor the table do.
    pub total_distance_mm: i128,
    /// No record was reaped yet.
    pub is_whole: bool,
}

impl Default for Logged {
    fn default() -> Self {
        Self { ride_count: 0, total_distance_mm: 0, is_whole: true }
    }
}

impl Logged {
    pub fn plus(self, other: Self) -> Self {
        Self {
            ride_count: self.ride_count + other.ride_count,
            total_distance_mm: self.total_distance_mm + other.total_distance_mm,
            is_whole: self.is_whole && other.is_whole,
        }
    }
}

/// Compares count and sum. If they differ, it searches for the rides. Call it last in the transaction, because a search
/// that fails aborts the transaction.
pub(in crate::audit) async fn compare_rides(tx: &Transaction<'_>, logged: Logged, report: &mut Report) -> Result<()> {
    // Counting all rides needs a scan, which the session's settings avoid.
    tx.batch_execute("SET LOCAL enable_seqscan = on").await.context("setting up the count")?;
    let row = tx
        .query_one(
            "-- operator::audit::rides
             SELECT count(*), COALESCE(sum(distance_mm), 0)::text FROM rides",
            &[],
        )
        .await
        .context("counting rides")?;
    // As text: the sum of 64-bit numbers is a numeric.
    let (ride_count, total_distance_mm): (i64, &str) = (row.get(0), row.get(1));
    let total_distance_mm: i128 = total_distance_mm.parse().context("reading the sum of the rides")?;
    let is_equal = (ride_count, total_distance_mm) == (logged.ride_count, logged.total_distance_mm);
    report.rides = Some(RidesLine { ride_count, total_distance_mm, is_equal });
    if !is_equal {
        report.differ(format!(
            "rides: the table has {ride_count} and {total_distance_mm} mm, the records have {} and {} mm: {:+} rides, \
             {:+} mm in the table",
            logged.ride_count,
            logged.total_distance_mm,
            ride_count - logged.ride_count,
            total_distance_mm - logged.total_distance_mm
        ));
        match search(tx, logged.is_whole).await {
            Ok(found) => found.into_iter().for_each(|line| report.note(line)),
            Err(error) => report.note(format!("the rides that differ were not found: {error:#}")),
        }
        if !logged.is_whole {
            report.note("rides whose records are reaped were not searched".to_owned());
        }
    }
    Ok(())
}

/// Sentences about up to 10 rides without an equal record, 10 records without an equal ride, and 10 rides with several
/// records. If records were reaped, it searches only rides from the lowest id of a record on: the records of earlier rides
/// may have been reaped.
async fn search(tx: &Transaction<'_>, is_whole: bool) -> Result<Vec<String>> {
    tx.batch_execute(&format!("SET LOCAL statement_timeout = {SEARCH_WAIT_MS}"))
        .await
        .context("setting up the search")?;
    let rows = tx
        .query(
            "-- operator::audit::search
             WITH logged AS MATERIALIZED (
                 SELECT plain.data->>'id' AS id, plain.data->>'distance_mm' AS distance_mm
                 -- Postgres stores a JSON value with \\u0000 or \\ud800, and fails to read any key of it.
                 FROM (SELECT CASE WHEN strpos(data::text, '\\u') = 0 THEN data END AS data FROM staged_log_records
                       WHERE object = 'ride' AND action = 'create') AS plain
             )
             (SELECT format('ride %s of %s mm has no equal record', id, distance_mm) FROM rides
              WHERE ($1 OR id >= (SELECT min(logged.id::bigint) FROM logged WHERE logged.id ~ '^[0-9]{1,18}$'))
                AND NOT EXISTS (SELECT FROM logged WHERE logged.id = rides.id::text
                                                     AND logged.distance_mm = rides.distance_mm::text)
              ORDER BY id LIMIT 10)
             UNION ALL
             (SELECT format('a record tells of ride %s of %s mm, and there is no equal ride', id, distance_mm)
              FROM logged
              WHERE distance_mm ~ '^[1-9][0-9]{0,12}$'
                AND NOT EXISTS (SELECT FROM rides WHERE logged.id = rides.id::text
                                                    AND logged.distance_mm = rides.distance_mm::text)
              LIMIT 10)
             UNION ALL
             (SELECT format('%s records tell of ride %s', count(*), id) FROM logged
              WHERE id IS NOT NULL GROUP BY id HAVING count(*) > 1 LIMIT 10)",
            &[&is_whole],
        )
        .await
        .context("searching")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
