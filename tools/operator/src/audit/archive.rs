//! The history, compared with the log. In the part of the log that is retained, each archived record must equal the record of
//! the log. In the reaped part only the offsets can be checked: inside of a range none is missing.
//!
//! A hole before the oldest retained record is allowed where the history says so: it began late, was not written for a while,
//! or a part of it is detached. Records that are retained and that a consumer with the fold `history` has passed may not be
//! missing at all.

use anyhow::{Context, Result};
use consumer::{HistoryFold, RowFold};
use deadpool_postgres::Transaction;
use pglog::{Partition, Record, micros_since_1970};
use tokio_postgres::Row;

use super::extent::Extent;
use super::registered::Registered;
use super::report::{HistoryLine, Report};

/// Offsets per query.
const PAGE_LEN_MAX: i64 = 10_000;

/// Holes that are kept one by one. Beyond that, two holes and the records between them count as one hole.
const HOLES_LEN_MAX: usize = 1000;

/// The history of a partition, and the result of its comparison so far.
pub(super) struct Archive {
    partition: Partition,
    extent: Extent,
    /// The highest checkpoint of a consumer that writes the history; 0 if there is none.
    passed: i64,
    /// All archived records below this offset have been looked at.
    next_offset: i64,
    /// The first and last offsets of the reaped records that it lacks, in order.
    holes: Vec<(i64, i64)>,
    /// `None`: there is no history.
    line: Option<HistoryLine>,
    is_equal: bool,
}

/// Whether a consumer writes the history.
pub(super) fn is_archivist(consumer: &Registered) -> bool {
    consumer.has_fold(HistoryFold::ID)
}

impl Archive {
    /// Looks at the archived records that are reaped.
    pub async fn open(
        tx: &Transaction<'_>,
        partition: Partition,
        extent: Extent,
        consumers: &[Registered],
        report: &mut Report,
    ) -> Result<Self> {
        let archivists: Vec<&Registered> = consumers.iter().filter(|consumer| is_archivist(consumer)).collect();
        let passed = archivists.iter().map(|consumer| consumer.last_offset.min(extent.head)).max().unwrap_or(0);
        let mut archive =
            Self { partition, extent, passed, next_offset: 1, holes: Vec::new(), line: None, is_equal: true };
        if archivists.is_empty() && row_from(tx, partition, 0).await?.is_none() {
            archive.keep_hole(1, extent.first_retained - 1);
            return Ok(archive);
        }
        archive.line = Some(HistoryLine { partition: partition.number(), ..HistoryLine::default() });
        archive.read_reaped(tx, report).await?;
        Ok(archive)
    }

    /// The first hole among the reaped records from `first_offset` to `last_offset`, if there is one.
    pub fn lacks_any(&self, first_offset: i64, last_offset: i64) -> Option<(i64, i64)> {
        self.holes.iter().copied().find(|(first, last)| *first <= last_offset && *last >= first_offset)
    }

