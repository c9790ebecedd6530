//! Group commit: requests that arrive while a transaction is in flight are written together by the next one.
//!
//! One task owns the writing. It takes whatever waits, writes it with one statement, and answers each request after its
//! row is durable. A lone request goes at once; nothing ever waits for company. A commit to disk takes as long for a
//! hundred rides as for one, so the more arrive, the cheaper each becomes.

use std::pin::pin;
use std::sync::Arc;

use deadpool_postgres::Client;
use monitor::Pulse;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use traces::TraceParent;
use tracing::warn;

use crate::database::{Database, Failure, sort_out, until};
use crate::error::Error;
use crate::hint;
use crate::limits::Limits;
use crate::metrics;
use crate::ride::Ride;

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRide {
    pub distance_mm: i64,
    /// What its record is a part of.
    pub traceparent: Option<TraceParent>,
}

struct Request {
    ride: NewRide,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Ride, Error>>;

/// What a request will be told, and over what.
type Answer = (Reply, Result<Ride, Error>);

/// Hands rides to the writing task. Clones share it; when the last is dropped, the task writes what waits and ends.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Request>,
    staged: Arc<Notify>,
}

impl Writer {
    /// Starts the writing task and the task that sends hints. The handle ends when every [`Writer`] is gone and
    /// everything accepted has been answered.
    pub fn start(database: Database, limits: &Limits, pulse: Pulse) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, requests) = mpsc::channel(limits.queue_len_max);
        let staged = Arc::new(Notify::new());
        tokio::spawn(hint::send_hints(database.clone(), Arc::downgrade(&staged)));
        let writing = write_groups(database, requests, limits.group_len_max, pulse);
        (Self { queue, staged }, tokio::spawn(writing))
    }

    /// Writes a ride and its log record; returns when both are durable.
    pub async fn write(&self, ride: NewRide) -> Result<Ride, Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Request { ride, reply }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Unavailable,
        })?;
        answer.await.unwrap_or(Err(Error::Internal))
    }

    /// Says that somebody else has staged a record.
    pub fn hint(&self) {
        self.staged.notify_one();
    }
}

async fn write_groups(database: Database, mut requests: mpsc::Receiver<Request>, group_len_max: usize, pulse: Pulse) {
    let (mut group, mut answers) = (Vec::with_capacity(group_len_max), Vec::new());
    // One group is in Postgres at a time. With two, both are smaller, and what that costs Postgres is more than what is won
    // by not waiting for the disk in between.
    while next_group(&mut requests, &mut group, group_len_max, &mut answers, &pulse).await {
        let told = std::mem::take(&mut answers);
        // Postgres first: while it writes these, there is time to answer those before.
        tokio::join!(write_group(&database, &mut group, &mut answers), async {
            // The connection's task sends the statement in this turn, ahead of the clients' tasks.
            tokio::task::yield_now().await;
            tell(told);
        });
    }
}

/// Takes what waits into the empty `group`. If nothing does, tells `answers` and waits. False: there will be nothing more.
async fn next_group(
    requests: &mut mpsc::Receiver<Request>,
    group: &mut Vec<Request>,
    group_len_max: usize,
    answers: &mut Vec<Answer>,
    pulse: &Pulse,
) -> bool {
    // One turn for the other tasks: requests that lie in sockets already would otherwise miss this group by microseconds.
    // If there is nothing else to do, this returns at once.
    tokio::task::yield_now().await;
    loop {
        while group.len() < group_len_max
            && let Ok(request) = requests.try_recv()
        {
            group.push(request);
        }
        // Nobody waits for these any more: the client left, or was answered with 503 after too long in the queue, and
        // will ask again. To write them now would write them twice.
        group.retain(|request| !request.reply.is_closed());
        if !group.is_empty() {
            pulse.beat();
            return true;
        }
        pulse.rest();
        tell(std::mem::take(answers));
        if requests.recv_many(group, group_len_max).await == 0 {
            return false;
        }
    }
}

fn tell(answers: Vec<Answer>) {
    for (reply, answer) in answers {
        // The client may have left; its ride stands all the same.
        let _ = reply.send(answer);
    }
}

/// Adds to `answers` one for each request of `group`.
///
/// All others wait meanwhile, so it has one deadline for everything it does. A second writing task beside a stuck one
/// would not help: what stops a statement (a lock, the disk, the network) stops the next one too, and each would hold
/// another group whose fate is unknown.
async fn write_group(database: &Database, group: &mut Vec<Request>, answers: &mut Vec<Answer>) {
    let client = match database.client().await {
        Ok(client) => client,
        Err(error) => return answer_all(group, &error, answers),
    };
    if let Err(failure) = write_and_answer(&client, database.deadline(), group, answers).await {
        answer_all(group, &sort_out(&failure), answers);
        if matches!(failure, Failure::Late) {
            database.discard(client);
        }
    }
}

