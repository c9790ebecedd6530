//! Records as Postgres sends them: a page is kept as it came, and its records point into it.

use std::time::SystemTime;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type, accepts};

/// A record at its offset, lying in the page that it was read with: Postgres's, or one of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the partition: 1, 2, 3, …
    pub offset: i64,
    /// The token of its batch.
    pub token: i64,
    /// What it is about.
    pub object: &'a str,
    /// What happened.
    pub action: &'a str,
    /// The payload, byte for byte as it was staged.
    pub data: &'a str,
    /// When it was staged, in microseconds since 1970 on Postgres's clock.
    pub staged_at_us: i64,
    /// The trace in which it was written, if there was one: W3C's `traceparent`.
    pub traceparent: Option<&'a str>,
}

/// Records that follow each other, all of one batch.
#[derive(Debug, Default)]
pub struct Page {
    first_offset: i64,
    token: i64,
    rows: Vec<Row>,
}

impl Page {
    /// Of rows that begin with the columns `id, object, action, data, staged_at, traceparent`.
    pub(crate) fn new(first_offset: i64, token: i64, rows: Vec<Row>) -> Self {
        Self { first_offset, token, rows }
    }

    /// How many records.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether the log had no more to offer.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The offset of its first record, 0 if it is empty.
    pub fn first_offset(&self) -> i64 {
        self.first_offset
    }

    /// Its records, in offset order.
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        self.rows.iter().enumerate().map(|(index, row)| Record {
            offset: self.first_offset + index as i64,
            token: self.token,
            object: row.get(1),
            action: row.get(2),
            data: row.get::<_, JsonText>(3).0,
            staged_at_us: micros_since_1970(row.get(4)),
            traceparent: row.get(5),
        })
    }

    pub(crate) fn last_id(&self) -> Option<i64> {
        self.rows.last().map(|row| row.get(0))
    }
}

/// The bytes of a `json` column. A cast to `text` would say the same, and have Postgres copy each of them twice.
struct JsonText<'a>(&'a str);

impl<'a> FromSql<'a> for JsonText<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(std::str::from_utf8(raw)?))
    }

    accepts!(JSON);
}

fn micros_since_1970(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
