//! The log of a partition: checks that its batches are complete and follow each other, and hands its records, page by page, to
//! the comparisons with the stream, with the history, and with the states of the consumers.

use anyhow::{Context, Result};
use consumer::{ModelFold, WalletsFold};
use deadpool_postgres::Transaction;
use pglog::{Page, Partition, PartitionCount, Reader, Record};

use super::Origin;
use super::archive::{Archive, is_archivist, range};
use super::distance::{Distance, Logged};
use super::entries::Comparison;
use super::extent::Extent;
use super::registered::{Registered, registered};
use super::report::{ConsumerLine, PartitionLine, Report};

/// Records per query.
const PAGE_LEN_MAX: i64 = 1000;

/// Audits one partition of so many. Returns the rides of all its records, staged records included; `None` if they are not known.
pub(super) async fn audit(
    tx: &Transaction<'_>,
    (partition, count): (Partition, PartitionCount),
    origin: Origin,
    mut stream: Option<&mut Comparison>,
    report: &mut Report,
) -> Result<Option<Logged>> {
    let head = pglog::head(tx, partition).await.context("asking for the head")?;
    let first_retained = pglog::first_retained(tx, partition).await.context("asking what is retained")?;
    let extent = Extent { first_retained, head };
    check_batches(tx, partition, extent, report).await?;
    let consumers = registered(tx, partition).await?;
    let mut archive = Archive::open(tx, partition, extent, &consumers, report).await?;
    check_places(&consumers, extent, &archive, report);
    let listed_count = report.consumers.len();
    let mut distance = Distance::open(tx, partition, extent, (origin, &archive), &consumers, report).await?;
    if let Some(stream) = &mut stream {
        stream.count_reaped(first_retained, report).await;
    }
    let mut pages = Pages { tx, partition, first_retained, reader: None, next_offset: distance.first_offset() };
    let mut record_count = 0;
    while let Some(page) = pages.next(head, report).await? {
        let records: Vec<Record<'_>> = page.records().collect();
        distance.take(tx, &records, report).await?;
        if page.first_offset() >= first_retained {
            record_count += page.len() as u64;
            archive.compare(tx, &records, report).await?;
            if let Some(stream) = &mut stream {
                stream.compare(&records, report).await;
            }
        }
    }
    let is_complete = pages.next_offset > head;
    let is_archive_equal = archive.finish(tx, is_complete, report).await?;
    for consumer in consumers.iter().filter(|consumer| is_archivist(consumer)) {
        report.consumers.push(ConsumerLine { is_equal: is_archive_equal, ..consumer.line(partition) });
    }
    let others = consumers.iter().filter(|consumer| !is_archivist(consumer) && !Distance::is_of(consumer));
    list_others(others, partition, report);
    let (logged, staged_count) = distance.finish(tx, is_complete, count, report).await?;
    report.consumers[listed_count..].sort_by(|a, b| (a.last_offset, &a.name).cmp(&(b.last_offset, &b.name)));
    report.partitions.push(PartitionLine {
        partition: partition.number(),
        first_retained,
        head,
        record_count,
        staged_count,
    });
    Ok(logged)
}

/// Reports consumers whose checkpoints lie beyond the head, or whose next records are gone.
fn check_places(consumers: &[Registered], extent: Extent, archive: &Archive, report: &mut Report) {
    for Registered { name, last_offset, .. } in consumers.iter().filter(|consumer| !consumer.is_baseline) {
        if *last_offset > extent.head {
            report.differ(format!("{name}: it is at offset {last_offset}, ahead of the head, {}", extent.head));
        } else if archive.lacks_any(last_offset + 1, last_offset + 1).is_some() {
            report.differ(format!(
                "{name}: it is at offset {last_offset}, and neither the log nor the history has its next record"
            ));
        }
    }
}

/// Lists the consumers whose folds the audit does not know, and says so.
fn list_others<'a>(others: impl Iterator<Item = &'a Registered>, partition: Partition, report: &mut Report) {
    for consumer in others {
        report.consumers.push(consumer.line(partition));
        report.note(match &consumer.fold {
            _ if consumer.is_elsewhere => {
                format!("{}: not compared: its state is in a database of its own", consumer.name)
            }
            Some(_) if consumer.has_fold(WalletsFold::ID) => {
                format!("{}: its state is the documents in Redis: see the line of wallets in Redis", consumer.name)
            }
            Some((fold, version)) => {
                format!("{}: not compared: the audit does not know its fold, {fold} version {version}", consumer.name)
            }
            None => format!("{}: not compared: it is registered without a fold", consumer.name),
        });
    }
}

/// Reports gaps between batches, and a number of rows that is not the sum of the batches' record counts.
async fn check_batches(
    tx: &Transaction<'_>,
    partition: Partition,
    Extent { first_retained, head }: Extent,
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

/// Pages of records, archived ones before retained ones. If the log cannot be read, that is reported as a difference, and the
/// pages end.
struct Pages<'a, 't> {
    tx: &'a Transaction<'t>,
    partition: Partition,
    first_retained: i64,
    reader: Option<Reader>,
    next_offset: i64,
}

impl Pages<'_, '_> {
    async fn next(&mut self, head: i64, report: &mut Report) -> Result<Option<Page>> {
        if self.next_offset > head {
            return Ok(None);
        }
        match self.read().await {
            Ok(page) if page.is_empty() && self.next_offset < self.first_retained => {
                let lacking = range(self.next_offset, self.next_offset);
                report.differ(format!("history, partition {}: {lacking} is missing", self.partition));
                Ok(None)
            }
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
        let archived_count = self.first_retained - self.next_offset;
        if archived_count > 0 {
            let len_max = archived_count.min(PAGE_LEN_MAX);
            return pglog::history_page(self.tx, self.partition, self.next_offset, len_max).await;
        }
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::at(self.tx, self.partition, self.next_offset).await?,
        };
        let reader = self.reader.insert(reader);
        loop {
            let page = reader.next_page(self.tx, PAGE_LEN_MAX).await?;
            if !page.is_empty() || !reader.is_searching() {
                return Ok(page);
            }
        }
    }
}
