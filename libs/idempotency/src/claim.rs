//! Claiming an operation: one statement decides, however many processes try.

use std::time::Duration;

use deadpool_postgres::ClientWrapper as Client;
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::error::Error;
use crate::operation::{DURATION_MAX, EXPIRED, Operation};

/// The state of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Not tried yet: the first claim reports this status.
    Ready,
    /// A process works on it, or did so when the time of its claim ran out.
    Running,
    /// Done. The result is stored.
    Finished,
    /// The last try failed; it may be tried again.
    Failed,
}

impl Status {
    /// The name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    /// The status of this name in the table. `None`: there is no row, because the operation was not tried yet.
    pub(crate) fn from_name(name: Option<&str>) -> Self {
        match name {
            None => Self::Ready,
            Some("running") => Self::Running,
            Some("finished") => Self::Finished,
            Some(_) => Self::Failed,
        }
    }
}

/// An operation as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracked {
    /// Its row.
    pub id: i64,
    /// The action and its user.
    pub target: String,
    /// The name that the client has chosen.
    pub key: String,
    /// The request.
    pub payload: Vec<u8>,
    /// Its state.
    pub status: Status,
    /// The phase that comes next.
    pub recovery_point: String,
    /// The token that a phase must present.
    pub token: i64,
    /// The stored result.
    pub result: Option<Vec<u8>>,
    /// How often it failed.
    pub error_count: i32,
    /// The error of its last failure.
    pub error_message: Option<String>,
    /// The time from which its expiration counts.
    pub reference_time: Timestamp,
    /// When it was first claimed.
    pub created_at: Timestamp,
    /// When it was claimed last.
    pub started_at: Timestamp,
    /// When the claim runs out; `None`: never.
    pub timeout_at: Option<Timestamp>,
    /// When it may not be done any more; `None`: never.
    pub expires_at: Option<Timestamp>,
    /// When it was done.
    pub finished_at: Option<Timestamp>,
    /// Whether it has expired, on the server's clock.
    pub is_expired: bool,
    /// How long the claim still holds, on the server's clock; `None`: for ever.
    pub time_left: Option<Duration>,
}

/// The columns of a [`Tracked`].
macro_rules! columns {
    () => {
        "op.id, op.target, op.key, op.payload, op.status, op.recovery_point, op.token, op.result, op.error_count,
         op.error_message, op.reference_time, op.created_at, op.started_at, op.timeout_at, op.expires_at, op.finished_at,
         op.expires_at <= clock_timestamp() AS is_expired,
         extract(epoch FROM op.timeout_at - clock_timestamp())::float8 AS time_left_s"
    };
}

impl Tracked {
    fn from_row(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            target: row.get("target"),
            key: row.get("key"),
            payload: row.get("payload"),
            status: Status::from_name(row.get("status")),
            recovery_point: row.get("recovery_point"),
            token: row.get("token"),
            result: row.get("result"),
            error_count: row.get("error_count"),
            error_message: row.get("error_message"),
            reference_time: row.get("reference_time"),
            created_at: row.get("created_at"),
            started_at: row.get("started_at"),
            timeout_at: row.get("timeout_at"),
            expires_at: row.get("expires_at"),
            finished_at: row.get("finished_at"),
            is_expired: row.get::<_, Option<bool>>("is_expired").unwrap_or(false),
            time_left: row.get::<_, Option<f64>>("time_left_s").map(|s| Duration::from_secs_f64(s.max(0.0))),
        }
    }
}

/// The right to work on an operation, until its time runs out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The operation's row.
    pub id: i64,
    /// The action and its user.
    pub target: String,
    /// The name that the client has chosen.
    pub key: String,
    /// The token that every phase presents. It goes up with each claim, so an older token is refused.
    pub token: i64,
    /// The phase that comes next.
    pub recovery_point: String,
    /// The request, as it was stored first.
    pub payload: Vec<u8>,
    /// The state of the operation before this claim: ready, running (and its time was up) or failed.
    pub found: Status,
}

