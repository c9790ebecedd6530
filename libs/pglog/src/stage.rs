//! Staging a record. It commits together with the change that it describes, or not at all (I1).

use tokio_postgres::Client;

use crate::session::Session;

/// The channel of the wake-up hint, for a log in the schema `public`. A listener must not rely on it: a hint is lost silently if
/// its connection breaks.
pub const HINT_CHANNEL: &str = "rocket_rides_log";

/// The channel for a log in any schema. It is computed here and not by `log_key`, because every hint computes it. A client
/// with another first schema in its search_path sends hints that the streamer does not hear, and nothing worse.
const CHANNEL_OF_SCHEMA: &str = "CASE current_schema() WHEN 'public' THEN 'rocket_rides_log'
     ELSE 'rocket_rides_log_' || hashtext(current_schema()::text) END";

/// A record to be staged: an object (`account`), an action (`credit`) and a JSON payload, which is kept byte for byte.
///
/// ```
/// let data = r#"{"id":7}"#;
/// let record = pglog::NewRecord { key: "account-7", object: "account", action: "credit", data, ..Default::default() };
/// assert_eq!(record.traceparent, None);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct NewRecord<'a> {
    /// The thing that the record is about. Records with the same key are in the same partition, in order (P1). The number of
    /// partitions decides which one it is: see [`PartitionCount::partition_of`](crate::PartitionCount::partition_of).
    pub key: &'a str,
    /// The kind of thing that the record is about, at most 100 characters.
    pub object: &'a str,
    /// What happened to it, at most 100 characters.
    pub action: &'a str,
    /// The payload: a JSON text of at most 64 KiB.
    pub data: &'a str,
    /// The trace that the record belongs to: a W3C `traceparent` of version 00. `None`: it belongs to no trace.
    pub traceparent: Option<&'a str>,
}

/// Stages a record in the caller's transaction. Returns the id of the row, and not the record's offset: that is decided
/// later.
///
/// Call it last before COMMIT, when the transaction holds its row locks. Then the offsets of records about one row are in
/// the order of their commits.
///
/// ```no_run
/// # async fn f(client: &mut tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
/// let tx = client.transaction().await?;
/// tx.execute("UPDATE accounts SET balance = balance + 5 WHERE id = $1", &[&7_i64]).await?;
/// let data = r#"{"id":7,"amount":5}"#;
/// let record = pglog::NewRecord { key: "account-7", object: "account", action: "credit", data, traceparent: None };
/// pglog::stage(&tx, record).await?;
/// tx.commit().await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// The data is no JSON, the trace is no `traceparent`, or a field is too long. The transaction is aborted: fix the record.
pub async fn stage(client: &impl Session, record: NewRecord<'_>) -> Result<i64, tokio_postgres::Error> {
    let NewRecord { key, object, action, data, traceparent } = record;
    let row = match traceparent {
        // Without naming the column, so that a role that was granted only the other columns can stage.
        None => {
            client
                .query_one(
                    "-- pglog::stage
                     INSERT INTO staged_log_records (partition, object, action, data)
                     VALUES (partition_of($4::text), $1, $2, $3::text::json) RETURNING id",
                    &[&object, &action, &data, &key],
                )
                .await?
        }
        Some(traceparent) => {
            client
                .query_one(
                    "-- pglog::stage
                     INSERT INTO staged_log_records (partition, object, action, data, traceparent)
                     VALUES (partition_of($5::text), $1, $2, $3::text::json, $4::text) RETURNING id",
                    &[&object, &action, &data, &traceparent, &key],
                )
                .await?
        }
    };
    Ok(row.get(0))
}

/// Wakes a streamer that listens. Call it after COMMIT, outside of a transaction: NOTIFY holds a lock of the whole cluster
/// while it commits. The caller may send it without waiting for the response to COMMIT.
///
/// It does not wait for the disk: a transaction that only notifies has almost never written WAL when it commits, and then
/// Postgres flushes nothing. Another session whose commit is stuck may hold the lock, so the wait for it is short. Postgres
/// runs both statements as one transaction, so the shorter limit ends with it.
///
/// # Errors
/// Postgres is away, or another session holds the lock. No record is lost: the streamer looks by itself a little later.
pub async fn hint(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(&format!("SET LOCAL lock_timeout = '50ms'; SELECT pg_notify({CHANNEL_OF_SCHEMA}, '')")).await
}

/// Makes a session hear the hints of this log.
///
/// # Errors
/// Postgres is away.
pub async fn listen(client: &impl Session) -> Result<(), tokio_postgres::Error> {
    let channel = format!("-- pglog::listen\nSELECT quote_ident({CHANNEL_OF_SCHEMA})");
    let channel: String = client.query_one(&channel, &[]).await?.get(0);
    client.batch_execute(&format!("LISTEN {channel}")).await
}
