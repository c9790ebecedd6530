//! The breaker of each destination: a row in Postgres, so that all containers share it, and a restart forgets none.
//!
//! ```text
//! closed --FAILURE_COUNT_MAX failures in a row--> open --OPEN_WAIT--> one unit goes first (the canary)
//!    ^                                              ^                     |
//!    |                                              +------it fails-------+
//!    +-----------------------------it is stored---------------------------+
//! ```

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use common::stay_down::StayDown;
use deadpool_postgres::ClientWrapper as Client;

use super::LEASE;

/// Failures in a row that open the breaker.
const FAILURE_COUNT_MAX: i32 = 5;

/// How long it stays open before a unit may try.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// The breaker of a destination that has failed since it last stored a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// The destination.
    pub destination: String,
    /// Whether it is open.
    pub is_open: bool,
}

/// Registers the destinations of the declaration.
///
/// # Errors
/// Postgres is away; with [`StayDown`] if a destination has moved while parts of units are open: their undo would go to the new
/// place.
pub async fn register(client: &Client, destinations: &[(String, Vec<u8>)]) -> Result<()> {
    for (name, fingerprint) in destinations {
        let moved = client
            .query_one(
                "-- container::register
                 WITH known AS (
                     INSERT INTO destinations AS d (name, fingerprint) VALUES ($1, $2)
                     ON CONFLICT (name) DO UPDATE SET fingerprint = $2
                     WHERE d.fingerprint = $2 OR NOT EXISTS (
                         SELECT FROM unit_parts AS p JOIN units AS u ON u.uow = p.uow
                         WHERE p.destination = $1 AND u.settled_at IS NULL
                     )
                     RETURNING 1
                 )
                 SELECT NOT EXISTS (SELECT FROM known)",
                &[name, fingerprint],
            )
            .await
            .context("registering a destination")?;
        if moved.get::<_, bool>(0) {
            bail!(StayDown(anyhow!(
                "the destination {name} is declared at another place, and units are open that may have parts at the old one: \
                 declare the old place again, or wait until they are settled (container units list)"
            )));
        }
    }
    Ok(())
}

/// The breakers of destinations that have failed since they last stored a unit.
///
/// # Errors
/// Postgres is away.
pub async fn read_breakers(client: &Client) -> Result<Vec<Breaker>> {
    let query = "-- container::breakers
        SELECT name, open_until IS NOT NULL AS is_open FROM destinations WHERE failure_count > 0 OR open_until IS NOT NULL";
    let rows = client.query(query, &[]).await.context("reading the breakers")?;
    Ok(rows.iter().map(|row| Breaker { destination: row.get("name"), is_open: row.get("is_open") }).collect())
}

/// A destination has failed for this unit. Returns whether its breaker is open now.
///
/// # Errors
/// Postgres is away.
pub async fn note_failure(client: &Client, destination: &str, uow: i64) -> Result<bool> {
    let row = client
        .query_opt(
            "-- container::note_failure
             UPDATE destinations SET failure_count = failure_count + 1,
                 open_until = CASE WHEN failure_count + 1 >= $2 THEN now() + $3 * INTERVAL '1 second' END,
                 canary = nullif(canary, $4)
             WHERE name = $1 RETURNING open_until IS NOT NULL",
            &[&destination, &FAILURE_COUNT_MAX, &OPEN_WAIT.as_secs_f64(), &uow],
        )
        .await
        .context("noting a failure")?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// A destination has stored a unit: its breaker closes, and the units that wait for it are due. If the breaker was not open, no
/// unit waits for it, and each keeps the pause before its next attempt.
///
/// # Errors
/// Postgres is away.
pub async fn note_success(client: &Client, destination: &str) -> Result<()> {
    client
        .execute(
            "-- container::note_success
             WITH troubled AS (
                 SELECT name, open_until IS NOT NULL AS was_open FROM destinations
                 WHERE name = $1 AND (failure_count > 0 OR open_until IS NOT NULL) FOR UPDATE
             ), closed AS (
                 UPDATE destinations AS d SET failure_count = 0, open_until = NULL, canary = NULL
                 FROM troubled WHERE d.name = troubled.name RETURNING d.name, was_open
             )
             -- Also those that are due: another transaction may be putting them off.
             UPDATE units AS u SET due_at = now() FROM closed
             WHERE closed.was_open AND u.state IN ('queued', 'fail_queued')
                   AND EXISTS (SELECT FROM unit_parts AS p WHERE p.uow = u.uow AND p.destination = closed.name)",
            &[&destination],
        )
        .await
        .context("noting a success")?;
    Ok(())
}

/// Chooses a unit for each destination whose pause is over. A unit that no other breaker holds back goes first, and of these the one
/// with the fewest attempts: a unit that fails again does not keep the others waiting. A unit that a worker has lost in the middle
/// of its attempt may go, too: it may be the only one.
///
/// # Errors
/// Postgres is away.
pub async fn choose_canaries(client: &Client, spool_id: &str) -> Result<()> {
    client
        .execute(
            "-- container::choose_canaries
             WITH chosen AS (
                 SELECT d.name, next.uow FROM destinations AS d CROSS JOIN LATERAL (
                     SELECT u.uow FROM units AS u JOIN unit_parts AS p ON p.uow = u.uow
                     WHERE u.spool_id = $1::text::uuid AND p.destination = d.name
                           AND (u.state IN ('queued', 'fail_queued') OR u.state = 'fanned_out' AND u.due_at <= now())
                     ORDER BY EXISTS (
                         SELECT FROM unit_parts AS o JOIN destinations AS away ON away.name = o.destination
                         WHERE o.uow = u.uow AND o.destination <> d.name AND away.open_until IS NOT NULL
                     ), u.attempt, u.uow LIMIT 1
                 ) AS next
                 WHERE d.open_until <= now() FOR UPDATE OF d SKIP LOCKED
             ), opened AS (
                 -- If the process ends with the unit in hand, another unit is chosen after the lease.
                 UPDATE destinations AS d SET canary = chosen.uow, open_until = now() + $2 * INTERVAL '1 second'
                 FROM chosen WHERE d.name = chosen.name
             )
             UPDATE units AS u SET due_at = now() FROM chosen WHERE u.uow = chosen.uow AND u.state IN ('queued', 'fail_queued')",
            &[&spool_id, &LEASE.as_secs_f64()],
        )
        .await
        .context("choosing the units that go first")?;
    Ok(())
}

/// A unit that went first has ended without an outcome for its destination: another one may go.
///
/// # Errors
/// Postgres is away.
pub async fn release_canary(client: &Client, uow: i64) -> Result<()> {
    let release = "-- container::release_canary
        UPDATE destinations SET canary = NULL, open_until = now() WHERE canary = $1";
    client.execute(release, &[&uow]).await.context("letting another unit go first")?;
    Ok(())
}

/// The destinations that have parts of units which are not settled.
///
/// # Errors
/// Postgres is away.
pub async fn open_destinations(client: &Client) -> Result<Vec<String>> {
    let query = "-- container::open_destinations
        SELECT d.name FROM destinations AS d WHERE EXISTS (
            SELECT FROM unit_parts AS p JOIN units AS u ON u.uow = p.uow
            WHERE p.destination = d.name AND u.settled_at IS NULL)
        ORDER BY 1";
    let rows = client.query(query, &[]).await.context("looking for open destinations")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
