//! How far a reader is behind the log, in records and in time, on the clock of Postgres.

use std::time::Duration;

use crate::Error;
use crate::partition::Partition;
use crate::session::Session;

/// How far a reader at an offset is behind the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lag {
    /// Records between the offset and the head.
    pub record_count: i64,
    /// Seconds since the first of them was staged; 0 if there is none. If that time is infinite, seconds since it got its offset.
    pub waiting_s: f64,
    /// Seconds from when the record at the offset was staged until the reader passed it. `None`: the offset is not the end
    /// of a batch, the record was deleted, or the time is infinite.
    pub taken_s: Option<f64>,
}

/// How far a reader is behind that passed `offset`, the time `since` ago.
///
/// # Errors
/// Postgres is away.
pub async fn lag(client: &impl Session, partition: Partition, offset: i64, since: Duration) -> Result<Lag, Error> {
    let lags = lags(client, &[(partition, offset, since)]).await?;
    Ok(lags[0])
}

/// The [`lag`] in each of several partitions, in their order.
///
/// # Errors
/// Postgres is away.
pub async fn lags(client: &impl Session, passed: &[(Partition, i64, Duration)]) -> Result<Vec<Lag>, Error> {
    let partitions: Vec<Partition> = passed.iter().map(|(partition, _, _)| *partition).collect();
    let offsets: Vec<i64> = passed.iter().map(|(_, offset, _)| *offset).collect();
    let ages: Vec<f64> = passed.iter().map(|(_, _, since)| since.as_secs_f64()).collect();
    let rows = client.query(LAGS, &[&partitions, &offsets, &ages]).await?;
    let lags = rows.iter().map(|row| Lag {
        record_count: row.get::<_, Option<i64>>("record_count").unwrap_or(0),
        waiting_s: row.get::<_, Option<f64>>("waiting_s").unwrap_or(0.0).max(0.0),
        // The two clocks may differ a little.
        taken_s: row.get::<_, Option<f64>>("taken_s").map(|seconds| seconds.max(0.0)),
    });
    Ok(lags.collect())
}

const LAGS: &str = "-- pglog::lag
    SELECT GREATEST(0, (SELECT first_offset + record_count - 1 FROM log_batches WHERE partition = reader.partition
                        ORDER BY first_offset DESC LIMIT 1) - reader.passed) AS record_count,
           (SELECT extract(epoch FROM clock_timestamp() - COALESCE(
                       -- Before version 17, Postgres fails to subtract an infinite time.
                       (SELECT staged_at FROM staged_log_records
                        WHERE partition = reader.partition AND id = fresh_first_id AND isfinite(staged_at)),
                       created_at))::float8
            FROM (SELECT first_offset + record_count - 1 AS last_offset, fresh_first_id, created_at FROM log_batches
                  WHERE partition = reader.partition AND first_offset <= reader.passed + 1
                  ORDER BY first_offset DESC LIMIT 1) AS waiting
            WHERE last_offset > reader.passed) AS waiting_s,
           (SELECT extract(epoch FROM clock_timestamp() - age * INTERVAL '1 second' - staged_at)::float8
            FROM (SELECT first_offset + record_count - 1 AS last_offset, fresh_last_id FROM log_batches
                  WHERE partition = reader.partition AND first_offset <= reader.passed
                  ORDER BY first_offset DESC LIMIT 1) AS last
            JOIN staged_log_records ON partition = reader.partition AND id = fresh_last_id
            WHERE last_offset = reader.passed AND isfinite(staged_at)) AS taken_s
    FROM unnest($1::int[], $2::bigint[], $3::float8[]) WITH ORDINALITY AS reader(partition, passed, age, place)
    ORDER BY place";
