//! Reads the history, the archive of every record. A page holds records without a gap: Postgres counts the rows that it has
//! found, and a page ends where the count and the offsets differ.

use std::time::SystemTime;

use jiff::Timestamp;
use pglog::{Partition, PartitionCount, UnknownPartition};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_postgres::Row;
use tracing::error;
use utoipa::ToSchema;

use crate::database::Database;
use crate::error::Error;

/// The most offsets that one page passes. A rare filter would otherwise read the whole history in one request.
const SCAN_LEN_MAX: i64 = 10_000;

/// A page ends with the record whose `data` reaches this sum, in bytes. A record has at most 64 KiB.
const DATA_LEN_MAX: i64 = 256 * 1024;

/// The first and the last time that are shown, in microseconds since 1970: RFC 3339 has the years 0 to 9999.
const SHOWN_MICROS: [i64; 2] = [-62_167_219_200_000_000, 253_402_207_200_000_000];

/// The records that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    pub partition: i32,
    /// `None`: records of every object.
    pub object: Option<String>,
    /// `None`: records of every action.
    pub action: Option<String>,
}

impl Selection {
    /// The last offset that a page of at most `limit` records may pass.
    fn scan_end(&self, after: i64, limit: i64) -> i64 {
        let has_filter = self.object.is_some() || self.action.is_some();
        after.saturating_add(if has_filter { SCAN_LEN_MAX } else { limit })
    }
}

/// A page of the history: `{"records":[…],"next_after":42}`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HistoryPage {
    /// In the order of their offsets.
    pub records: Vec<ArchivedRecord>,
    /// The last offset that the page has passed: the next page's `after`. It grows even if no record matched the filters.
    /// If it equals this page's `after`, the history has no later records yet.
    pub next_after: i64,
}

/// A record of the log, as it was staged.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ArchivedRecord {
    partition: i32,
    /// Its place in the partition. The first is 1.
    pub offset: i64,
    /// The kind of thing that the record is about: `ride`.
    object: String,
    /// The event that the record tells: `create`.
    action: String,
    /// Any JSON, as it was staged.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// When the record was staged, on the clock of Postgres, to the microsecond. A time that this format cannot show, such as
    /// `infinity`, is the nearest one in the years 0 to 9999.
    #[schema(format = DateTime)]
    staged_at: String,
    /// The trace of the request that led to the record.
    traceparent: Option<String>,
}

impl ArchivedRecord {
    fn from_row(partition: i32, row: &Row) -> anyhow::Result<Self> {
        Ok(Self {
            partition,
            offset: row.try_get("record_offset")?,
            object: row.try_get("object")?,
            action: row.try_get("action")?,
            data: RawValue::from_string(row.try_get("data")?)?,
            staged_at: shown(row.try_get("staged_at")?),
            traceparent: row.try_get("traceparent")?,
        })
    }
}

