//! Sweeping: marks operations that no process finishes, and deletes expired ones. Several sweepers share the work.

use deadpool_postgres::ClientWrapper as Client;

use crate::claim::Status;
use crate::error::Error;
use crate::operation::{EXPIRED, TIMED_OUT};

/// Marks running operations that are past the time in this column, the oldest first.
macro_rules! fail_late {
    ($name:literal, $column:literal) => {
        concat!(
            "-- idempotency::",
            $name,
            "
             UPDATE tracked_operations AS op
             SET status = 'failed', error_count = op.error_count + 1, error_message = $2
             FROM (SELECT id FROM tracked_operations WHERE status = 'running' AND ",
            $column,
            " <= now()
                   ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED) AS late
             WHERE op.id = late.id"
        )
    };
}

/// Marks running operations whose claims have run out as failed, the oldest first. Returns how many, at most `count_max`.
///
/// # Errors
/// Postgres is away.
pub async fn fail_timed_out(client: &Client, count_max: i64) -> Result<u64, Error> {
    Ok(client.execute(fail_late!("fail_timed_out", "timeout_at"), &[&count_max, &TIMED_OUT]).await?)
}

/// Marks running operations that have expired as failed, the oldest first. Returns how many, at most `count_max`.
///
/// # Errors
/// Postgres is away.
pub async fn fail_expired(client: &Client, count_max: i64) -> Result<u64, Error> {
    Ok(client.execute(fail_late!("fail_expired", "expires_at"), &[&count_max, &EXPIRED]).await?)
}

/// Deletes operations of a status that have expired, the oldest first. Returns how many, at most `count_max`.
///
/// # Errors
/// Postgres is away.
pub async fn delete_expired(client: &Client, status: Status, count_max: i64) -> Result<u64, Error> {
    let statement = "-- idempotency::delete_expired
        DELETE FROM tracked_operations AS op
        USING (SELECT id FROM tracked_operations WHERE status = $1 AND expires_at <= now()
               ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED) AS late
        WHERE op.id = late.id";
    Ok(client.execute(statement, &[&status.name(), &count_max]).await?)
}
