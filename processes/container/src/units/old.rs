//! Rows of units whose outcome is not asked for any more.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use uuid::Uuid;

/// A unit whose row may go, once its destinations have forgotten it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Old {
    /// Its number.
    pub uow: i64,
    /// The key under which destinations store.
    pub key: Uuid,
    /// The resource that was posted to.
    pub resource: String,
    /// The thing that it is about.
    pub subject: String,
    /// Its last attempt.
    pub attempt: i32,
    /// Its destinations.
    pub destinations: Vec<String>,
}

/// Units that were settled longer than `keep` ago and whose files are gone, the oldest first. The units `stuck` are left out, and
/// those with a part in one of the destinations `away`.
///
/// # Errors
/// Postgres is away.
pub async fn old(
    client: &Client,
    keep: Duration,
    (away, stuck): (&[String], &[i64]),
    len_max: i64,
) -> Result<Vec<Old>> {
    let query = "-- container::old
        SELECT uow, unit_key::text, resource, subject, attempt,
               ARRAY(SELECT destination::text FROM unit_parts AS p WHERE p.uow = u.uow ORDER BY 1) AS destinations
        FROM units AS u
        WHERE settled_at < now() - $1 * INTERVAL '1 second' AND file_gone_at IS NOT NULL AND uow <> ALL ($4::bigint[])
              AND NOT EXISTS (SELECT FROM unit_parts AS p WHERE p.uow = u.uow AND p.destination = ANY ($2::text[]))
        ORDER BY settled_at LIMIT $3";
    let rows = client
        .query(query, &[&keep.as_secs_f64(), &away, &len_max, &stuck])
        .await
        .context("looking for units that are old")?;
    let old = rows.iter().map(|row| {
        Ok(Old {
            uow: row.get("uow"),
            key: Uuid::try_parse(row.get("unit_key")).context("reading the key of a unit")?,
            resource: row.get("resource"),
            subject: row.get("subject"),
            attempt: row.get("attempt"),
            destinations: row.get("destinations"),
        })
    });
    old.collect()
}

/// Deletes rows of old units, with their parts and reports.
///
/// # Errors
/// Postgres is away.
pub async fn delete(client: &Client, uows: &[i64]) -> Result<u64> {
    let delete = "-- container::delete
        DELETE FROM units WHERE uow = ANY ($1) AND settled_at IS NOT NULL AND file_gone_at IS NOT NULL";
    client.execute(delete, &[&uows]).await.context("deleting units that are old")
}
