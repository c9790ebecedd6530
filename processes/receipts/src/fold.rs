//! Noting the receipts that are to be delivered.

use anyhow::{Context, Result};
use consumer::{Fold, Rejection};
use deadpool_postgres::Transaction;
use pglog::{Partition, Record, Session};
use serde::Deserialize;

/// Collects receipts; the state is table `receipts`.
#[derive(Debug, Default)]
pub(crate) struct ReceiptsFold {
    ride_ids: Vec<i64>,
    offsets: Vec<i64>,
    data: Vec<String>,
}

/// The fields that the payload of `receipt create` must have.
#[derive(Deserialize)]
#[expect(dead_code, reason = "only the presence of each field is checked")]
struct Receipt {
    ride_id: i64,
    user_id: i64,
    amount: i64,
    currency: String,
}

impl Fold for ReceiptsFold {
    fn takes(&self, object: &str, action: &str) -> bool {
        object == "receipt" && action == "create"
    }

    async fn load(&mut self, _: &Transaction<'_>, _: &str, _: Partition) -> Result<()> {
        *self = Self::default();
        Ok(())
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        let receipt: Receipt =
            serde_json::from_str(record.data).map_err(|error| Rejection(format!("data is not a receipt: {error}")))?;
        self.ride_ids.push(receipt.ride_id);
        self.offsets.push(record.offset);
        self.data.push(record.data.to_owned());
        Ok(())
    }

    async fn save(&mut self, tx: &impl Session, _: &str, _: Partition) -> Result<()> {
        let noted = std::mem::take(self);
        tx.execute(
            "-- receipts::save
             INSERT INTO receipts (ride_id, record_offset, data)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[]::json[])
             -- If a second record was staged for the ride, one receipt is enough.
             ON CONFLICT DO NOTHING",
            &[&noted.ride_ids, &noted.offsets, &noted.data],
        )
        .await
        .context("noting receipts")?;
        Ok(())
    }

    /// All consumers share one table, so there is nothing to copy. A new consumer goes on from the checkpoint of the first.
    async fn copy(&self, _: &Transaction<'_>, _: &str, _: &str, _: Partition) -> Result<bool> {
        Ok(true)
    }

    fn summary(&self) -> String {
        "receipts noted".to_owned()
    }
}
