//! Consumers that do not move, because they are dead or forgotten, and so keep records from being deleted.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;

/// A consumer that is behind in a partition and does not move there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laggard {
    /// Its name.
    pub name: String,
    /// The partition.
    pub partition: Partition,
    /// Records between its checkpoint and the head.
    pub lag: i64,
    /// Seconds since it moved last.
    pub still_s: i64,
}

/// The consumers of these partitions that have records to fold and have not moved for `dead_after`, in the order of their names.
///
/// # Errors
/// Postgres is away.
pub async fn laggards(client: &Client, partitions: &[Partition], dead_after: Duration) -> Result<Vec<Laggard>> {
    let rows = client
        .query(
            "-- reaper::laggards
             SELECT name, partition, head - last_offset,
                    extract(epoch FROM now() - greatest(updated_at, to_timestamp(0)))::bigint
             FROM unnest($1::int[]) AS looked_at (partition) CROSS JOIN LATERAL (
                 SELECT first_offset + record_count - 1 AS head FROM log_batches AS b
                 WHERE b.partition = looked_at.partition ORDER BY first_offset DESC LIMIT 1
             ) AS newest JOIN checkpoints USING (partition)
             WHERE NOT is_baseline AND last_offset < head AND updated_at < now() - $2::float8 * interval '1 second'
             ORDER BY name, partition",
            &[&partitions, &dead_after.as_secs_f64()],
        )
        .await
        .context("looking for consumers that stand still")?;
    let laggard = |row: &tokio_postgres::Row| Laggard {
        name: row.get(0),
        partition: row.get(1),
        lag: row.get(2),
        still_s: row.get(3),
    };
    Ok(rows.iter().map(laggard).collect())
}