/// Writes and answers what can be, the first first. After an error nothing more can, and the requests left in `group` have
/// no answer yet.
///
/// A statement fails as a whole, and nothing of it is written. If that may be one row's fault, half as many are tried next,
/// down to the one to blame; after each success twice as many. So one bad row costs a few statements and not one for each
/// of its neighbours, and many bad rows cost hardly more than one statement each.
async fn write_and_answer(
    client: &Client,
    deadline: Instant,
    group: &mut Vec<Request>,
    answers: &mut Vec<Answer>,
) -> Result<(), Failure> {
    let rides: Vec<NewRide> = group.iter().map(|request| request.ride).collect();
    let mut left = rides.as_slice();
    let mut len = left.len();
    while !left.is_empty() {
        let (now, later) = left.split_at(len);
        let results: Vec<Result<Ride, Error>> = match until(deadline, write_rides(client, now)).await {
            Ok(rides) => rides.into_iter().map(Ok).collect(),
            Err(failure) if is_about_a_row(&failure) && len > 1 => {
                warn!(error = format!("{failure:#?}"), request_count = len, "writing half as many rides at a time");
                len /= 2;
                continue;
            }
            Err(failure) if is_about_a_row(&failure) => vec![Err(sort_out(&failure))],
            Err(failure) => return Err(failure),
        };
        let is_written = results.iter().all(Result::is_ok);
        if is_written {
            metrics::written(len);
        }
        answers.extend(group.drain(..len).map(|request| request.reply).zip(results));
        left = later;
        len = left.len().min(if is_written { 2 * len } else { 1 });
    }
    Ok(())
}

fn answer_all(group: &mut Vec<Request>, error: &Error, answers: &mut Vec<Answer>) {
    answers.extend(group.drain(..).map(|request| (request.reply, Err(error.clone()))));
}

/// Writes rides and stages their records, in one statement and so in one transaction (I1). Returns the rides in the order
/// of `new`.
async fn write_rides(client: &Client, new: &[NewRide]) -> Result<Vec<Ride>, tokio_postgres::Error> {
    let distances_mm: Vec<i64> = new.iter().map(|ride| ride.distance_mm).collect();
    let rows = match new.iter().any(|ride| ride.traceparent.is_some()) {
        false => insert(client, &distances_mm).await?,
        true => match insert_traced(client, &distances_mm, new).await {
            // In the middle of an upgrade. A trace is not worth a ride, least of all a neighbour's.
            Err(error) if lacks_the_column(&error) => {
                warn!(error = %error, "traces are not stored: apply schema.sql and roles.sql");
                insert(client, &distances_mm).await?
            }
            inserted => inserted?,
        },
    };
    let rides: Vec<Ride> = rows.iter().map(Ride::from_row).collect();
    // Rows come back in the order in which they were inserted. Were that ever to change, a client would be told of
    // another's ride.
    assert!(rides.iter().map(|ride| ride.distance_mm).eq(distances_mm), "rides are answered in order");
    Ok(rides)
}

fn lacks_the_column(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&SqlState::UNDEFINED_COLUMN | &SqlState::INSUFFICIENT_PRIVILEGE))
}

async fn insert(client: &Client, distances_mm: &[i64]) -> Result<Vec<Row>, tokio_postgres::Error> {
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
    write_and_hint(client, statement, &[&distances_mm]).await
}

/// The same for a group of which some come with a trace. The others need not pay for it, so it is a statement of its own.
async fn insert_traced(
    client: &Client,
    distances_mm: &[i64],
    new: &[NewRide],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let traceparents: Vec<Option<String>> =
        new.iter().map(|ride| ride.traceparent.map(|traceparent| traceparent.to_string())).collect();
    // Rides come out of written in the order in which they were inserted, so each meets its own trace; put side by side, not
    // joined, because Postgres would plan a join of a thousand with a thousand for a handful.
    let statement = "-- api::write_traced_rides
        WITH written AS (
            INSERT INTO rides (distance_mm)
            SELECT distance_mm FROM unnest($1::bigint[]) WITH ORDINALITY AS new (distance_mm, place) ORDER BY place
            RETURNING id, distance_mm, created_at
        ), staged AS (
            INSERT INTO staged_log_records (object, action, data, traceparent)
            SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json, traceparent
            FROM (SELECT array_agg(id) AS ids, array_agg(distance_mm) AS distances_mm FROM written) AS rides,
                 unnest(ids, distances_mm, $2::text[]) AS record (id, distance_mm, traceparent)
        )
        SELECT id, distance_mm, created_at FROM written";
    write_and_hint(client, statement, &[&distances_mm, &traceparents]).await
}

/// Runs the statement and, sent right behind it on the same connection, the hint. So it comes after the commit, no turn of this
/// process later, and from a session of Postgres that is awake. Nobody waits for its answer.
async fn write_and_hint(
    client: &Client,
    statement: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let statement = client.prepare_cached(statement).await?;
    let mut writing = pin!(client.query(&statement, params));
    tokio::select! {
        // In this order they are sent.
        biased;
        rows = &mut writing => rows,
        _ = pglog::hint(client) => writing.await,
    }
}

/// Data that the tables do not take (class 22) and constraints (class 23) concern one row; the rest concerns all.
fn is_about_a_row(failure: &Failure) -> bool {
    let Failure::Postgres(error) = failure else { return false };
    error.code().is_some_and(|state| state.code().starts_with("22") || state.code().starts_with("23"))
}
