//! The schema, compiled in, so that a program can set up an empty database by itself.

use tokio_postgres::GenericClient;

use crate::Error;

/// The text of `schema.sql`.
pub const SCHEMA: &str = include_str!("../../schema.sql");

/// Creates what is missing. Does no harm to what is there.
///
/// # Errors
/// Postgres is away, older than 14, or the role may not create tables.
pub async fn apply_schema(client: &impl GenericClient) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(SCHEMA).await
}

/// Prepares a session that reads or extends the log: the tables must be there, and the planner is told to walk indexes.
///
/// Every query of this crate wants a few rows at one end of an index, but
/// the tables grow by orders of magnitude between two ANALYZE runs, and a plan made from stale statistics would scan
/// them whole. Call it once on every such connection.
///
/// # Errors
/// [`Error::SchemaMissing`] if `schema.sql` was not applied; otherwise Postgres is away.
pub async fn prepare_session(client: &impl GenericClient) -> Result<(), Error> {
    client.batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off").await?;
    let row = client
        .query_one(
            "-- pglog::prepare_session
             SELECT to_regclass('log_batches') IS NOT NULL",
            &[],
        )
        .await?;
    if row.get(0) { Ok(()) } else { Err(Error::SchemaMissing) }
}
