//! The verdict that an attempt has failed, and the end of its rollback. These are rare: each is a transaction of its own.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::NewRecord;
use serde_json::json;

use super::{ATTEMPT_COUNT_MAX, State, Taken, bounded, pause_after};

/// The outcome of one part in an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartOutcome {
    /// The destination.
    pub destination: String,
    /// `declined`, `stored`, `failed_4xx`, `failed_5xx`, `timed_out`; `pending`: it was not begun.
    pub state: &'static str,
    /// The status that the destination gave, if it failed.
    pub status: Option<i16>,
    /// Its reason.
    pub error: Option<String>,
}

/// The end of a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The state of the unit now.
    pub state: State,
    /// The status of the response.
    pub status: i16,
    /// Its reason.
    pub error: String,
}

/// The verdict that the attempt has failed: from now on its parts are taken back. `false`: the lease was lost.
///
/// # Errors
/// Postgres is away.
pub async fn roll_back(
    client: &mut Client,
    unit: Held<'_>,
    status: i16,
    error: &str,
    parts: &[PartOutcome],
) -> Result<bool> {
    let tx = client.transaction().await.context("beginning the verdict")?;
    let settled = tx
        .execute(
            "-- container::roll_back
             UPDATE units SET state = 'rolling_back', status = $3, error = $4 WHERE uow = $1 AND lease = $2 AND state = 'fanned_out'",
            &[&unit.uow, &unit.lease, &status, &bounded(error)],
        )
        .await
        .context("writing the verdict")?;
    if settled == 0 {
        return Ok(false);
    }
    write_parts(&tx, unit, parts).await?;
    tx.execute(
        "-- container::report
         INSERT INTO unit_reports (uow, attempt, destination, state, status, error)
         SELECT uow, $2, destination, state, status, error FROM unit_parts WHERE uow = $1
         ON CONFLICT DO NOTHING",
        &[&unit.uow, &unit.attempt],
    )
    .await
    .context("writing the report")?;
    tx.commit().await.context("committing the verdict")?;
    Ok(true)
}

/// Everything is taken back: the unit is rejected, waits for its next attempt, or is left to a person. The next attempt waits
/// for `pause_min` at least. `None`: the lease was lost.
///
/// # Errors
/// Postgres is away.
pub async fn finish_rollback(
    client: &mut Client,
    unit: Held<'_>,
    status: i16,
    error: &str,
    pause_min: Duration,
) -> Result<Option<Ending>> {
    let is_last = unit.attempt >= ATTEMPT_COUNT_MAX;
    let state = match status {
        408 | 425 | 429 if is_last => State::Dead,
        408 | 425 | 429 => State::FailQueued,
        400..500 => State::Rejected,
        _ if is_last => State::Dead,
        _ => State::FailQueued,
    };
    let tx = client.transaction().await.context("beginning the end of a rollback")?;
    let pause = pause_after(unit.attempt).max(pause_min).as_secs_f64();
    let settled = tx
        .execute(
            "-- container::finish_rollback
             UPDATE units SET state = $3::text, take_count = 0,
                 attempt = attempt + CASE WHEN $3::text = 'fail_queued' THEN 1 ELSE 0 END,
                 settled_at = CASE WHEN $3::text = 'rejected' THEN now() END,
                 due_at = CASE WHEN $3::text = 'fail_queued' THEN now() + $4 * INTERVAL '1 second' ELSE 'infinity' END
             WHERE uow = $1 AND lease = $2 AND state = 'rolling_back'",
            &[&unit.uow, &unit.lease, &state.name(), &pause],
        )
        .await
        .context("ending a rollback")?;
    if settled == 0 {
        return Ok(None);
    }
    tx.execute(
        "-- container::undone
         UPDATE unit_parts SET state = 'undone' WHERE uow = $1 AND state IN ('stored', 'timed_out')",
        &[&unit.uow],
    )
    .await
    .context("noting what was taken back")?;
    stage(&tx, unit, state.name(), status, error).await?;
    tx.commit().await.context("committing the end of a rollback")?;
    Ok(Some(Ending { state, status, error: error.to_owned() }))
}

/// Leaves a unit whose parts could not all be taken back to a later try. `false`: the lease was lost.
///
/// # Errors
/// Postgres is away.
pub async fn put_off(client: &Client, unit: Held<'_>, pause_s: f64) -> Result<bool> {
    let put_off = client
        .execute(
            "-- container::put_off
             UPDATE units SET due_at = now() + $3 * INTERVAL '1 second'
             WHERE uow = $1 AND lease = $2 AND settled_at IS NULL",
            &[&unit.uow, &unit.lease, &pause_s],
        )
        .await
        .context("putting a rollback off")?;
    Ok(put_off == 1)
}

/// A unit that the caller holds.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// Its number.
    pub uow: i64,
    /// The caller's lease.
    pub lease: i64,
    /// The attempt.
    pub attempt: i32,
    /// The resource that was posted to.
    pub resource: &'a str,
    /// The thing that it is about.
    pub subject: &'a str,
    /// The trace of the request.
    pub traceparent: Option<&'a str>,
}

impl<'a> From<&'a Taken> for Held<'a> {
    fn from(taken: &'a Taken) -> Self {
        Self {
            uow: taken.uow,
            lease: taken.lease,
            attempt: taken.attempt,
            resource: &taken.resource,
            subject: &taken.subject,
            traceparent: taken.traceparent.as_deref(),
        }
    }
}

async fn write_parts(tx: &Transaction<'_>, unit: Held<'_>, parts: &[PartOutcome]) -> Result<()> {
    let destinations: Vec<&str> = parts.iter().map(|part| part.destination.as_str()).collect();
    let states: Vec<&str> = parts.iter().map(|part| part.state).collect();
    let statuses: Vec<Option<i16>> = parts.iter().map(|part| part.status).collect();
    let errors: Vec<Option<String>> = parts.iter().map(|part| part.error.as_deref().map(bounded)).collect();
    tx.execute(
        "-- container::parts
         UPDATE unit_parts AS p SET state = new.state, status = new.status, error = new.error, attempts = $6
         FROM unnest($2::text[], $3::text[], $4::smallint[], $5::text[]) AS new (destination, state, status, error)
         WHERE p.uow = $1 AND p.destination = new.destination",
        &[&unit.uow, &destinations, &states, &statuses, &errors, &unit.attempt],
    )
    .await
    .context("writing the outcomes")?;
    Ok(())
}

async fn stage(tx: &Transaction<'_>, unit: Held<'_>, action: &str, status: i16, error: &str) -> Result<()> {
    let (data, traceparent) = (record(unit, status, Some(error)), unit.traceparent);
    let key = format!("{}/{}", unit.resource, unit.subject);
    let record = NewRecord { key: &key, object: "unit", action, data: &data, traceparent };
    pglog::stage(tx, record).await.context("staging the log record")?;
    Ok(())
}

/// The data of a verdict's log record. It is bounded: the report is in the tables.
pub(super) fn record(unit: Held<'_>, status: i16, error: Option<&str>) -> String {
    let Held { uow, resource, subject, attempt, .. } = unit;
    let error = error.map(bounded);
    json!({
        "uow": uow, "resource": resource, "subject": subject, "attempt": attempt, "status": status, "error": error,
    })
    .to_string()
}
