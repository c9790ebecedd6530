//! Rides in groups: the part of a [`group::Queue`] that knows of rides. A ride and its log record are written by one
//! statement, and the streamer's hint follows on the same connection.

use std::pin::pin;
use std::sync::Arc;

use deadpool_postgres::{Client, ClientWrapper};
use group::{Destination, Queue, Refusal};
use monitor::Pulse;
use tokio::sync::Notify;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use traces::TraceParent;
use tracing::warn;

use crate::database::{Database, QueryFailure, concerns_one_row, postgres_to_client_error, to_client_error};
use crate::error::Error;
use crate::hint;
use crate::limits::Limits;
use crate::metrics;
use crate::ride::Ride;

/// A ride that is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRide {
    pub distance_mm: i64,
    /// The trace that its log record belongs to.
    pub traceparent: Option<TraceParent>,
}

/// Writes rides in groups. Clones share the writing task; after the last one is dropped, the task writes the rides that wait,
/// and ends.
#[derive(Clone)]
pub(crate) struct Writer {
    rides: Queue<Rides>,
    staged: Arc<Notify>,
}

impl Writer {
    /// Starts the writing task and the task that sends hints. The handle ends when every [`Writer`] is gone and every accepted
    /// request has its response.
    pub fn start(database: Database, limits: &Limits, pulse: Pulse) -> (Self, tokio::task::JoinHandle<()>) {
        let staged = Arc::new(Notify::new());
        tokio::spawn(hint::send_hints(database.clone(), Arc::downgrade(&staged)));
        let limits = group::Limits {
            queue_len_max: limits.queue_len_max,
            group_len_max: limits.group_len_max,
            write_wait: limits.answer_wait,
        };
        let (rides, writing) = Queue::start(Rides { database }, limits, pulse);
        (Self { rides, staged }, writing)
    }

    /// Writes a ride and its log record; returns when both are durable.
    pub async fn write(&self, ride: NewRide) -> Result<Ride, Error> {
        self.rides.write(ride).await
    }

    /// Says that another task has staged a record.
    pub fn hint(&self) {
        self.staged.notify_one();
    }
}

/// The tables that take rides.
struct Rides {
    database: Database,
}

impl Destination for Rides {
    type Request = NewRide;
    type Response = Ride;
    type Error = Error;
    type Connection = Client;
    type Failure = tokio_postgres::Error;

    async fn connect(&self) -> Result<Client, Error> {
        self.database.client().await
    }

    async fn write(&self, client: &Client, new: &[NewRide]) -> Result<Vec<Ride>, tokio_postgres::Error> {
        let rides = write_rides(client, new).await?;
        metrics::written(rides.len());
        Ok(rides)
    }

    fn concerns_one_request(&self, error: &tokio_postgres::Error) -> bool {
        concerns_one_row(error)
    }

    fn error_of(&self, error: tokio_postgres::Error) -> Error {
        postgres_to_client_error(&error)
    }

    fn error_of_refusal(refusal: Refusal) -> Error {
        Error::of_refusal(refusal, Error::Internal)
    }

    fn abandon(&self, client: Client) -> Error {
        self.database.discard(client);
        to_client_error(&QueryFailure::Late)
    }
}

/// Writes rides and stages their records, in one statement and so in one transaction (I1). Returns the rides in the order
/// of `new`.
async fn write_rides(client: &Client, new: &[NewRide]) -> Result<Vec<Ride>, tokio_postgres::Error> {
    let distances_mm: Vec<i64> = new.iter().map(|ride| ride.distance_mm).collect();
    let rows = if new.iter().any(|ride| ride.traceparent.is_some()) {
        match insert_traced(client, &distances_mm, new).await {
            // In the middle of an upgrade. A lost trace does less harm than a lost ride.
            Err(error) if lacks_the_column(&error) => {
                warn!(error = %error, "traces are not stored: apply schema.sql and roles.sql");
                insert(client, &distances_mm).await?
            }
            inserted => inserted?,
        }
    } else {
        insert(client, &distances_mm).await?
    };
    let rides: Vec<Ride> = rows.iter().map(Ride::from_row).collect();
    // Postgres returns rows in the order in which it inserted them. In any other order a client would receive another
    // client's ride.
    assert!(rides.iter().map(|ride| ride.distance_mm).eq(distances_mm), "rides are returned in order");
    Ok(rides)
}

fn lacks_the_column(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&SqlState::UNDEFINED_COLUMN | &SqlState::INSUFFICIENT_PRIVILEGE))
}

/// Writes a ride and its record for each distance of `$1`. Without distances it writes nothing, and fails where rides cannot
/// be written: on a server that is read-only, or where a table or a right is missing.
pub(crate) const WRITE_RIDES: &str = "-- api::write_rides
    WITH written AS (
        INSERT INTO rides (distance_mm)
        SELECT distance_mm FROM unnest($1::bigint[]) WITH ORDINALITY AS new (distance_mm, place) ORDER BY place
        RETURNING id, distance_mm, created_at
    ), staged AS (
        INSERT INTO staged_log_records (partition, object, action, data)
        SELECT partition_of(id::text), 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json FROM written
    )
    SELECT id, distance_mm, created_at FROM written";

/// Succeeds only while rides can be written.
pub(crate) async fn write_no_ride(client: &ClientWrapper) -> Result<(), tokio_postgres::Error> {
    client.query(&client.prepare_cached(WRITE_RIDES).await?, &[&Vec::<i64>::new()]).await?;
    Ok(())
}

async fn insert(client: &Client, distances_mm: &[i64]) -> Result<Vec<Row>, tokio_postgres::Error> {
    write_and_hint(client, WRITE_RIDES, &[&distances_mm]).await
}

/// As [`insert`], for a group in which at least one ride has a trace. It is a separate statement because the traces make it
/// slower.
async fn insert_traced(
    client: &Client,
    distances_mm: &[i64],
    new: &[NewRide],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let traceparents: Vec<Option<String>> =
        new.iter().map(|ride| ride.traceparent.map(|traceparent| traceparent.to_string())).collect();
    // `written` returns rides in the order of insertion, so the nth ride belongs to the nth trace. They are unnested side by
    // side. For a join Postgres would expect a thousand rows on each side and plan badly for a few.
    let statement = "-- api::write_traced_rides
        WITH written AS (
            INSERT INTO rides (distance_mm)
            SELECT distance_mm FROM unnest($1::bigint[]) WITH ORDINALITY AS new (distance_mm, place) ORDER BY place
            RETURNING id, distance_mm, created_at
        ), staged AS (
            INSERT INTO staged_log_records (partition, object, action, data, traceparent)
            SELECT partition_of(id::text), 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json,
                   traceparent
            FROM (SELECT array_agg(id) AS ids, array_agg(distance_mm) AS distances_mm FROM written) AS rides,
                 unnest(ids, distances_mm, $2::text[]) AS record (id, distance_mm, traceparent)
        )
        SELECT id, distance_mm, created_at FROM written";
    write_and_hint(client, statement, &[&distances_mm, &traceparents]).await
}

/// Runs the statement, and sends the hint right behind it on the same connection. Postgres runs the hint directly after the
/// commit, in a session that is awake already. The response to the hint is not awaited.
async fn write_and_hint(
    client: &Client,
    statement: &str,
    params: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let statement = client.prepare_cached(statement).await?;
    let mut writing = pin!(client.query(&statement, params));
    tokio::select! {
        // The statement is sent first.
        biased;
        rows = &mut writing => rows,
        _ = pglog::hint(client) => writing.await,
    }
}
