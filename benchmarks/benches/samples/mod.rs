//! What both benchmarks of small parts work on: a thousand records, and the same as Redis answers them.

use common::stream::{EntryId, FieldsRef, xadd};
use pglog::Record;
use redis::Value;

/// Records a batch.
pub const LEN: i64 = 1000;

/// A batch of records.
pub fn records() -> Vec<Record> {
    (1..=LEN)
        .map(|offset| Record {
            offset,
            token: 4_611_686_018_427_387_904,
            object: "ride".to_owned(),
            action: "create".to_owned(),
            data: format!("{{\"id\":{offset},\"distance_mm\":{}}}", 5000 + offset * 7919 % 995_000),
            staged_at_us: 1_764_000_000_000_000 + offset,
        })
        .collect()
}

/// The bytes that append a batch to the stream. Returns how many there are.
pub fn encode(records: &[Record]) -> usize {
    let encode = |record: &Record| {
        let fields = FieldsRef {
            object: &record.object,
            action: &record.action,
            data: &record.data,
            staged_at_us: record.staged_at_us,
            token: record.token,
        };
        xadd("rocket-rides-log", EntryId { offset: record.offset, copy: 0 }, &fields).get_packed_command().len()
    };
    records.iter().map(encode).sum()
}

/// The reply of XREAD with a batch in it.
pub fn reply(records: &[Record]) -> Value {
    let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    let entry = |record: &Record| {
        let (staged_at_us, token) = (record.staged_at_us.to_string(), record.token.to_string());
        let fields = [
            ("object", record.object.as_str()),
            ("action", &record.action),
            ("data", &record.data),
            ("staged_at_us", &staged_at_us),
            ("token", &token),
        ];
        let fields = fields.iter().flat_map(|(name, value)| [text(name), text(value)]).collect();
        Value::Array(vec![text(&format!("{}-0", record.offset)), Value::Array(fields)])
    };
    let entries = Value::Array(records.iter().map(entry).collect());
    Value::Array(vec![Value::Array(vec![text("rocket-rides-log"), entries])])
}
