//! Taking units that are due.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;

use super::{LEASE, NewUnit, State};

/// Units that are put off together, because a destination is away.
const PUT_OFF_LEN_MAX: i64 = 1000;

/// How long they are put off. A destination that is back makes them due at once.
const PUT_OFF_S: f64 = 30.0;

/// A unit that this process has taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Its number.
    pub uow: i64,
    /// The key under which destinations store.
    pub key: String,
    /// The resource that was posted to.
    pub resource: String,
    /// The thing that it is about.
    pub subject: String,
    /// [`State::FannedOut`] or [`State::RollingBack`].
    pub state: State,
    /// From 1 on.
    pub attempt: i32,
    /// Our lease. Every statement that changes the unit compares it.
    pub lease: i64,
    /// How often the attempt was taken up. After the first time, an earlier holder may have begun any part.
    pub take_count: i32,
    /// The time since the unit was accepted, when it was taken.
    pub age: Duration,
    /// The verdict that is being carried out, while it is rolled back.
    pub status: Option<i16>,
    /// Its reason.
    pub error: Option<String>,
    /// The file in the spool.
    pub spool_name: String,
    /// Its destinations, in the order of their names.
    pub destinations: Vec<String>,
    /// The trace of the request.
    pub traceparent: Option<String>,
}

impl Taken {
    /// A unit that was accepted just now, and whose first attempt its process makes.
    pub fn accepted(unit: NewUnit, uow: i64, lease: i64) -> Self {
        Self {
            uow,
            key: unit.key,
            resource: unit.resource,
            subject: unit.subject,
            state: State::FannedOut,
            attempt: 1,
            lease,
            take_count: 1,
            age: Duration::ZERO,
            status: None,
            error: None,
            spool_name: unit.spool_name,
            destinations: unit.destinations,
            traceparent: unit.traceparent,
        }
    }
}

/// Takes up to `len_max` units of this spool that are due. A unit that needs a destination whose breaker is open is not taken:
/// it is due when the breaker closes, and keeps no other unit from being taken (C5). After an outage each destination gets one
/// unit first.
///
/// # Errors
/// Postgres is away.
pub async fn take(client: &Client, spool_id: &str, len_max: usize) -> Result<Vec<Taken>> {
    let rows = client
        .query(
            "-- container::take
             WITH waits AS (
                 SELECT u.uow FROM units AS u
                 WHERE u.spool_id = $1::text::uuid AND u.state IN ('queued', 'fanned_out', 'fail_queued') AND u.due_at <= now()
                       AND EXISTS (
                           SELECT FROM unit_parts AS p JOIN destinations AS d ON d.name = p.destination
                           WHERE p.uow = u.uow AND d.open_until IS NOT NULL AND d.canary IS DISTINCT FROM u.uow)
                 ORDER BY u.due_at LIMIT $4 FOR UPDATE OF u SKIP LOCKED
             ), later AS (
                 -- A destination that is back makes no unit due that may be leased.
                 UPDATE units AS u SET due_at = now() + CASE u.state WHEN 'fanned_out' THEN 1 ELSE $5::float8 END * INTERVAL '1 second'
                 FROM waits WHERE u.uow = waits.uow
             ), due AS (
                 SELECT u.uow FROM units AS u
                 WHERE u.spool_id = $1::text::uuid AND u.state IN ('queued', 'fanned_out', 'rolling_back', 'fail_queued')
                       AND u.due_at <= now()
                       -- Taking back needs no breaker: it is tried until it succeeds.
                       AND (u.state = 'rolling_back' OR NOT EXISTS (
                           SELECT FROM unit_parts AS p JOIN destinations AS d ON d.name = p.destination
                           WHERE p.uow = u.uow AND d.open_until IS NOT NULL AND d.canary IS DISTINCT FROM u.uow))
                 ORDER BY u.due_at LIMIT $2 FOR UPDATE OF u SKIP LOCKED
             )
             UPDATE units AS u
             SET state = CASE u.state WHEN 'rolling_back' THEN u.state ELSE 'fanned_out' END,
                 due_at = now() + $3 * INTERVAL '1 second', lease = u.lease + 1, take_count = u.take_count + 1
             FROM due WHERE u.uow = due.uow
             RETURNING u.uow, unit_key::text, resource, subject, state, attempt, lease, take_count, status, error, spool_name,
                       traceparent, greatest(extract(epoch FROM now() - created_at), 0)::float8 AS age_s,
                       ARRAY(SELECT destination::text FROM unit_parts AS p WHERE p.uow = u.uow ORDER BY 1) AS destinations",
            &[&spool_id, &(len_max as i64), &LEASE.as_secs_f64(), &PUT_OFF_LEN_MAX, &PUT_OFF_S],
        )
        .await
        .context("taking units")?;
    let taken = rows.iter().map(|row| {
        Ok(Taken {
            uow: row.get("uow"),
            key: row.get("unit_key"),
            resource: row.get("resource"),
            subject: row.get("subject"),
            state: row.get::<_, &str>("state").parse()?,
            attempt: row.get("attempt"),
            lease: row.get("lease"),
            take_count: row.get("take_count"),
            age: Duration::from_secs_f64(row.get("age_s")),
            status: row.get("status"),
            error: row.get("error"),
            spool_name: row.get("spool_name"),
            destinations: row.get("destinations"),
            traceparent: row.get("traceparent"),
        })
    });
    taken.collect()
}
