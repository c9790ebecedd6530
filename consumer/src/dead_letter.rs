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

/// Copies the dead letters of one consumer to another that has none.
pub(crate) async fn copy(tx: &Transaction<'_>, source: &str, name: &str, partition: i32) -> Result<()> {
    tx.execute(
        "-- consumer::dead_letter::copy
         INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason, created_at, dropped_at)
         SELECT $2, partition, record_offset, object, action, data, reason, created_at, dropped_at
         FROM dead_letters WHERE name = $1 AND partition = $3",
        &[&source, &name, &partition],
    )
    .await
    .context("copying the dead letters")?;
    Ok(())
}
