//! The current state of a thing: the newest committed unit about it.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;

/// The committed document with the highest number. A retry of an older unit does not win over a newer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// The number of its unit.
    pub uow: i64,
    /// The document, a JSON text.
    pub data: String,
}

/// Reads the current document about `subject` out of the table of a last resource, whose name was checked when it was declared.
/// `None`: there is none. A unit that is not committed is never shown, because its row is written with the verdict.
///
/// # Errors
/// Postgres is away, or the table is missing.
pub async fn current(client: &Client, table: &str, subject: &str) -> Result<Option<Current>> {
    let query = format!(
        "-- container::current\nSELECT uow, data::text FROM {table} WHERE subject = $1 ORDER BY uow DESC LIMIT 1"
    );
    let row = client.query_opt(&query, &[&subject]).await.context("reading the current document")?;
    Ok(row.map(|row| Current { uow: row.get("uow"), data: row.get("data") }))
}