/// The records that follow the offset `after`, at most `limit`. Fewer do not mean that the history ends: see
/// [`HistoryPage::next_after`].
///
/// # Errors
/// [`Error::RecordsMissing`] if the history lacks the record `after + 1` and has later ones, and
/// [`Error::PartitionUnknown`]. The others are those of [`Database::read`].
pub(crate) async fn read(
    database: &Database,
    selection: &Selection,
    after: i64,
    limit: i64,
) -> Result<HistoryPage, Error> {
    let rows = database
        .read_old(
            // `scanned` counts rows and matches from 1. The last row before a hole or before the end of the scan is kept
            // even if it does not match, because the next page begins after it. One statement has one snapshot, so a
            // record that is archived meanwhile is never taken for the end of a hole.
            "-- api::history_page::read
             WITH candidates AS (
                 SELECT *, object = COALESCE($4, object) AND action = COALESCE($5, action) AS matches
                 FROM history WHERE partition = $1 AND record_offset > $2 AND record_offset <= $3
             ), scanned AS (
                 SELECT *, row_number() OVER offsets AS row_count,
                        count(*) FILTER (WHERE matches) OVER offsets AS match_count,
                        lead(record_offset) OVER offsets IS DISTINCT FROM record_offset + 1 AS is_last
                 FROM candidates WINDOW offsets AS (ORDER BY record_offset)
             ), unbroken AS (
                 SELECT record_offset, matches, object, action, data::text, staged_at, traceparent FROM scanned
                 WHERE record_offset = $2 + row_count AND match_count <= $6 AND (matches OR is_last)
             ), measured AS (
                 SELECT *, sum(octet_length(data)) FILTER (WHERE matches) OVER (
                            ORDER BY record_offset ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS len_before
                 FROM unbroken
             )
             SELECT log_partitions() AS partition_count, following.record_offset AS following_offset, page.*
             FROM (SELECT) AS always
             LEFT JOIN (SELECT record_offset FROM history WHERE partition = $1 AND record_offset > $2
                        ORDER BY record_offset LIMIT 1) AS following ON true
             LEFT JOIN (SELECT * FROM measured WHERE COALESCE(len_before, 0) < $7) AS page ON true
             ORDER BY page.record_offset",
            vec![
                Box::new(selection.partition),
                Box::new(after),
                Box::new(selection.scan_end(after, limit)),
                Box::new(selection.object.clone()),
                Box::new(selection.action.clone()),
                Box::new(limit),
                Box::new(DATA_LEN_MAX),
            ],
        )
        .await?;
    ensure_known(selection.partition, rows.first())?;
    if let Some(hole) = rows.first().and_then(|row| hole(after, row.get("following_offset"))) {
        return Err(hole);
    }
    let last_offset: Option<i64> = rows.last().and_then(|row| row.get("record_offset"));
    let matches = rows.iter().filter(|row| row.get::<_, Option<bool>>("matches") == Some(true));
    let records: anyhow::Result<_> = matches.map(|row| ArchivedRecord::from_row(selection.partition, row)).collect();
    let records = records.map_err(|error| {
        error!(after, error = format!("{error:#}"), "a record of the history cannot be shown");
        Error::Internal
    })?;
    Ok(HistoryPage { records, next_after: last_offset.unwrap_or(after) })
}

/// The offset of the newest record of the history, or 0 if it is empty.
///
/// # Errors
/// [`Error::PartitionUnknown`], and those of [`Database::read`].
pub(crate) async fn newest_offset(database: &Database, partition: i32) -> Result<i64, Error> {
    let rows = database
        .read_old(
            "-- api::history_page::newest_offset
             SELECT log_partitions() AS partition_count, COALESCE(
                 (SELECT record_offset FROM history WHERE partition = $1 ORDER BY record_offset DESC LIMIT 1), 0) AS newest",
            vec![Box::new(partition)],
        )
        .await?;
    ensure_known(partition, rows.first())?;
    Ok(rows.first().map_or(0, |row| row.get("newest")))
}

/// Fails if the log lacks the partition.
fn ensure_known(number: i32, row: Option<&Row>) -> Result<(), Error> {
    let count = row.and_then(|row| PartitionCount::new(row.get("partition_count"))).ok_or(Error::Internal)?;
    let partition = Partition::new(number).ok_or(Error::Internal)?;
    if count.has(partition) { Ok(()) } else { Err(Error::PartitionUnknown(UnknownPartition { partition, count })) }
}

/// A time of Postgres as RFC 3339 writes it. One record with a time that cannot be written so must not hide its page.
fn shown(time: SystemTime) -> String {
    let [first, last] = SHOWN_MICROS;
    let time = Timestamp::from_microsecond(pglog::micros_since_1970(time).clamp(first, last)).unwrap_or_default();
    format!("{time:.6}")
}

/// The hole that begins after the offset `after`, where `following` is the next offset that the history has.
fn hole(after: i64, following: Option<i64>) -> Option<Error> {
    let following = following.filter(|&following| following > after + 1)?;
    Some(Error::RecordsMissing { first: after + 1, last: following - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_ends_before_the_next_record() {
        assert_eq!(hole(0, Some(1)), None);
        assert_eq!(hole(7, Some(8)), None);
        assert_eq!(hole(7, None), None, "the end of the history");
        assert_eq!(hole(0, Some(2)), Some(Error::RecordsMissing { first: 1, last: 1 }));
        assert_eq!(hole(7, Some(20)), Some(Error::RecordsMissing { first: 8, last: 19 }));
    }

    #[test]
    fn every_time_is_shown_in_four_digits_of_the_year() {
        let since_1970 = |seconds: i64| pglog::time_of_micros(seconds * 1_000_000);
        assert_eq!(shown(since_1970(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(shown(since_1970(-1)), "1969-12-31T23:59:59.000000Z");
        assert_eq!(shown(pglog::time_of_micros(i64::MAX)), "9999-12-30T22:00:00.000000Z");
        assert_eq!(shown(pglog::time_of_micros(i64::MIN)), "0000-01-01T00:00:00.000000Z");
    }

    #[test]
    fn a_page_passes_a_bounded_number_of_offsets() {
        let all = Selection { partition: 0, object: None, action: None };
        assert_eq!(all.scan_end(7, 100), 107);
        for filtered in [
            Selection { object: Some("ride".to_owned()), ..all.clone() },
            Selection { action: Some("create".to_owned()), ..all },
        ] {
            assert_eq!(filtered.scan_end(7, 100), 10_007);
            assert_eq!(filtered.scan_end(i64::MAX - 1, 100), i64::MAX);
        }
    }
}
