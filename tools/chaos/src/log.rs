//! The log of one partition as the checker has read it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, PartitionCount, Reader, Record};
use tokio_postgres::Row;

use crate::archive::{Archive, Content};
use crate::history::History;

/// Count and sum of the rides in a log up to an offset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub ride_count: i64,
    pub total_distance_mm: i64,
}

/// The records of a partition, as far as they were read.
pub(crate) struct Log {
    pub partition: Partition,
    /// ` of partition 3` in messages; empty if there is only one.
    pub place: String,
    /// `sums[o]`: the sum of the records 1 … o.
    sums: Vec<Sum>,
    /// `contents[o - 1]`: the record at offset o. It never changes (I2).
    contents: Vec<Content>,
    archive: Archive,
    /// The digest at an offset, and the first consumer that had it.
    digests: BTreeMap<i64, (i64, String)>,
}

impl Log {
    /// The logs of all partitions, before the first record.
    pub fn all(count: PartitionCount) -> Vec<Self> {
        let place =
            |partition| if count == PartitionCount::ONE { String::new() } else { format!(" of partition {partition}") };
        let log = |partition| Self {
            partition,
            place: place(partition),
            sums: vec![Sum::default()],
            contents: Vec::new(),
            archive: Archive::new(partition),
            digests: BTreeMap::new(),
        };
        count.partitions().map(log).collect()
    }

    /// The last offset that was read.
    pub fn head(&self) -> i64 {
        self.sums.len() as i64 - 1
    }

    /// The sum of all records.
    pub fn sum(&self) -> Sum {
        self.sums.last().copied().unwrap_or_default()
    }

    /// Takes the next record, after which the sum is this.
    pub fn push(&mut self, record: &Record<'_>, sum: Sum, history: &History) {
        if record.offset != self.head() + 1 {
            history.violation(&format!("I2: offset {} follows {}{}", record.offset, self.head(), self.place));
        }
        self.sums.push(sum);
        self.contents.push(Content::of(record));
    }

    /// Compares the history with the log, up to the checkpoint of the consumer that writes it.
    pub async fn check_archive(&mut self, client: &Client, passed: i64, history: &History) -> Result<()> {
        self.archive.look(client, passed, &self.contents, history).await
    }

    /// Compares the whole history again, in the next looks.
    pub fn start_over(&mut self) {
        self.archive.start_over();
    }

    /// A consumer must have the log's sum at its checkpoint (I4), and all consumers must have the same digest at an offset (I9).
    pub fn check_state(&mut self, row: &Row, history: &History) {
        let (name, last_offset, place): (String, i64, &str) = (row.get(0), row.get(1), &self.place);
        let (Some(ride_count), Some(total_distance_mm)) = (row.get(2), row.get(3)) else {
            return history.violation(&format!("I4: {name} has no total at offset {last_offset}{place}"));
        };
        let state = Sum { ride_count, total_distance_mm };
        if let Some(expected) = self.sums.get(last_offset as usize).filter(|expected| **expected != state) {
            let text = format!("I4: {name} has {state:?} at offset {last_offset}{place}, and the log has {expected:?}");
            history.violation(&text);
        }
        let digest: i64 = row.get(4);
        let (known, whose) = self.digests.entry(last_offset).or_insert_with(|| (digest, name.clone()));
        if *known != digest {
            let text = format!("I9: at offset {last_offset}{place} {name} has digest {digest}, {whose} {known}");
            history.violation(&text);
        }
    }

    /// Each batch must begin at the end of the batch before it (I2).
    pub async fn check_batches(&self, client: &Client, history: &History) -> Result<()> {
        let row = client
            .query_opt(
                "-- chaos::log::check_batches
                 SELECT first_offset, expected FROM (
                     SELECT first_offset, lag(first_offset + record_count) OVER (ORDER BY first_offset) AS expected
                     FROM log_batches WHERE partition = $1) AS batches
                 WHERE first_offset <> expected LIMIT 1",
                &[&self.partition],
            )
            .await
            .context("reading the batches")?;
        if let Some(row) = row {
            let (first_offset, expected): (i64, i64) = (row.get(0), row.get(1));
            let text = format!("I2: a batch begins at {first_offset} instead of {expected}{}", self.place);
            history.violation(&text);
        }
        Ok(())
    }

    /// Every record that is still in the log must be unchanged since its first read (I2).
    pub async fn compare(&self, client: &Client, history: &History) -> Result<(), pglog::Error> {
        let first_retained = pglog::first_retained(client, self.partition).await?;
        let mut reader = Reader::at(client, self.partition, first_retained).await?;
        loop {
            let page = reader.next_page(client, 1000).await?;
            if page.is_empty() {
                return Ok(());
            }
            for record in page.records() {
                if self.contents.get(record.offset as usize - 1) != Some(&Content::of(&record)) {
                    history.violation(&format!("I2: the record at offset {}{} has changed", record.offset, self.place));
                }
            }
        }
    }
}
