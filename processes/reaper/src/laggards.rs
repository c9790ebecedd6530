//! Consumers that do not move, because they are dead or forgotten, and so keep records from being deleted.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;

/// A consumer that is behind and does not move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Laggard {
    /// Its name.
    pub name: String,
    /// Records between its checkpoint and the head.
    pub lag: i64,
    /// Seconds since it moved last.
    pub still_s: i64,
}

/// The consumers of `partition` that have records to fold and have not moved for `dead_after`.
///
/// # Errors
/// Postgres is away.
pub async fn laggards(client: &Client, partition: Partition, dead_after: Duration) -> Result<Vec<Laggard>> {
    let head = pglog::head(client, partition).await?;
    let rows = client
        .query(
            "-- reaper::laggards
             SELECT name, $2 - last_offset, extract(epoch FROM now() - greatest(updated_at, to_timestamp(0)))::bigint
             FROM checkpoints
             WHERE partition = $1 AND NOT is_baseline AND last_offset < $2
               AND updated_at < now() - $3::float8 * interval '1 second'
             ORDER BY name",
            &[&partition, &head, &dead_after.as_secs_f64()],
        )
        .await
        .context("looking for consumers that stand still")?;
    Ok(rows.iter().map(|row| Laggard { name: row.get(0), lag: row.get(1), still_s: row.get(2) }).collect())
}
