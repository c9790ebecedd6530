//! Requests that are too old to be sent again. Unfinished requests are listed for a human, because the processor may have
//! charged for them.

use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;

/// Requests forgotten in one transaction.
const REQUESTS_LEN_MAX: i64 = 1000;

/// The requests of one transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forgotten {
    /// Forgotten requests, finished or not.
    pub count: u64,
    /// The unfinished requests among them. They are listed in `reaped_requests`.
    pub unfinished_count: u64,
}

/// Forgets requests that were finished longer than `keep` ago, and unfinished ones that are older than `keep` and expired; at
/// most [`REQUESTS_LEN_MAX`]. A request that a process works on is left alone.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn forget(client: &Client, keep: Duration) -> Result<Forgotten> {
    let row = client
        .query_one(
            "-- reaper::forget
             WITH old AS (
                 SELECT id FROM tracked_operations
                 WHERE created_at < now() - $1 * INTERVAL '1 second'
                   -- The client learns the response when the request is finished, and may ask for it from then on.
                   AND (finished_at IS NULL OR finished_at < now() - $1 * INTERVAL '1 second')
                   AND (status <> 'running' OR timeout_at <= now())
                   -- A request that may still be retried stays, however old it is: if it were forgotten, a retry would do
                   -- it again. Finished bookings do not expire.
                   AND (expires_at <= now()
                        OR status = 'finished' AND EXISTS (SELECT FROM bookings WHERE operation_id = tracked_operations.id))
                 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
             ), gone AS (
                 DELETE FROM tracked_operations WHERE id IN (SELECT id FROM old)
                 RETURNING id, target, key, payload, status, recovery_point, error_count, error_message, created_at
             ), listed AS (
                 INSERT INTO reaped_requests
                     (operation_id, target, key, payload, recovery_point, error_count, error_message, ride_id, created_at)
                 SELECT id, target, key, payload, recovery_point, error_count, error_message,
                        (SELECT ride_id FROM bookings WHERE operation_id = id), created_at
                 FROM gone WHERE status <> 'finished'
                 RETURNING operation_id
             )
             SELECT (SELECT count(*) FROM gone) AS count, (SELECT count(*) FROM listed) AS unfinished_count",
            &[&keep.as_secs_f64(), &REQUESTS_LEN_MAX],
        )
        .await
        .context("forgetting old requests")?;
    let count = |column| row.get::<_, i64>(column) as u64;
    Ok(Forgotten { count: count("count"), unfinished_count: count("unfinished_count") })
}
