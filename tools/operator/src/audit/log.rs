//! The log of a partition: checks that its batches are complete and follow each other, and that each consumer's state is
//! the sum of the records.

use anyhow::{Context, Result};
use consumer::{DistanceFold, StateFold};

const BASELINE: &str = "baseline";
use deadpool_postgres::Transaction;
use pglog::{Page, Partition, Reader, Record};

use super::entries::Comparison;
use super::ledger::{Audited, Ledger};
use super::letters::Letters;
use super::report::{PartitionLine, Report};
use super::rides::Logged;

/// Records per query.
const PAGE_LEN_MAX: i64 = 1000;

/// Audits one partition. Returns the rides of all its records, staged records included; `None` if they are not known.
pub(super) async fn audit(
    tx: &Transaction<'_>,
    partition: Partition,
    mut stream: Option<&mut Comparison>,
    report: &mut Report,
) -> Result<Option<Logged>> {
    let head = pglog::head(tx, partition).await.context("asking for the head")?;
    let first_retained = pglog::first_retained(tx, partition).await.context("asking what is retained")?;
    check_batches(tx, partition, first_retained, head, report).await?;
    let consumers = consumers(tx, partition).await?;
    let base = base(&consumers, partition, first_retained, head, report);
    if let Some((base_offset, _)) = base {
        check_places(&consumers, base_offset, first_retained, head, report);
    }
    let mut letters = Letters::open(tx, partition).await?;
    let (base_offset, base_state) = base.unwrap_or((first_retained - 1, DistanceFold::default()));
    let mut ledger = Ledger::new(base_offset, base_state, consumers);
    while base.is_some()
        && let Some(at_offset) = letters.next_up_to(tx, base_offset).await?
    {
        ledger.letters_in_baseline(&at_offset, report);
    }
    ledger.begin();
    if let Some(stream) = &mut stream {
        stream.count_reaped(first_retained, report).await;
    }
    let mut pages = Pages { tx, partition, reader: None, next_offset: first_retained };
    let mut record_count = 0;
    while let Some(page) = pages.next(head, report).await? {
        record_count += page.len() as u64;
        let records: Vec<Record<'_>> = page.records().collect();
        if let Some(stream) = &mut stream {
            stream.compare(&records, report).await;
        }
        for record in records.iter().filter(|record| base.is_some() && record.offset > base_offset) {
            let at_offset = letters.next_up_to(tx, record.offset).await?.unwrap_or_default();
            ledger.record(record, &at_offset, report);
        }
    }
    let is_complete = pages.next_offset > head && base.is_some();
    while is_complete && let Some(at_offset) = letters.next_up_to(tx, i64::MAX).await? {
        ledger.letters_beyond_head(&at_offset, report);
    }
    let log = ledger.log();
    if base.is_some() {
        ledger.compare(partition, report);
    }
    let staged = staged(tx, partition).await?;
    report.partitions.push(PartitionLine {
        partition: partition.number(),
        first_retained,
        head,
        record_count,
        staged_count: staged.record_count,
    });
    Ok(is_complete.then_some(Logged {
        ride_count: log.ride_count + staged.fold.ride_count,
        total_distance_mm: log.total_distance_mm + staged.fold.total_distance_mm,
        is_whole: first_retained == 1,
    }))
}

/// All consumers of the partition, the baseline among them, in the order of their checkpoints.
async fn consumers(tx: &Transaction<'_>, partition: Partition) -> Result<Vec<Audited>> {
    let rows = tx
        .query(
            "-- operator::audit::consumers
             SELECT name, is_baseline, last_offset, total_distance_mm, ride_count, digest
             FROM checkpoints LEFT JOIN consumer_states USING (name, partition)
             WHERE partition = $1 ORDER BY last_offset, name",
            &[&partition],
        )
        .await
        .context("loading checkpoints and states")?;
    let state = |row: &tokio_postgres::Row| {
        Some(DistanceFold {
            total_distance_mm: row.get::<_, Option<i64>>("total_distance_mm")?,
            ride_count: row.get("ride_count"),
            digest: row.get("digest"),
        })
    };
    Ok(rows
        .iter()
        .map(|row| Audited::new(row.get("name"), row.get("is_baseline"), row.get("last_offset"), state(row)))
        .collect())
}

/// Offset and state of the baseline, from which the audit counts. `None` if the baseline lacks deleted records, or is
/// wrong: that is reported.
fn base(
    consumers: &[Audited],
    partition: Partition,
    first_retained: i64,
    head: i64,
    report: &mut Report,
) -> Option<(i64, DistanceFold)> {
    let baseline = consumers.iter().find(|consumer| consumer.is_baseline);
    let (offset, state) = baseline.map_or((0, None), |baseline| (baseline.last_offset, baseline.state));
    if offset > head {
        report.differ(format!("{BASELINE}: it is at offset {offset}, and the head of partition {partition} is {head}"));
    } else if offset < first_retained - 1 {
        report.differ(format!(
            "{BASELINE}: it is at offset {offset}, and the records of partition {partition} before {first_retained} are \
             reaped: no consumer can be compared"
        ));
    } else if offset > 0 && state.is_none() {
        report.differ(format!("{BASELINE}: it is at offset {offset} of partition {partition} and has no state"));
    } else {
        return Some((offset, state.unwrap_or_default()));
    }
    None
}