/// The result of claiming.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The operation is claimed by the caller: go on at its recovery point.
    Mine(Claim),
    /// The operation is done, and this is its result.
    Finished(Vec<u8>),
}

/// Claims an operation that is new, has failed, or has a claim that ran out. The server's clock decides. This waits for no
/// other process, unless a phase is still open although its claim has run out.
///
/// # Errors
/// [`Error::Expired`], [`Error::StillRunning`], [`Error::Mismatch`], [`Error::Invalid`]; otherwise Postgres is away. A
/// finished operation returns its result even after it has expired. If the connection broke, the operation may be claimed
/// without a holder, until that claim runs out.
pub async fn claim(client: &Client, operation: &Operation) -> Result<Claimed, Error> {
    operation.check()?;
    loop {
        let is_late = match try_to_claim(client, operation).await? {
            Tried::Mine(claim) => return Ok(Claimed::Mine(claim)),
            Tried::Not { is_late } => is_late,
        };
        // Another process holds the operation, or has held it.
        let Some(tracked) = find(client, &operation.target, &operation.key).await? else {
            if is_late {
                return Err(operation.expired());
            }
            // It was deleted in the meantime, so it can be claimed now.
            continue;
        };
        if tracked.payload != operation.payload {
            return Err(operation.mismatch());
        }
        match tracked.status {
            Status::Finished => return Ok(Claimed::Finished(tracked.result.unwrap_or_default())),
            _ if tracked.is_expired => return Err(operation.expired()),
            Status::Running if tracked.time_left.is_none_or(|left| !left.is_zero()) => {
                return Err(operation.still_running(tracked.time_left));
            }
            // It failed, or its claim ran out, between the two statements.
            _ => {}
        }
    }
}

enum Tried {
    Mine(Claim),
    /// `is_late`: a new operation with this reference time has expired already.
    Not {
        is_late: bool,
    },
}

async fn try_to_claim(client: &Client, operation: &Operation) -> Result<Tried, Error> {
    // The INSERT skips an operation that is held or done, because it would wait for the lock of an open phase. A reference time
    // in the future is cut, because a client could put off the expiration by it.
    let statement = "-- idempotency::claim
        WITH given AS (
            SELECT reference_time, now() + $5::float8 * INTERVAL '1 second' AS timeout_at,
                   reference_time + $6::float8 * INTERVAL '1 second' AS expires_at
            FROM (SELECT LEAST($4::timestamptz, now()) AS reference_time) AS clock),
        found AS (SELECT status, timeout_at FROM tracked_operations WHERE target = $1 AND key = $2),
        claimed AS (
            INSERT INTO tracked_operations AS op (target, key, payload, reference_time, timeout_at, expires_at)
            SELECT $1, $2, $3, reference_time, given.timeout_at, expires_at FROM given LEFT JOIN found ON true
            WHERE found.status = 'failed' OR found.timeout_at <= now() AND found.status = 'running'
               OR found.status IS NULL AND (expires_at IS NULL OR expires_at > now())
            ON CONFLICT (target, key) DO UPDATE
            SET status = 'running', token = op.token + 1, started_at = now(), timeout_at = excluded.timeout_at
            WHERE op.payload = excluded.payload
              AND (op.status = 'failed' OR op.status = 'running' AND op.timeout_at <= now())
              AND (op.expires_at IS NULL OR op.expires_at > now())
            RETURNING id, token, recovery_point)
        SELECT id, token, recovery_point, found.status AS found_status,
               COALESCE(given.expires_at <= now(), false) AS is_late
        FROM given LEFT JOIN found ON true LEFT JOIN claimed ON true";
    let (timeout_s, expiration_s) = (bounded_s(operation.timeout), bounded_s(operation.expiration));
    let parameters: [&(dyn ToSql + Sync); 6] =
        [&operation.target, &operation.key, &operation.payload, &operation.reference_time, &timeout_s, &expiration_s];
    let row = client.query_one(&client.prepare_cached(statement).await?, &parameters).await?;
    let Some(id) = row.get("id") else { return Ok(Tried::Not { is_late: row.get("is_late") }) };
    Ok(Tried::Mine(Claim {
        id,
        target: operation.target.clone(),
        key: operation.key.clone(),
        token: row.get("token"),
        recovery_point: row.get("recovery_point"),
        payload: operation.payload.clone(),
        found: Status::from_name(row.get("found_status")),
    }))
}

