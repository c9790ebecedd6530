//! SQL's own count and sum of the rides beside each consumer's, from one snapshot. They are read once for all who ask, because
//! the count reads the whole table of rides. A consumer's total is the sum over its partitions in that snapshot (P3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::paced::{Paced, Source};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::database::Database;
use crate::error::Error;

/// The response of `GET /totals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// `SELECT count(*), sum(distance_mm) FROM rides`.
    pub sql: Sum,
    /// The number of records that have an offset: the highest offset, or the sum of each partition's highest offset.
    pub head: i64,
    /// Each partition, if the client asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionHead>,
    /// Every registered consumer, by name; each of its partitions, if the client asks for them. The reaper's baseline is none
    /// of them.
    pub consumers: Vec<ConsumerTotal>,
    /// Whether every consumer folds all partitions, is at the head of each, and has SQL's count and sum. There is at least one.
    pub converged: bool,
}

/// The end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionHead {
    /// Its number.
    pub partition: i32,
    /// Its highest offset; 0 if it is empty.
    pub head: i64,
}

/// The latest totals.
pub(crate) type PacedTotals = Paced<Arc<Reading>, Error>;

/// Reads the totals when a client asks for them, and not all the time.
pub(crate) struct Reader(pub Database);

impl Source for Reader {
    type Value = Arc<Reading>;
    type Error = Error;

    async fn work_out(&mut self) -> Result<Arc<Reading>, Error> {
        read(&self.0).await.map(Arc::new)
    }
}

/// All figures of one snapshot.
#[derive(Debug)]
pub(crate) struct Reading {
    sql: Sum,
    /// In the order of their numbers.
    partitions: Vec<PartitionHead>,
    /// One per consumer and partition, ordered by both.
    rows: Vec<ConsumerTotal>,
}

/// A count and a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sum {
    /// Rides.
    pub ride_count: i64,
    /// Whole millimetres.
    pub total_distance_mm: i64,
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsumerTotal {
    /// Its name.
    pub name: String,
    /// The partition that it folds. Absent from a sum over several partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// The partitions in which it is not registered: their rides are missing from its total.
    #[serde(default)]
    pub missing_partitions: Vec<i32>,
    /// Rides folded.
    pub ride_count: i64,
    /// Whole millimetres.
    pub total_distance_mm: i64,
    /// Equal for all consumers at the same offsets. 16 hexadecimal digits. Of several partitions it is the wrapping sum.
    pub digest: String,
    /// Its checkpoint, or the sum of its checkpoints: the number of records that it has passed.
    pub last_offset: i64,
    /// Records between the checkpoint and the head, in all its partitions.
    pub lag: i64,
    /// Entries skipped because their offset had been passed.
    pub duplicate_count: i64,
    /// Records read from Postgres because the stream lacked them.
    pub healed_count: i64,
    /// Stream entries that are not of this log.
    pub rejected_count: i64,
    /// Injected crashes survived.
    pub crash_count: i64,
    /// Records that can never apply and that no operator has dropped.
    pub dead_letter_count: i64,
}

impl Reading {
    /// One total per consumer.
    pub fn summed(&self) -> Totals {
        let of_consumers = self.rows.chunk_by(|one, next| one.name == next.name);
        let consumers = of_consumers.filter_map(|rows| self.sum(rows)).collect();
        Totals { partitions: Vec::new(), consumers, ..self.by_partition() }
    }

    /// Each consumer's total per partition.
    pub fn by_partition(&self) -> Totals {
        let of_consumers = self.rows.chunk_by(|one, next| one.name == next.name);
        let mut sums = of_consumers.filter_map(|rows| self.sum(rows)).peekable();
        let is_there = |sum: ConsumerTotal| {
            sum.missing_partitions.is_empty()
                && (sum.ride_count, sum.total_distance_mm) == (self.sql.ride_count, self.sql.total_distance_mm)
        };
        Totals {
            sql: self.sql,
            head: self.partitions.iter().map(|partition| partition.head).sum(),
            partitions: self.partitions.clone(),
            converged: sums.peek().is_some() && sums.all(is_there) && self.rows.iter().all(|row| row.lag == 0),
            consumers: self.rows.clone(),
        }
    }

    /// The sum of one consumer's rows. A sum beyond 64 bits is the largest number of 64 bits, as SQL's own.
    fn sum(&self, rows: &[ConsumerTotal]) -> Option<ConsumerTotal> {
        let (first, others) = rows.split_first()?;
        let mut sum = first.clone();
        let mut digest = digest_of(first);
        for row in others {
            for (total, part) in [
                (&mut sum.ride_count, row.ride_count),
                (&mut sum.total_distance_mm, row.total_distance_mm),
                (&mut sum.last_offset, row.last_offset),
                (&mut sum.lag, row.lag),
                (&mut sum.duplicate_count, row.duplicate_count),
                (&mut sum.healed_count, row.healed_count),
                (&mut sum.rejected_count, row.rejected_count),
                (&mut sum.crash_count, row.crash_count),
                (&mut sum.dead_letter_count, row.dead_letter_count),
            ] {
                *total = total.saturating_add(part);
            }
            digest = digest.wrapping_add(digest_of(row));
        }
        sum.digest = shown(digest);
        sum.partition = first.partition.filter(|_| self.partitions.len() == 1);
        Some(sum)
    }
}

/// 16 hexadecimal digits.
fn shown(digest: u64) -> String {
    format!("{digest:016x}")
}

fn digest_of(row: &ConsumerTotal) -> u64 {
    u64::from_str_radix(&row.digest, 16).unwrap_or(0)
}