    /// Compares the archived records with these retained records, which are consecutive.
    pub async fn compare(&mut self, tx: &Transaction<'_>, records: &[Record<'_>], report: &mut Report) -> Result<()> {
        let (Some(first), Some(last), true) = (records.first(), records.last(), self.line.is_some()) else {
            return Ok(());
        };
        let rows = tx
            .query(
                "-- operator::audit::archived
                 SELECT record_offset, begins_range, object, action, data::text AS data, staged_at, traceparent
                 FROM history WHERE partition = $1 AND record_offset >= $2 AND record_offset <= $3
                 ORDER BY record_offset LIMIT $4",
                &[&self.partition, &first.offset, &last.offset, &(records.len() as i64)],
            )
            .await
            .context("reading the history")?;
        for row in &rows {
            self.take(tx, row, report).await?;
            let record = &records[(row.get::<_, i64>("record_offset") - first.offset) as usize];
            let differing = differing(row, record);
            if !differing.is_empty() {
                self.differ(
                    format!("the record at offset {} has another {}", record.offset, differing.join(", ")),
                    report,
                );
            }
        }
        Ok(())
    }

    /// Ends the comparison. `is_complete`: all retained records were compared. Returns whether the history is as it should be;
    /// `None` if that is not known.
    pub async fn finish(
        mut self,
        tx: &Transaction<'_>,
        is_complete: bool,
        report: &mut Report,
    ) -> Result<Option<bool>> {
        if self.line.is_none() {
            return Ok(None);
        }
        if is_complete && self.next_offset <= self.passed {
            self.gap(tx, self.passed, None, report).await?;
        }
        if let Some(beyond) = row_from(tx, self.partition, self.extent.head + 1).await? {
            let offset: i64 = beyond.get("record_offset");
            self.differ(format!("it has a record at offset {offset}, beyond the head, {}", self.extent.head), report);
        }
        report.histories.extend(self.line.map(|line| HistoryLine { hole_count: self.holes.len() as u64, ..line }));
        Ok((is_complete || !self.is_equal).then_some(self.is_equal))
    }

    async fn read_reaped(&mut self, tx: &Transaction<'_>, report: &mut Report) -> Result<()> {
        let mut after = 0_i64;
        loop {
            let rows = tx
                .query(
                    "-- operator::audit::read_reaped
                     SELECT record_offset, begins_range FROM history
                     WHERE partition = $1 AND record_offset > $2 AND record_offset < $3 ORDER BY record_offset LIMIT $4",
                    &[&self.partition, &after, &self.extent.first_retained, &PAGE_LEN_MAX],
                )
                .await
                .context("reading the history")?;
            for row in &rows {
                after = row.get("record_offset");
                self.take(tx, row, report).await?;
            }
            if (rows.len() as i64) < PAGE_LEN_MAX {
                break;
            }
        }
        if self.next_offset < self.extent.first_retained {
            let follower = row_from(tx, self.partition, self.extent.first_retained).await?;
            self.gap(tx, self.extent.first_retained - 1, follower.as_ref(), report).await?;
        }
        Ok(())
    }

    /// Takes the next archived record.
    async fn take(&mut self, tx: &Transaction<'_>, row: &Row, report: &mut Report) -> Result<()> {
        let offset: i64 = row.get("record_offset");
        if offset > self.next_offset {
            self.gap(tx, offset - 1, Some(row), report).await?;
        }
        self.next_offset = offset + 1;
        if let Some(line) = &mut self.line {
            line.record_count += 1;
            line.last_offset = offset;
        }
        Ok(())
    }

    /// Judges a hole that ends at `last_offset`. `follower` is the archived record that comes next.
    async fn gap(
        &mut self,
        tx: &Transaction<'_>,
        last_offset: i64,
        follower: Option<&Row>,
        report: &mut Report,
    ) -> Result<()> {
        let first_offset = std::mem::replace(&mut self.next_offset, last_offset + 1);
        let first_retained = self.extent.first_retained;
        self.keep_hole(first_offset, last_offset.min(first_retained - 1));
        let (first_passed, last_passed) = (first_offset.max(first_retained), last_offset.min(self.passed));
        if first_passed <= last_passed {
            let lacking = range(first_passed, last_passed);
            if letter_count(tx, self.partition, first_passed, last_passed).await? > last_passed - first_passed {
                report.note(format!(
                    "history, partition {}: {lacking} cannot be archived: see dead-letters",
                    self.partition
                ));
            } else {
                self.differ(format!("it lacks {lacking}, and its consumer has passed offset {last_passed}"), report);
            }
        }
        let last_reaped = last_offset.min(first_retained - 1);
        if follower.is_some_and(|row| !row.get::<_, bool>("begins_range")) && !is_detached_before(tx, follower).await? {
            let told_count = (last_passed - first_passed + 1).max(0);
            if told_count < last_offset - first_offset + 1 {
                self.differ(format!("it lacks {} inside of a range", range(first_offset, last_offset)), report);
            }
        } else if first_offset <= last_reaped {
            report.note(format!(
                "history, partition {}: it lacks {}: it began later, was not written for a while, or a part is detached",
                self.partition,
                range(first_offset, last_reaped)
            ));
        }
        Ok(())
    }

    fn keep_hole(&mut self, first_offset: i64, last_offset: i64) {
        if first_offset > last_offset {
            return;
        }
        let is_full = self.holes.len() >= HOLES_LEN_MAX;
        match self.holes.last_mut() {
            Some(hole) if is_full || hole.1 + 1 == first_offset => hole.1 = last_offset,
            _ => self.holes.push((first_offset, last_offset)),
        }
    }

    fn differ(&mut self, what: String, report: &mut Report) {
        self.is_equal = false;
        report.differ(format!("history, partition {}: {what}", self.partition));
    }
}

/// The names of the fields in which the archived record differs from the record of the log.
fn differing(row: &Row, record: &Record<'_>) -> Vec<&'static str> {
    [
        ("object", row.get::<_, &str>("object") != record.object),
        ("action", row.get::<_, &str>("action") != record.action),
        ("data", row.get::<_, &str>("data") != record.data),
        ("staged_at", micros_since_1970(row.get("staged_at")) != record.staged_at_us),
        ("traceparent", row.get::<_, Option<&str>>("traceparent") != record.traceparent),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}

/// The archived record at this offset, or the first one after it.
async fn row_from(tx: &Transaction<'_>, partition: Partition, offset: i64) -> Result<Option<Row>> {
    tx.query_opt(
        "-- operator::audit::row_from
         SELECT record_offset, begins_range FROM history
         WHERE partition = $1 AND record_offset >= $2 ORDER BY record_offset LIMIT 1",
        &[&partition, &offset],
    )
    .await
    .context("looking at the history")
}

/// The number of records in this range that a consumer of the history has put with its dead letters: Postgres refused their rows.
async fn letter_count(tx: &Transaction<'_>, partition: Partition, first_offset: i64, last_offset: i64) -> Result<i64> {
    let row = tx
        .query_one(
            "-- operator::audit::letter_count
             SELECT count(DISTINCT record_offset) FROM dead_letters JOIN checkpoints USING (name, partition)
             WHERE partition = $1 AND fold = $4 AND record_offset BETWEEN $2 AND $3",
            &[&partition, &first_offset, &last_offset, &HistoryFold::ID.name],
        )
        .await
        .context("looking for dead letters of the history")?;
    Ok(row.get(0))
}

/// Whether the record is the first of a part of the history, and the part before is detached.
async fn is_detached_before(tx: &Transaction<'_>, follower: Option<&Row>) -> Result<bool> {
    let Some(follower) = follower else { return Ok(false) };
    let row = tx
        .query_one(
            "-- operator::audit::is_detached_before
             SELECT $1 % history_part_len() = 0 AND NOT EXISTS (
                 SELECT FROM pg_inherits JOIN pg_class ON oid = inhrelid
                 WHERE inhparent = 'history'::regclass AND relname = 'history_' || $1 / history_part_len() - 1)",
            &[&follower.get::<_, i64>("record_offset")],
        )
        .await
        .context("looking for the parts of the history")?;
    Ok(row.get(0))
}

/// The records of a range, in words.
pub(super) fn range(first_offset: i64, last_offset: i64) -> String {
    if first_offset == last_offset {
        format!("the record at offset {first_offset}")
    } else {
        format!("the records at the offsets {first_offset} to {last_offset}")
    }
}
