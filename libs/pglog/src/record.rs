//! Records as Postgres sends them. A page keeps the rows that it received, and its records borrow from them.

use std::time::SystemTime;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type, accepts};

/// A record at its offset. It borrows from the page that it was read with, from Postgres or from the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the partition: 1, 2, 3, …
    pub offset: i64,
    /// The token of its batch; 0 if the record was read from the history, which does not keep tokens.
    pub token: i64,
    /// The kind of thing that it is about.
    pub object: &'a str,
    /// What happened to it.
    pub action: &'a str,
    /// The payload, byte for byte as it was staged.
    pub data: &'a str,
    /// When it was staged, in microseconds since 1970 on the clock of Postgres.
    pub staged_at_us: i64,
    /// The trace in which it was written, a W3C `traceparent`. `None`: no trace.
    pub traceparent: Option<&'a str>,
}

/// Consecutive records of one batch, or of the history.
#[derive(Debug, Default)]
pub struct Page {
    first_offset: i64,
    token: i64,
    rows: Vec<Row>,
}

impl Page {
    /// A page of `rows`, which begin with the columns `id, object, action, data, staged_at, traceparent`. In a page of the
    /// history the first column is the offset.
    pub(crate) fn new(first_offset: i64, token: i64, rows: Vec<Row>) -> Self {
        Self { first_offset, token, rows }
    }

    /// The number of its records.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has no records: the reader was at the head of the log.
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

/// The bytes of a `json` column. A cast to `text` in SQL would make Postgres copy each value twice.
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
