//! Bringing to an end what clients have left unfinished.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::desk::{Desk, Error, Order, Payload, Reply, TARGET, User};

/// What is left alone, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Requests younger than this: their clients may still send them again.
    pub age_min: Duration,
    /// Requests that were tried later than this.
    pub idle_min: Duration,
    /// The pause after a first attempt that failed. It doubles with each.
    pub retry_wait: Duration,
    /// The longest pause between two attempts.
    pub retry_wait_max: Duration,
}

/// What came of one round.
#[derive(Debug, Default)]
pub struct Completion {
    /// Requests that have an answer now.
    pub replies: Vec<Reply>,
    /// Why others have none; they are tried again later.
    pub errors: Vec<Error>,
}

/// A request that nobody works on.
struct Left {
    operation_id: i64,
    key: String,
    payload: Vec<u8>,
    user: User,
}

/// Takes up to `count_max` requests that are due, the oldest first, and brings them to their ends. Several completers
/// share the work: each request is one's until its next attempt is due.
///
/// # Errors
/// Postgres is away. What concerns one request is in the [`Completion`].
pub async fn complete(desk: &Desk, patience: &Patience, count_max: i64) -> Result<Completion, Error> {
    let mut completion = Completion::default();
    for left in take(desk, patience, count_max).await? {
        match go_on(desk, &left).await {
            Ok(reply) => completion.replies.push(reply),
            Err(error) => {
                tracing::debug!(operation = left.operation_id, error = %error, "not completed yet");
                completion.errors.push(error);
            }
        }
    }
    Ok(completion)
}

async fn go_on(desk: &Desk, left: &Left) -> Result<Reply, Error> {
    let payload: Payload =
        serde_json::from_slice(&left.payload).map_err(|error| Error::Bug(format!("Unreadable payload: {error}")))?;
    let origin_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let order = Order { journey: payload.journey, origin_ip, traceparent: None, raise_error: false };
    // As it was stored, byte for byte: it is compared.
    desk.book_as(&left.user, &left.key, left.payload.clone(), &order).await
}

/// Chooses requests and puts off their next attempts, in one statement.
async fn take(desk: &Desk, patience: &Patience, count_max: i64) -> Result<Vec<Left>, Error> {
    let client = desk.client().await?;
    let statement = client
        .prepare_cached(
            "-- booking::take
             WITH due AS MATERIALIZED (
                 SELECT id, target, key, payload, op.created_at FROM tracked_operations AS op
                 WHERE status <> 'finished' AND starts_with(target, $6)
                   AND op.created_at < now() - $1 * INTERVAL '1 second'
                   AND started_at < now() - $2 * INTERVAL '1 second'
                   AND (status = 'failed' OR timeout_at <= now())
                   AND (expires_at IS NULL OR expires_at > now())
                   AND NOT EXISTS (SELECT FROM completions WHERE operation_id = id AND next_attempt_at > now())
                 ORDER BY op.created_at LIMIT $5 FOR UPDATE OF op SKIP LOCKED
             ), put_off AS (
                 INSERT INTO completions AS c (operation_id, next_attempt_at)
                 SELECT id, now() + $3 * INTERVAL '1 second' FROM due
                 ON CONFLICT (operation_id) DO UPDATE
                 SET attempt_count = c.attempt_count + 1,
                     next_attempt_at = now() + least($3 * power(2, least(c.attempt_count, 30)), $4) * INTERVAL '1 second'
                 -- Another completer, whose commit this statement's snapshot does not show, may have just taken it.
                 WHERE c.next_attempt_at <= now()
                 RETURNING operation_id
             )
             SELECT due.id, due.key, due.payload, users.id AS user_id, users.stripe_customer_id
             FROM due JOIN put_off ON put_off.operation_id = due.id
                      JOIN users ON users.id = substr(due.target, length($6) + 1)::bigint
             ORDER BY due.created_at",
        )
        .await?;
    let seconds = |duration: Duration| duration.as_secs_f64();
    let rows = client
        .query(
            &statement,
            &[
                &seconds(patience.age_min),
                &seconds(patience.idle_min),
                &seconds(patience.retry_wait),
                &seconds(patience.retry_wait_max),
                &count_max,
                &TARGET,
            ],
        )
        .await?;
    let left = rows.iter().map(|row| Left {
        operation_id: row.get("id"),
        key: row.get("key"),
        payload: row.get("payload"),
        user: User { id: row.get("user_id"), stripe_customer_id: row.get("stripe_customer_id") },
    });
    Ok(left.collect())
}
