//! How far a reader is behind the log, in records and in time, on the clock of Postgres.

use std::time::Duration;

use tokio_postgres::Row;

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

/// Where a reader is in a partition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// The partition.
    pub partition: Partition,
    /// The offset that it has passed.
    pub offset: i64,
    /// The time since it did.
    pub since: Duration,
}

/// How far a reader is behind that passed `offset`, the time `since` ago.
///
/// # Errors
/// Postgres is away.
pub async fn lag(client: &impl Session, partition: Partition, offset: i64, since: Duration) -> Result<Lag, Error> {
    let lags = lags(client, &[Place { partition, offset, since }]).await?;
    Ok(lags[0])
}

/// How far a reader is behind in each of these places, in their order, by one statement. The range of one id, and the order, make
/// every plan use the index of the ids: another one would read all rows of the partition.
///
/// # Errors
/// Postgres is away.
pub async fn lags(client: &impl Session, places: &[Place]) -> Result<Vec<Lag>, Error> {
    let partitions: Vec<Partition> = places.iter().map(|place| place.partition).collect();
    let offsets: Vec<i64> = places.iter().map(|place| place.offset).collect();
    let since_s: Vec<f64> = places.iter().map(|place| place.since.as_secs_f64()).collect();
    let rows = client
        .query(
            "-- pglog::lags
             SELECT GREATEST(0, newest.last_offset - place.last_offset) AS record_count,
                    (SELECT extract(epoch FROM clock_timestamp() - COALESCE(
                                -- Before version 17, Postgres fails to subtract an infinite time.
                                (SELECT staged_at FROM staged_log_records
                                 WHERE partition = place.partition AND isfinite(staged_at)
                                   AND id BETWEEN waiting.fresh_first_id AND waiting.fresh_first_id
                                 ORDER BY partition, id LIMIT 1),
                                waiting.created_at))::float8
                     WHERE waiting.last_offset > place.last_offset) AS waiting_s,
                    (SELECT extract(epoch FROM clock_timestamp() - place.since_s * INTERVAL '1 second' - staged_at)::float8
                     FROM staged_log_records
                     WHERE partition = place.partition AND passed.last_offset = place.last_offset AND isfinite(staged_at)
                       AND id BETWEEN passed.fresh_last_id AND passed.fresh_last_id
                     ORDER BY partition, id LIMIT 1) AS taken_s
             FROM unnest($1::int[], $2::bigint[], $3::float8[]) WITH ORDINALITY
                      AS place (partition, last_offset, since_s, number)
             LEFT JOIN LATERAL (SELECT first_offset + record_count - 1 AS last_offset FROM log_batches
                                WHERE partition = place.partition ORDER BY first_offset DESC LIMIT 1) AS newest ON true
             LEFT JOIN LATERAL (SELECT first_offset + record_count - 1 AS last_offset, fresh_last_id FROM log_batches
                                WHERE partition = place.partition AND first_offset <= place.last_offset
                                ORDER BY first_offset DESC LIMIT 1) AS passed ON true
             LEFT JOIN LATERAL (SELECT first_offset + record_count - 1 AS last_offset, fresh_first_id, created_at
                                FROM log_batches
                                WHERE partition = place.partition AND first_offset <= place.last_offset + 1
                                ORDER BY first_offset DESC LIMIT 1) AS waiting ON true
             ORDER BY place.number",
            &[&partitions, &offsets, &since_s],
        )
        .await?;
    Ok(rows.iter().map(Lag::from_row).collect())
}

impl Lag {
    fn from_row(row: &Row) -> Self {
        Self {
            record_count: row.get::<_, Option<i64>>("record_count").unwrap_or(0),
            waiting_s: row.get::<_, Option<f64>>("waiting_s").unwrap_or(0.0).max(0.0),
            // The two clocks may differ a little.
            taken_s: row.get::<_, Option<f64>>("taken_s").map(|seconds| seconds.max(0.0)),
        }
    }
}
