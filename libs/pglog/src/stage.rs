//! Staging: the write rule's half of the log. A record commits with the change it tells of, or not at all (I1).

use tokio_postgres::Client;

use crate::session::Session;

/// The partition that is used unless somebody asks for another.
pub const DEFAULT_PARTITION: i32 = 0;

/// The channel of the wake-up hint. Listeners must not rely on it: it is lost silently with a connection.
pub const HINT_CHANNEL: &str = "rocket_rides_log";

/// What happened: an object (`ride`), an action (`create`) and a JSON payload, kept to the byte.
///
/// ```
/// let record = pglog::NewRecord { object: "wallet", action: "credit", data: r#"{"id":7}"#, ..Default::default() };
/// assert_eq!(record.traceparent, None);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct NewRecord<'a> {
    /// What it is about, at most 100 characters.
    pub object: &'a str,
    /// What happened to it, at most 100 characters.
    pub action: &'a str,
    /// The payload: a JSON text of at most 64 KiB.
    pub data: &'a str,
    /// The trace that it is a part of, as W3C's header `traceparent` of version 00 says it; `None` if there is none.
    pub traceparent: Option<&'a str>,
}

/// Stages a record in the caller's transaction and returns the row's id (not its offset: that is decided later).
///
/// Make it the last statement before COMMIT, after the transaction holds its row locks: then records about one row
/// have offsets in the order of their commits.
///
/// ```no_run
/// # async fn f(client: &mut tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
/// let tx = client.transaction().await?;
/// tx.execute("UPDATE wallets SET balance = balance + 5 WHERE id = $1", &[&7_i64]).await?;
/// let data = r#"{"id":7,"amount":5}"#;
/// pglog::stage(&tx, pglog::NewRecord { object: "wallet", action: "credit", data, traceparent: None }).await?;
/// tx.commit().await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// The data is no JSON, the trace no `traceparent`, or something is too long: fix the record; the transaction is aborted.
pub async fn stage(client: &impl Session, record: NewRecord<'_>) -> Result<i64, tokio_postgres::Error> {
    let NewRecord { object, action, data, traceparent } = record;
    let row = match traceparent {
        // Without the column: whoever has no trace needs no right to it.
        None => {
            client
                .query_one(
                    "-- pglog::stage
                     INSERT INTO staged_log_records (object, action, data) VALUES ($1, $2, $3::text::json) RETURNING id",
                    &[&object, &action, &data],
                )
                .await?
        }
        Some(traceparent) => {
            client
                .query_one(
                    "-- pglog::stage
                     INSERT INTO staged_log_records (object, action, data, traceparent)
                     VALUES ($1, $2, $3::text::json, $4::text) RETURNING id",
                    &[&object, &action, &data, &traceparent],
                )
                .await?
        }
    };
    Ok(row.get(0))
}

/// Tells a listening streamer that there is something to do. Call it after COMMIT, on a connection with no transaction
/// open: NOTIFY takes a lock over the whole cluster while it commits. It may be sent right behind the statement that
/// commits, without waiting for its answer.
///
/// It does not wait for the disk: a transaction that does nothing else than NOTIFY has written no WAL when it commits, but for
/// one in many thousands, and then Postgres flushes nothing. Nor does it wait long for the lock, which somebody may hold whose
/// commit is stuck. That setting ends with the transaction: what is sent together as text is one.
///
/// # Errors
/// Postgres is away, or the lock is. Nothing is lost: the streamer looks by itself, a little later.
pub async fn hint(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("SET LOCAL lock_timeout = '50ms'; NOTIFY {HINT_CHANNEL}")).await
}
