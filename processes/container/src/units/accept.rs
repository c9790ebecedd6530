//! A request whose file is complete becomes a unit.

use std::borrow::Borrow;
use std::collections::HashMap;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use tracing::warn;

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

/// The outcome of a request.
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

/// Makes a unit of a request, leased to the caller unless it waits.
///
/// # Errors
/// Postgres is away. Whether the unit was made is unknown: its file must stay.
pub async fn accept(client: &Client, unit: &NewUnit) -> Result<Accepted> {
    let accepted = accept_all(client, std::slice::from_ref(unit)).await?.pop().flatten();
    accepted.context("looking for the unit that has the key")
}

/// As [`accept`], for many requests in one transaction. The results have the order of the requests. `None`: another unit has the
/// key of this request, and it could not be read. The request may be sent again.
///
/// # Errors
/// As [`accept`]. If Postgres refuses the data of one request, no unit was made.
pub(super) async fn accept_all(client: &Client, requests: &[NewUnit]) -> Result<Vec<Option<Accepted>>> {
    let made = insert(client, requests).await.context("accepting units")?;
    let refused: Vec<&NewUnit> = requests.iter().filter(|request| !made.contains_key(request.key.as_str())).collect();
    let mut known = if refused.is_empty() { HashMap::new() } else { known(client, &refused).await };
    let accepted = requests.iter().map(|request| match made.get(request.key.as_str()) {
        Some((uow, lease)) => Some(Accepted::New { uow: *uow, lease: *lease }),
        None => known.remove(request.key.as_str()),
    });
    Ok(accepted.collect())
}

/// Number and lease of each unit that was made, by its key. The others met a unit that has their file or their client's key.
async fn insert(client: &Client, requests: &[NewUnit]) -> Result<HashMap<String, (i64, i64)>, tokio_postgres::Error> {
    let statement = client
        .prepare_cached(
            "-- container::accept
             WITH unit AS (
                 INSERT INTO units (unit_key, resource, subject, state, take_count, due_at, lease, spool_id, spool_name,
                                    idempotency_key, content_hash, traceparent)
                 SELECT unit_key::uuid, resource, subject, CASE WHEN waits THEN 'queued' ELSE 'fanned_out' END,
                        CASE WHEN waits THEN 0 ELSE 1 END, CASE WHEN waits THEN now() ELSE now() + $12 * INTERVAL '1 second' END,
                        1, spool_id::uuid, spool_name, idempotency_key, content_hash, traceparent
                 FROM unnest($1::text[], $2::text[], $3::text[], $4::bool[], $5::text[], $6::text[], $7::text[], $8::bytea[],
                             $9::text[]) WITH ORDINALITY
                      AS new (unit_key, resource, subject, waits, spool_id, spool_name, idempotency_key, content_hash,
                              traceparent, place)
                 -- Two processes that insert the same keys in different orders would wait for each other.
                 ORDER BY resource COLLATE \"C\", idempotency_key COLLATE \"C\", place
                 ON CONFLICT DO NOTHING
                 RETURNING uow, lease, unit_key
             ), parts AS (
                 INSERT INTO unit_parts (uow, destination)
                 SELECT unit.uow, part.destination
                 FROM unnest($10::text[], $11::text[]) AS part (unit_key, destination)
                 JOIN unit ON unit.unit_key = part.unit_key::uuid
             )
             SELECT uow, lease, unit_key::text FROM unit",
        )
        .await?;
    let rows = client
        .query(
            &statement,
            &[
                &texts(requests, |request| &request.key),
                &texts(requests, |request| &request.resource),
                &texts(requests, |request| &request.subject),
                &requests.iter().map(|request| request.waits).collect::<Vec<_>>(),
                &texts(requests, |request| &request.spool_id),
                &texts(requests, |request| &request.spool_name),
                &keys(requests),
                &requests.iter().map(|request| &*request.content_hash).collect::<Vec<_>>(),
                &requests.iter().map(|request| request.traceparent.as_deref()).collect::<Vec<_>>(),
                &parts(requests).map(|(key, _)| key).collect::<Vec<_>>(),
                &parts(requests).map(|(_, destination)| destination).collect::<Vec<_>>(),
                &LEASE.as_secs_f64(),
            ],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get("unit_key"), (row.get("uow"), row.get("lease")))).collect())
}

/// The units that these requests met, by the keys of the requests. An error is logged: it concerns no unit that was made.
async fn known(client: &Client, requests: &[&NewUnit]) -> HashMap<String, Accepted> {
    let rows = client
        .query_typed(
            "-- container::known
             SELECT request.unit_key AS request_key, unit.*
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bytea[])
                  AS request (unit_key, resource, idempotency_key, spool_name, content_hash)
             CROSS JOIN LATERAL (
                 SELECT uow, unit_key::text, state, spool_name = request.spool_name AS has_this_file,
                        content_hash = request.content_hash AS is_same
                 FROM units
                 WHERE spool_name = request.spool_name
                    OR resource = request.resource AND idempotency_key = request.idempotency_key
                 ORDER BY spool_name = request.spool_name DESC LIMIT 1
             ) AS unit",
            &[
                (&texts(requests, |request| &request.key), Type::TEXT_ARRAY),
                (&texts(requests, |request| &request.resource), Type::TEXT_ARRAY),
                (&keys(requests), Type::TEXT_ARRAY),
                (&texts(requests, |request| &request.spool_name), Type::TEXT_ARRAY),
                (&requests.iter().map(|request| &*request.content_hash).collect::<Vec<_>>(), Type::BYTEA_ARRAY),
            ],
        )
        .await
        .inspect_err(|error| warn!(error = format!("{error:#}"), "the units that have the keys cannot be read"));
    let rows = rows.unwrap_or_default();
    let known = rows.iter().filter_map(|row| Some((row.get("request_key"), known_unit(row)?)));
    known.collect()
}

fn known_unit(row: &Row) -> Option<Accepted> {
    if !row.get::<_, bool>("is_same") {
        return Some(Accepted::KeyMismatch);
    }
    // A newer version knows further states. The client gets its response from that version.
    let state = row.get::<_, &str>("state").parse().ok()?;
    let (uow, key, has_this_file) = (row.get("uow"), row.get("unit_key"), row.get("has_this_file"));
    Some(Accepted::Known { uow, key, state, has_this_file })
}

fn texts<T: Borrow<NewUnit>>(requests: &[T], text: impl Fn(&NewUnit) -> &String) -> Vec<&str> {
    requests.iter().map(|request| text(request.borrow()).as_str()).collect()
}

fn keys<T: Borrow<NewUnit>>(requests: &[T]) -> Vec<Option<&str>> {
    requests.iter().map(|request| request.borrow().idempotency_key.as_deref()).collect()
}

/// The key of its unit and the destination of each part.
fn parts(requests: &[NewUnit]) -> impl Iterator<Item = (&str, &str)> {
    requests
        .iter()
        .flat_map(|request| request.destinations.iter().map(|destination| (request.key.as_str(), destination.as_str())))
}