/// A duration for SQL.
fn bounded_s(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.min(DURATION_MAX).as_secs_f64())
}

/// An operation, if it is known.
///
/// # Errors
/// Postgres is away.
pub async fn find(client: &Client, target: &str, key: &str) -> Result<Option<Tracked>, Error> {
    let statement = concat!(
        "-- idempotency::find\nSELECT ",
        columns!(),
        " FROM tracked_operations AS op WHERE op.target = $1 AND op.key = $2"
    );
    let row = client.query_opt(&client.prepare_cached(statement).await?, &[&target, &key]).await?;
    Ok(row.as_ref().map(Tracked::from_row))
}

/// Gives the operation back after a failure: it may be claimed again at once, and goes on at its recovery point. Returns
/// whether the claim was still held.
///
/// # Errors
/// Postgres is away. Then the operation may be claimed again when the claim has run out.
pub async fn fail(client: &Client, claim: &Claim, message: &str) -> Result<bool, Error> {
    let changed_count = client
        .execute(
            "-- idempotency::fail
             UPDATE tracked_operations
             SET status = 'failed', timeout_at = now(), error_count = error_count + 1, error_message = $3
             WHERE id = $1 AND token = $2 AND status = 'running'",
            &[&claim.id, &claim.token, &kept_message(message)],
        )
        .await?;
    Ok(changed_count == 1)
}

/// Ends an operation whose work was not done in a phase. Every retry receives `result`. A late result is accepted as long as
/// no other process has claimed the operation.
///
/// # Errors
/// [`Error::Fenced`] if another process has claimed it, or a sweeper has marked it as failed; [`Error::Expired`] if it took
/// too long: the operation has failed. Otherwise Postgres is away, and it is unknown whether the result is stored.
pub async fn finish(client: &Client, claim: &Claim, result: &[u8]) -> Result<(), Error> {
    let statement = "-- idempotency::finish_claim
        UPDATE tracked_operations AS op
        SET status = CASE WHEN is_late THEN 'failed' ELSE 'finished' END,
            recovery_point = CASE WHEN is_late THEN op.recovery_point ELSE 'finished' END,
            result = CASE WHEN NOT is_late THEN $3::bytea END,
            error_count = op.error_count + is_late::int,
            error_message = CASE WHEN is_late THEN $4::text END,
            finished_at = CASE WHEN NOT is_late THEN clock_timestamp() END
        FROM (SELECT id, COALESCE(expires_at <= clock_timestamp(), false) AS is_late FROM tracked_operations
              WHERE id = $1 AND token = $2 AND status = 'running' FOR UPDATE) AS held
        WHERE op.id = held.id
        RETURNING is_late";
    let statement = client.prepare_cached(statement).await?;
    let row = client.query_opt(&statement, &[&claim.id, &claim.token, &result, &EXPIRED]).await?;
    if row.ok_or(Error::Fenced)?.get("is_late") {
        return Err(Error::Expired { target: claim.target.clone(), key: claim.key.clone() });
    }
    Ok(())
}

/// The stored part of an error message. Postgres allows no zero byte in a text.
pub(crate) fn kept_message(message: &str) -> String {
    message.chars().take(1000).map(|char| if char == '\0' { char::REPLACEMENT_CHARACTER } else { char }).collect()
}
