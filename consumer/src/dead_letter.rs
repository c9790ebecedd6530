//! Dead letters: records that a fold takes and that can never apply.

use anyhow::{Context, Result};
use pglog::Record;
use tokio_postgres::Transaction;
use tracing::warn;

use crate::fold::Rejection;

/// Keeps the record for a human, in the transaction that passes it.
pub(crate) async fn bury(
    tx: &Transaction<'_>,
    name: &str,
    partition: i32,
    record: &Record,
    rejection: &Rejection,
) -> Result<()> {
    warn!(consumer = name, offset = record.offset, reason = rejection.0, "record put with the dead letters");
    tx.execute(
        "-- consumer::bury
         INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[&name, &partition, &record.offset, &record.object, &record.action, &record.data, &rejection.0],
    )
    .await
    .context("keeping a dead letter")?;
    Ok(())
}
