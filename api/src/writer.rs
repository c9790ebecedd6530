//! Group commit: requests that arrive while a transaction is in flight are written together by the next one.
//!
//! One task owns the writing. It takes whatever waits, writes it with one statement, and answers each request after its
//! row is durable. A lone request goes at once; nothing ever waits for company. A commit to disk takes as long for a
//! hundred rides as for one, so the more arrive, the cheaper each becomes.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Client, Pool};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_postgres::error::SqlState;
use tracing::{error, warn};

use crate::error::Error;
use crate::rides::Ride;

/// Rides a statement.
const GROUP_LEN_MAX: usize = 1000;

/// Requests that may wait. At the slowest commit seen (10 ms) they are served within half a second; more are shed.
const QUEUE_LEN_MAX: usize = 20_000;

/// The least time between two hints to the streamer: a busy api must not spend itself on telling that it is busy.
const HINT_INTERVAL: Duration = Duration::from_millis(2);

struct Request {
    distance_mm: i64,
    reply: oneshot::Sender<Result<Ride, Error>>,
}

/// Hands rides to the writing task. Clones share it; when the last is dropped, the task writes what waits and ends.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Request>,
}

impl Writer {
    /// Starts the writing task and the task that sends hints. The handle ends when every [`Writer`] is gone and
    /// everything accepted has been answered.
    pub fn start(pool: Pool) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, requests) = mpsc::channel(QUEUE_LEN_MAX);
        let written = Arc::new(Notify::new());
        tokio::spawn(send_hints(pool.clone(), Arc::downgrade(&written)));
        (Self { queue }, tokio::spawn(write_groups(pool, requests, written)))
    }

    /// Writes a ride and its log record; returns when both are durable.
    pub async fn write(&self, distance_mm: i64) -> Result<Ride, Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Request { distance_mm, reply }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Unavailable,
        })?;
        answer.await.unwrap_or(Err(Error::Internal))
    }
}

async fn write_groups(pool: Pool, mut requests: mpsc::Receiver<Request>, written: Arc<Notify>) {
    let mut group = Vec::with_capacity(GROUP_LEN_MAX);
    while requests.recv_many(&mut group, GROUP_LEN_MAX).await > 0 {
        write_group(&pool, &mut group).await;
        written.notify_one();
    }
}

async fn write_group(pool: &Pool, group: &mut Vec<Request>) {
    let client = match pool.get().await {
        Ok(client) => client,
        Err(error) => {
            warn!(error = %error, request_count = group.len(), "no connection to write rides");
            return answer_all(group, &Error::Unavailable);
        }
    };
    let distances_mm: Vec<i64> = group.iter().map(|request| request.distance_mm).collect();
    match write_rides(&client, &distances_mm).await {
        Ok(rides) => {
            for (request, ride) in group.drain(..).zip(rides) {
                // The client may have left; its ride stands all the same.
                let _ = request.reply.send(Ok(ride));
            }
        }
        // The statement failed as a whole, and nothing was written. One row may be to blame: each alone, then.
        Err(error) if is_about_a_row(&error) && group.len() > 1 => {
            warn!(error = format!("{error:#?}"), request_count = group.len(), "writing rides one by one");
            for request in group.drain(..) {
                let ride = write_rides(&client, &[request.distance_mm]).await;
                let _ = request.reply.send(
                    ride.map_err(|error| sort_out(&error)).and_then(|mut rides| rides.pop().ok_or(Error::Internal)),
                );
            }
        }
        Err(error) => answer_all(group, &sort_out(&error)),
    }
}

fn answer_all(group: &mut Vec<Request>, error: &Error) {
    for request in group.drain(..) {
        let _ = request.reply.send(Err(error.clone()));
    }
}

/// Writes rides and stages their records, in one statement and so in one transaction (I1). Returns the rides in the order
/// of `distances_mm`.
async fn write_rides(client: &Client, distances_mm: &[i64]) -> Result<Vec<Ride>, tokio_postgres::Error> {
    let statement = "-- api::write_rides
        WITH written AS (
            INSERT INTO rides (distance_mm)
            SELECT distance_mm FROM unnest($1::bigint[]) WITH ORDINALITY AS new (distance_mm, place) ORDER BY place
            RETURNING id, distance_mm, created_at
        ), staged AS (
            INSERT INTO staged_log_records (object, action, data)
            SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json FROM written
        )
        SELECT id, distance_mm, created_at FROM written";
    let statement = client.prepare_cached(statement).await?;
    let rows = client.query(&statement, &[&distances_mm]).await?;
    let rides: Vec<Ride> = rows.iter().map(Ride::from_row).collect();
    // Rows come back in the order in which they were inserted. Were that ever to change, a client would be told of
    // another's ride.
    assert!(rides.iter().map(|ride| ride.distance_mm).eq(distances_mm.iter().copied()), "rides are answered in order");
    Ok(rides)
}

/// Data that the tables do not take (class 22) and constraints (class 23) concern one row; the rest concerns all.
fn is_about_a_row(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| state.code().starts_with("22") || state.code().starts_with("23"))
}

/// What the client is told, and what the log is told.
pub(crate) fn sort_out(error: &tokio_postgres::Error) -> Error {
    let passes = match error.code() {
        // The connection broke.
        None => true,
        Some(state) => {
            let class = &state.code()[..2];
            // Connection, transaction rollback, resources, operator (shutdown, cancel), system.
            ["08", "40", "53", "57", "58"].contains(&class)
                || [SqlState::LOCK_NOT_AVAILABLE, SqlState::READ_ONLY_SQL_TRANSACTION].contains(state)
        }
    };
    let chain = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    if passes {
        warn!(error = format!("{error}{chain}"), "postgres is away");
        Error::Unavailable
    } else {
        error!(error = format!("{error}{chain}"), "postgres refuses a statement");
        Error::Internal
    }
}

/// Wakes the streamer after commits: outside of every transaction, and at most once in a while. A lost hint costs a
/// moment, nothing else.
async fn send_hints(pool: Pool, written: std::sync::Weak<Notify>) {
    loop {
        let Some(notify) = written.upgrade() else { return };
        // Wake up now and then, to see whether the writer is gone.
        let waited = tokio::time::timeout(Duration::from_secs(1), notify.notified()).await;
        drop(notify);
        if waited.is_ok() {
            if let Ok(client) = pool.get().await {
                let _ = pglog::hint(&**client).await;
            }
            tokio::time::sleep(HINT_INTERVAL).await;
        }
    }
}
