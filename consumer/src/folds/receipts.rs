//! Receipts for booked rides, noted in table `receipts`. The process `receipts` delivers them.

use pglog::Record;
use serde::Deserialize;

use crate::fold::{CheckpointKey, FoldId, Rejection, RowFold, RowsOf, Statement, read_object};

/// Receipts to be noted, as columns. All consumers share one table: a receipt is sent once, whichever consumer notes it.
#[derive(Debug, Default)]
pub struct ReceiptsFold {
    ride_ids: Vec<i64>,
    offsets: Vec<i64>,
    data: Vec<String>,
}

/// The fields that the payload of `receipt create` must have.
#[derive(Deserialize)]
struct Receipt {
    ride_id: i64,
    #[expect(dead_code, reason = "only its presence is checked: the user may be unknown for now")]
    user_id: i64,
    /// In the smallest unit of the currency, which has three letters.
    amount: i64,
    currency: String,
}

impl RowFold for ReceiptsFold {
    const ID: FoldId = FoldId { name: "receipts", version: 1 };

    const ROWS: RowsOf = RowsOf::All;

    const OWNS_UNNAMED: bool = true;

    fn takes(&self, object: &str, action: &str) -> bool {
        object == "receipt" && action == "create"
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        let receipt: Receipt = read_object(record, "a receipt")?;
        if receipt.amount < 0
            || receipt.currency.len() != 3
            || !receipt.currency.bytes().all(|c| c.is_ascii_alphabetic())
        {
            return Err(Rejection("data is not a receipt: no amount of money, such as 2000 and \"usd\"".to_owned()));
        }
        self.ride_ids.push(receipt.ride_id);
        self.offsets.push(record.offset);
        self.data.push(record.data.to_owned());
        Ok(())
    }

    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        let Self { ride_ids, offsets, data } = std::mem::take(self);
        let inserting = Statement::new(
            "-- consumer::receipts::insert
             INSERT INTO receipts (ride_id, partition, record_offset, data)
             SELECT ride_id, $1, record_offset, data
             FROM unnest($2::bigint[], $3::bigint[], $4::text[]::json[]) AS noted (ride_id, record_offset, data)
             -- If a second record was staged for the ride, one receipt is enough.
             ON CONFLICT DO NOTHING",
        );
        vec![inserting.with(key.partition).with(ride_ids).with(offsets).with(data)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_noted_and_other_payloads_rejected() {
        let mut fold = ReceiptsFold::default();
        let record = |data| Record {
            partition: pglog::Partition::FIRST,
            offset: 3,
            token: 1,
            object: "receipt",
            action: "create",
            data,
            staged_at_us: 0,
            traceparent: None,
        };
        fold.apply(&record(r#"{"ride_id":7,"user_id":1,"amount":500,"currency":"usd"}"#)).unwrap();
        for bad in [
            r#"{"ride_id":8}"#,
            r#"[8,1,500,"usd"]"#,
            r#"{"ride_id":8,"user_id":1,"amount":1e400000,"currency":"usd"}"#,
            r#"{"ride_id":8,"user_id":1,"amount":-5,"currency":"usd"}"#,
            r#"{"ride_id":8,"user_id":1,"amount":500,"currency":"u\u0000d"}"#,
            r#"{"ride_id":8,"user_id":1,"amount":500,"currency":""}"#,
        ] {
            assert!(fold.apply(&record(bad)).unwrap_err().0.starts_with("data is not a receipt"), "{bad}");
        }
        assert_eq!((fold.ride_ids.as_slice(), fold.offsets.as_slice()), (&[7][..], &[3][..]));
        assert!(fold.takes("receipt", "create") && !fold.takes("ride", "create"));
    }
}