async fn read(database: &Database) -> Result<Reading, Error> {
    // One statement has one snapshot. SUM of bigint is numeric; a sum beyond 64 bits, where consumers reject rides too, is
    // shown as the largest number of 64 bits.
    let rows = database
        .read_old(
            "-- api::totals::show
             WITH sql AS (
                 SELECT count(*) AS sql_ride_count,
                        least(COALESCE(sum(distance_mm), 0), 9223372036854775807)::bigint AS sql_total_distance_mm
                 FROM rides
             ), heads AS (
                 SELECT head_of, COALESCE((SELECT first_offset + record_count - 1 FROM log_batches WHERE partition = head_of
                                           ORDER BY first_offset DESC LIMIT 1), 0) AS head
                 FROM generate_series(0, log_partitions() - 1) AS numbers (head_of)
             )
             SELECT sql.*, heads.*, checkpoints.*, head - last_offset AS lag, ride_count, total_distance_mm, digest,
                    (SELECT count(*) FROM dead_letters
                     WHERE dead_letters.name = checkpoints.name AND dead_letters.partition = checkpoints.partition
                       AND dropped_at IS NULL
                    ) AS dead_letter_count
             -- Consumers of other folds have no such state, and no total.
             FROM sql CROSS JOIN heads
                  LEFT JOIN (checkpoints JOIN consumer_states USING (name, partition)) ON partition = head_of AND NOT is_baseline
             ORDER BY name, head_of",
            vec![],
        )
        .await?;
    let first = rows.first().ok_or(Error::Internal)?;
    let sql = Sum { ride_count: first.get("sql_ride_count"), total_distance_mm: first.get("sql_total_distance_mm") };
    let heads: BTreeMap<i32, i64> = rows.iter().map(|row| (row.get("head_of"), row.get("head"))).collect();
    let consumers = rows.iter().filter_map(|row| {
        Some(ConsumerTotal {
            name: row.get::<_, Option<String>>("name")?,
            partition: row.get("partition"),
            missing_partitions: Vec::new(),
            ride_count: row.get("ride_count"),
            total_distance_mm: row.get("total_distance_mm"),
            digest: shown(row.get::<_, i64>("digest") as u64),
            last_offset: row.get("last_offset"),
            lag: row.get("lag"),
            duplicate_count: row.get("duplicate_count"),
            healed_count: row.get("healed_count"),
            rejected_count: row.get("rejected_count"),
            crash_count: row.get("crash_count"),
            dead_letter_count: row.get("dead_letter_count"),
        })
    });
    let mut consumers: Vec<ConsumerTotal> = consumers.collect();
    for of_one in consumers.chunk_by_mut(|one, next| one.name == next.name) {
        let folded: BTreeSet<i32> = of_one.iter().filter_map(|row| row.partition).collect();
        let missing: Vec<i32> = heads.keys().copied().filter(|partition| !folded.contains(partition)).collect();
        of_one.iter_mut().for_each(|row| row.missing_partitions.clone_from(&missing));
    }
    let partitions = heads.into_iter().map(|(partition, head)| PartitionHead { partition, head }).collect();
    Ok(Reading { sql, partitions, rows: consumers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, partition: i32, ride_count: i64, lag: i64, digest: &str) -> ConsumerTotal {
        ConsumerTotal {
            name: name.to_owned(),
            partition: Some(partition),
            missing_partitions: Vec::new(),
            ride_count,
            total_distance_mm: ride_count * 1000,
            digest: digest.to_owned(),
            last_offset: 10 - lag,
            lag,
            duplicate_count: 1,
            healed_count: 2,
            rejected_count: 3,
            crash_count: 4,
            dead_letter_count: 5,
        }
    }

    fn reading(partition_count: i32, rows: Vec<ConsumerTotal>) -> Reading {
        let partitions = (0..partition_count).map(|partition| PartitionHead { partition, head: 10 }).collect();
        Reading { sql: Sum { ride_count: 7, total_distance_mm: 7000 }, partitions, rows }
    }

    #[test]
    fn a_consumer_of_one_partition_is_shown_as_it_is() {
        let only = row("a", 0, 7, 0, "ffffffffffffffff");
        let totals = reading(1, vec![only.clone()]).summed();
        assert_eq!((totals.head, totals.converged, totals.consumers), (10, true, vec![only]));
        assert!(!reading(1, vec![]).summed().converged, "there is no consumer");
    }

    #[test]
    fn a_total_is_the_sum_over_the_partitions_and_the_digest_wraps() {
        let rows = vec![row("a", 0, 3, 0, "ffffffffffffffff"), row("a", 1, 4, 0, "0000000000000003")];
        let totals = reading(2, rows.clone()).summed();
        let sum = ConsumerTotal {
            partition: None,
            total_distance_mm: 7000,
            last_offset: 20,
            duplicate_count: 2,
            healed_count: 4,
            rejected_count: 6,
            crash_count: 8,
            dead_letter_count: 10,
            ..row("a", 0, 7, 0, "0000000000000002")
        };
        assert_eq!((totals.head, totals.converged, totals.consumers), (20, true, vec![sum]));
        let totals = reading(2, rows.clone()).by_partition();
        assert_eq!((totals.head, totals.converged, totals.consumers, totals.partitions.len()), (20, true, rows, 2));
    }

    /// Two lags of opposite sign, after Postgres was put back, must not cancel.
    #[test]
    fn a_consumer_that_lags_or_lacks_a_partition_has_not_converged() {
        for second in [row("a", 1, 4, 1, "00"), ConsumerTotal { lag: -1, ..row("a", 1, 4, 1, "00") }] {
            let first = row("a", 0, 3, -second.lag, "00");
            assert!(!reading(2, vec![first, second]).summed().converged);
        }
        let partial = ConsumerTotal { missing_partitions: vec![1], ..row("b", 0, 7, 0, "00") };
        assert!(!reading(2, vec![partial]).summed().converged);
    }
}
