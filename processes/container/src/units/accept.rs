//! A request whose file is complete becomes a unit.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;

use super::{LEASE, State};

/// A unit that is to be accepted.
#[derive(Debug, Clone)]
pub struct NewUnit {
    /// The key under which destinations store: a random UUID.
    pub key: String,
    /// The resource that was posted to.
    pub resource: String,
    /// The thing that the unit is about.
    pub subject: String,
    /// Its destinations.
    pub destinations: Vec<String>,
    /// The id of the spool.
    pub spool_id: String,
    /// The name of its file.
    pub spool_name: String,
    /// The client's key, if it sent one.
    pub idempotency_key: Option<String>,
    /// The hash of the decoded parts.
    pub content_hash: Vec<u8>,
    /// The trace of the request.
    pub traceparent: Option<String>,
    /// A destination is away: the unit waits, and no attempt is begun.
    pub waits: bool,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// It is a new unit, leased to the caller if it does not wait.
    New {
        /// The number of the unit.
        uow: i64,
        /// The caller's lease.
        lease: i64,
    },
    /// The same request was accepted before.
    Known {
        /// The number of the unit.
        uow: i64,
        /// Its key.
        key: String,
        /// Its state now.
        state: State,
        /// Whether the unit has the caller's file: a worker has taken it up from the spool. If not, the caller's file is
        /// not needed.
        has_this_file: bool,
    },
    /// The client used the key for another request.
    KeyMismatch,
}

/// Makes a unit of a request, leased to the caller.
///
/// # Errors
/// Postgres is away. Whether the unit was made is unknown: its file must stay.
pub async fn accept(client: &Client, unit: &NewUnit) -> Result<Accepted> {
    let NewUnit { key, resource, subject, destinations, spool_id, spool_name, .. } = unit;
    let NewUnit { idempotency_key, content_hash, traceparent, waits, .. } = unit;
    let made = client
        .query_opt(
            "-- container::accept
             WITH unit AS (
                 INSERT INTO units (unit_key, resource, subject, state, take_count, due_at, lease, spool_id, spool_name,
                                    idempotency_key, content_hash, traceparent)
                 SELECT $1::text::uuid, $2, $3, CASE WHEN $11 THEN 'queued' ELSE 'fanned_out' END, CASE WHEN $11 THEN 0 ELSE 1 END,
                        CASE WHEN $11 THEN now() ELSE now() + $10 * INTERVAL '1 second' END, 1, $4::text::uuid, $5, $6, $7,
                        $8::text
                 ON CONFLICT DO NOTHING
                 RETURNING uow, lease
             ), parts AS (
                 INSERT INTO unit_parts (uow, destination) SELECT uow, unnest($9::text[]) FROM unit
             )
             SELECT uow, lease FROM unit",
            &[
                key,
                resource,
                subject,
                spool_id,
                spool_name,
                idempotency_key,
                content_hash,
                traceparent,
                destinations,
                &LEASE.as_secs_f64(),
                waits,
            ],
        )
        .await
        .context("accepting a unit")?;
    if let Some(row) = made {
        return Ok(Accepted::New { uow: row.get("uow"), lease: row.get("lease") });
    }
    let known = client
        .query_one(
            "-- container::known
             SELECT uow, unit_key::text, state, content_hash, spool_name = $3 AS has_this_file FROM units
             WHERE spool_name = $3 OR resource = $1 AND idempotency_key = $2
             ORDER BY spool_name = $3 DESC LIMIT 1",
            &[resource, idempotency_key, spool_name],
        )
        .await
        .context("looking for the unit that has the key")?;
    if known.get::<_, Vec<u8>>("content_hash") != *content_hash {
        return Ok(Accepted::KeyMismatch);
    }
    let state = known.get::<_, &str>("state").parse()?;
    let (uow, key, has_this_file) = (known.get("uow"), known.get("unit_key"), known.get("has_this_file"));
    Ok(Accepted::Known { uow, key, state, has_this_file })
}