/// Reports consumers whose checkpoints lie beyond the head, behind the baseline, or in the reaped part of the log.
fn check_places(consumers: &[Audited], base_offset: i64, first_retained: i64, head: i64, report: &mut Report) {
    for Audited { name, last_offset, state, .. } in consumers {
        if *last_offset > head {
            report.differ(format!("{name}: it is at offset {last_offset}, ahead of the head, {head}"));
        } else if state.is_some() && *last_offset < base_offset {
            report.differ(format!("{name}: it is at offset {last_offset}, behind the baseline, {base_offset}"));
        } else if *last_offset < first_retained - 1 {
            report.differ(format!(
                "{name}: it is at offset {last_offset}, and the records before {first_retained} are reaped"
            ));
        }
    }
}

/// Reports gaps between batches, and a number of rows that is not the sum of the batches' record counts.
async fn check_batches(
    tx: &Transaction<'_>,
    partition: Partition,
    first_retained: i64,
    head: i64,
    report: &mut Report,
) -> Result<()> {
    let rows = tx
        .query(
            "-- operator::audit::check_batches
             SELECT first_offset, expected FROM (
                 SELECT first_offset, reaped_at,
                        lag(first_offset + record_count) OVER (ORDER BY first_offset) AS expected
                 FROM log_batches WHERE partition = $1
             ) AS batch
             WHERE first_offset <> COALESCE(expected, CASE WHEN reaped_at IS NULL THEN 1 ELSE first_offset END)
             ORDER BY first_offset LIMIT 10",
            &[&partition],
        )
        .await
        .context("looking at batches")?;
    for row in &rows {
        let (first_offset, expected): (i64, Option<i64>) = (row.get(0), row.get(1));
        report.differ(format!(
            "log, partition {partition}: a batch begins at offset {first_offset}, and should begin at {}",
            expected.unwrap_or(1)
        ));
    }
    let row = tx
        .query_one(
            "-- operator::audit::check_batches
             WITH edges AS MATERIALIZED (
                 SELECT COALESCE((SELECT snapshot FROM log_batches WHERE partition = $1 AND first_offset < $2
                                  ORDER BY first_offset DESC LIMIT 1), '1:1:'::pg_snapshot) AS before,
                        COALESCE((SELECT snapshot FROM log_batches WHERE partition = $1
                                  ORDER BY first_offset DESC LIMIT 1), '1:1:'::pg_snapshot) AS last
             )
             SELECT count(*) FROM staged_log_records, edges
             WHERE partition = $1 AND pg_visible_in_snapshot(transaction_id, last)
               AND NOT pg_visible_in_snapshot(transaction_id, before)",
            &[&partition, &first_retained],
        )
        .await
        .context("counting records")?;
    let (found_count, expected_count): (i64, i64) = (row.get(0), head + 1 - first_retained);
    if found_count != expected_count {
        report.differ(format!(
            "log, partition {partition}: the batches from offset {first_retained} on have {expected_count} records, and \
             {found_count} rows are there"
        ));
    }
    Ok(())
}

/// Pages of retained records. If the log cannot be read, that is reported as a difference, and the pages end.
struct Pages<'a, 't> {
    tx: &'a Transaction<'t>,
    partition: Partition,
    reader: Option<Reader>,
    next_offset: i64,
}

impl Pages<'_, '_> {
    async fn next(&mut self, head: i64, report: &mut Report) -> Result<Option<Page>> {
        if self.next_offset > head {
            return Ok(None);
        }
        match self.read().await {
            Ok(page) => {
                self.next_offset += page.len() as i64;
                Ok((!page.is_empty()).then_some(page))
            }
            Err(pglog::Error::Postgres(error)) => Err(error).context("reading the log"),
            Err(error) => {
                report.differ(format!("log, partition {}: {error}", self.partition));
                Ok(None)
            }
        }
    }

    async fn read(&mut self) -> Result<Page, pglog::Error> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::at(self.tx, self.partition, self.next_offset).await?,
        };
        self.reader.insert(reader).next_page(self.tx, PAGE_LEN_MAX).await
    }
}

/// The staged records that are visible and have no offset yet: their number, and their rides.
struct Staged {
    record_count: i64,
    fold: DistanceFold,
}

async fn staged(tx: &Transaction<'_>, partition: Partition) -> Result<Staged> {
    let (mut staged, mut after_id) = (Staged { record_count: 0, fold: DistanceFold::default() }, i64::MIN);
    loop {
        let rows = tx
            .query(
                "-- operator::audit::staged
                 WITH edge AS MATERIALIZED (
                     SELECT COALESCE((SELECT snapshot FROM log_batches WHERE partition = $1
                                      ORDER BY first_offset DESC LIMIT 1), '1:1:'::pg_snapshot) AS last
                 )
                 SELECT id, object, action, data::text FROM staged_log_records
                 WHERE partition = $1 AND id > $2
                   AND NOT pg_visible_in_snapshot(transaction_id, (SELECT last FROM edge))
                 ORDER BY partition, id LIMIT $3",
                &[&partition, &after_id, &PAGE_LEN_MAX],
            )
            .await
            .context("reading staged records")?;
        for row in &rows {
            after_id = row.get("id");
            staged.record_count += 1;
            let (object, action) = (row.get("object"), row.get("action"));
            let data = row.get("data");
            let record = Record { offset: 0, token: 0, object, action, data, staged_at_us: 0, traceparent: None };
            if staged.fold.takes(record.object, record.action) {
                // A record that the fold rejects will become a dead letter, and its ride does not count.
                let _ = staged.fold.apply(&record);
            }
        }
        if (rows.len() as i64) < PAGE_LEN_MAX {
            return Ok(staged);
        }
    }
}
