//! Records as Postgres sends them. A page keeps the rows that it received, and its records borrow from them.

use std::time::{Duration, SystemTime};

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type, accepts};

use crate::partition::Partition;

/// A record at its offset. It borrows from the page that it was read with, from Postgres or from the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// The partition that it is in.
    pub partition: Partition,
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
    /// When it was staged, in microseconds since 1970 on the clock of Postgres. A time that does not fit, such as `infinity`, is
    /// the nearest one that fits: see [`time_of_micros`].
    pub staged_at_us: i64,
    /// The trace in which it was written, a W3C `traceparent`. `None`: no trace.
    pub traceparent: Option<&'a str>,
}

/// Consecutive records of the log.
#[derive(Debug, Default)]
pub struct Page {
    partition: Partition,
    first_offset: i64,
    /// The token of all records. `None`: each row has its own.
    token: Option<i64>,
    rows: Vec<Row>,
}

impl Page {
    /// A page of `rows` of one batch, which begin with the columns `id, object, action, data, staged_at, traceparent`. In a
    /// page of the history the first column is the offset.
    pub(crate) fn new(partition: Partition, first_offset: i64, token: i64, rows: Vec<Row>) -> Self {
        Self { partition, first_offset, token: Some(token), rows }
    }

    /// A page of rows of several batches. They have the column `token`, too.
    pub(crate) fn of_batches(partition: Partition, first_offset: i64, rows: Vec<Row>) -> Self {
        Self { partition, first_offset, token: None, rows }
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
            partition: self.partition,
            offset: self.first_offset + index as i64,
            token: self.token.unwrap_or_else(|| row.get("token")),
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

/// The first and the last time, in microseconds since 1970, that fit into a `timestamptz` and into 64 bits: 24 November 4714
/// before Christ, and a day in the year 294247 that lies before the end of Postgres's calendar.
const MICROS_MIN: i64 = -210_866_803_200_000_000;
const MICROS_MAX: i64 = i64::MAX;

/// A time of Postgres in microseconds since 1970. Postgres also stores `infinity` and `-infinity`, and times later than 64 bits
/// can say: such a time is the nearest that fits, because one row with a strange time must not stop a reader.
pub fn micros_since_1970(time: SystemTime) -> i64 {
    let micros = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(MICROS_MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(MICROS_MIN, |micros| -micros),
    };
    micros.max(MICROS_MIN)
}

/// The time that Postgres stores for these microseconds since 1970. Every number gives a time that Postgres accepts.
pub fn time_of_micros(micros: i64) -> SystemTime {
    let micros = micros.max(MICROS_MIN);
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::ToSql;
    use tokio_postgres::types::private::BytesMut;

    use super::*;

    /// Microseconds between 1970 and 2000, from which Postgres counts.
    const TO_2000: i64 = 946_684_800_000_000;

    /// The last time of Postgres's calendar, in its own microseconds.
    const LAST: i64 = 9_223_371_331_199_999_999;

    fn sent_by_postgres(micros_since_2000: i64) -> SystemTime {
        SystemTime::from_sql(&Type::TIMESTAMPTZ, &micros_since_2000.to_be_bytes()).unwrap()
    }

    fn sent_to_postgres(time: SystemTime) -> i64 {
        let mut raw = BytesMut::new();
        time.to_sql(&Type::TIMESTAMPTZ, &mut raw).unwrap();
        i64::from_be_bytes(raw[..].try_into().unwrap())
    }

    #[test]
    fn every_time_that_postgres_stores_is_read_and_the_nearest_that_fits_is_written() {
        let first = MICROS_MIN - TO_2000;
        for (stored, read, written) in [
            (0, TO_2000, 0),
            (-TO_2000 - 1, -1, -TO_2000 - 1),
            (first, MICROS_MIN, first),
            (i64::MIN, MICROS_MIN, first),
            (i64::MAX - TO_2000, i64::MAX, i64::MAX - TO_2000),
            (LAST, i64::MAX, i64::MAX - TO_2000),
            (i64::MAX, i64::MAX, i64::MAX - TO_2000),
        ] {
            let micros = micros_since_1970(sent_by_postgres(stored));
            assert_eq!(micros, read, "{stored}");
            assert_eq!(sent_to_postgres(time_of_micros(micros)), written, "{stored}");
        }
        assert_eq!(sent_to_postgres(time_of_micros(i64::MIN)), first, "a number that no time has");
    }
}
