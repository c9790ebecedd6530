//! The schema, compiled in, so that a program can set up an empty database by itself.

use tokio_postgres::GenericClient;

/// The text of `schema.sql`.
pub const SCHEMA: &str = include_str!("../../schema.sql");

/// Creates what is missing. Does no harm to what is there.
///
/// # Errors
/// Postgres is away, older than 14, or the role may not create tables.
pub async fn apply_schema(client: &impl GenericClient) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(SCHEMA).await
}

/// Tells this session's planner to walk indexes. Every query of this crate wants a few rows at one end of an index, but
/// the tables grow by orders of magnitude between two ANALYZE runs, and a plan made from stale statistics would scan
/// them whole. Call it once on every connection that reads or extends the log.
///
/// # Errors
/// Postgres is away.
pub async fn use_index_plans(client: &impl GenericClient) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off").await
}
