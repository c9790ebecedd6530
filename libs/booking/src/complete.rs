//! Finishing the bookings that clients have left unfinished. Each booking is leased: see [`lease`].

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::shutdown::CancellationToken;
use lease::{Leases, Round, Settled};
use pglog::Session;

use crate::desk::Desk;
use crate::error::Error;
use crate::order::{Order, Payload, Reply, TARGET, User};

/// Requests that are finished side by side. Each needs a connection, except while the processor charges.
pub const SIDE_BY_SIDE_MAX: usize = 5;

/// Which requests are left alone, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Requests younger than this are left alone: their clients may still send them again.
    pub age_min: Duration,
    /// Requests that were tried less than this long ago are left alone.
    pub idle_min: Duration,
    /// The pause after a first attempt that failed. It doubles with each attempt.
    pub retry_wait: Duration,
    /// The longest pause between two attempts.
    pub retry_wait_max: Duration,
}

/// The result of one round.
#[derive(Debug, Default)]
pub struct Completion {
    /// The responses of requests that are finished now.
    pub replies: Vec<Reply>,
    /// Why other requests are not finished. They are tried again later.
    pub errors: Vec<Error>,
}

/// Takes up to `count_max` requests that are due, the oldest first, and finishes them. Several completers share the work: no
/// other completer takes a request until its next attempt is due.
///
/// # Errors
/// Postgres is away. The errors of single requests are in the [`Completion`].
pub async fn complete(desk: &Desk, patience: &Patience, count_max: usize) -> Result<Completion, Error> {
    // While the processor is away, nothing is taken: each attempt puts off the next one.
    let count_max = desk.breaker.room(count_max, Instant::now());
    let unfinished = Unfinished { desk, patience, completion: Mutex::default() };
    // Side by side, so that a booking for which the processor hangs delays no other. Each bounds itself by its claim.
    let round = Round {
        piece_count_max: count_max,
        side_by_side_max: SIDE_BY_SIDE_MAX,
        look_interval: desk.claim_wait,
        wait: desk.claim_wait * 2,
    };
    // Requests that were taken and not worked on would have to wait for their next attempt, so a round is not stopped.
    lease::run_round(&unfinished, &round, &CancellationToken::new()).await?;
    Ok(unfinished.completion.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Requests that no client and no other process works on. The lease is `next_attempt_at` in table `completions`.
struct Unfinished<'a> {
    desk: &'a Desk,
    patience: &'a Patience,
    completion: Mutex<Completion>,
}

impl Unfinished<'_> {
    fn completion(&self) -> MutexGuard<'_, Completion> {
        self.completion.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An unfinished request.
struct Left {
    operation_id: i64,
    key: String,
    payload: Vec<u8>,
    user: User,
}

impl Leases for Unfinished<'_> {
    type Piece = Left;
    type Done = Reply;
    type Failure = Error;
    type Error = Error;

    async fn take(&self, len_max: usize) -> Result<Vec<Left>, Error> {
        let statement = "-- booking::take
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
                -- A second completer may have just taken it: this statement's snapshot does not show that commit.
                WHERE c.next_attempt_at <= now()
                RETURNING operation_id
            )
            SELECT due.id, due.key, due.payload, users.id AS user_id, users.stripe_customer_id
            FROM due JOIN put_off ON put_off.operation_id = due.id
                     JOIN users ON users.id = bigint_or_null(substr(due.target, length($6) + 1))
            ORDER BY due.created_at";
        let seconds = |duration: Duration| duration.as_secs_f64();
        let Patience { age_min, idle_min, retry_wait, retry_wait_max } = *self.patience;
        let rows = self
            .desk
            .client()
            .await?
            .query(
                statement,
                &[
                    &seconds(age_min),
                    &seconds(idle_min),
                    &seconds(retry_wait),
                    &seconds(retry_wait_max),
                    &(len_max as i64),
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

    async fn work(&self, left: &Left) -> Result<Reply, Error> {
        let payload: Payload = serde_json::from_slice(&left.payload)
            .map_err(|error| Error::Bug(format!("Unreadable payload: {error}")))?;
        let origin_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let order = Order { journey: payload.journey, origin_ip, traceparent: None, raise_error: false };
        // The stored bytes, which are the same request without a comparison by meaning.
        self.desk.book_as(&left.user, &left.key, left.payload.clone(), &order).await
    }

    /// There is nothing left to write. The booking's last phase has stored the reply under the claim's token, which admits one
    /// process at a time even if two have leased the request. `completions` only says when to try again.
    async fn settle(&self, left: Left, result: Result<Reply, Error>) -> Result<Settled, Error> {
        match result {
            Ok(reply) => self.completion().replies.push(reply),
            Err(error) => {
                tracing::debug!(operation = left.operation_id, error = %error, "not completed yet");
                self.completion().errors.push(error);
            }
        }
        Ok(Settled::Ours)
    }
}
