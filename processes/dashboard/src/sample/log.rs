//! The log as Postgres has it: its partitions, and the sums over them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Serialize, Serializer};

/// The log, read in one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct LogState {
    /// The partition that this page shows; `None`: several.
    pub partition: Option<i32>,
    /// The records that have an offset, in all shown partitions.
    pub head: i64,
    /// Whether there are records without an offset.
    pub is_anything_staged: bool,
    /// Whether a streamer leads each partition.
    pub is_led: bool,
    /// Whether there are more consumers than these.
    pub is_cut_off: bool,
    /// Whether all partitions of the log are shown.
    pub is_whole: bool,
    /// By name. Each figure is the sum over the partitions.
    pub consumers: Vec<Consumer>,
    /// By number.
    pub partitions: Vec<PartitionState>,
}

/// One partition.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct PartitionState {
    pub partition: i32,
    pub head: i64,
    /// The token of the head's batch.
    #[serde(skip)]
    pub head_token: i64,
    /// Whether there are records without an offset.
    pub is_anything_staged: bool,
    /// Whether a streamer leads.
    pub is_led: bool,
    /// The longest lag of a consumer, in records.
    pub lag_records: i64,
    /// The consumer that has it; `None`: all are at the head.
    pub slowest: Option<String>,
    /// Whether two consumers at one offset have different states (I9).
    pub differs: bool,
    /// By name.
    #[serde(skip)]
    pub consumers: Vec<Consumer>,
}

/// A consumer, as its last commits left it: in one partition, or summed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Consumer {
    pub name: String,
    /// The fold that derives its state. `None`: it has not told yet.
    pub fold: Option<String>,
    pub last_offset: i64,
    pub lag_records: i64,
    /// How long the first record that it has not folded has waited.
    pub lag_ms: f64,
    /// `None`: it folds something other than the total distance.
    pub total: Option<Total>,
    /// Whether its total equals the recount. `None`: they are not of the same head.
    pub agrees: Option<bool>,
    /// The shown partitions in which it is not registered.
    pub missing_partitions: Vec<i32>,
    pub duplicate_count: i64,
    pub healed_count: i64,
    pub rejected_count: i64,
    pub crash_count: i64,
    pub dead_letter_count: i64,
}

/// The state that a consumer has folded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Total {
    pub ride_count: i64,
    #[serde(serialize_with = "super::as_text")]
    pub distance_mm: i64,
    /// Shown as 16 hexadecimal digits. Of several partitions it is the wrapping sum.
    #[serde(serialize_with = "as_digits")]
    pub digest: i64,
}

impl LogState {
    /// The sums over partitions, which are ordered by number. `is_whole` tells whether they are all.
    pub fn of(partitions: Vec<PartitionState>, is_whole: bool) -> Self {
        let mut consumers: BTreeMap<&str, Consumer> = BTreeMap::new();
        for row in partitions.iter().flat_map(|partition| &partition.consumers) {
            consumers.entry(&row.name).and_modify(|sum| sum.add(row)).or_insert_with(|| row.clone());
        }
        for (name, consumer) in &mut consumers {
            let lacks = |partition: &&PartitionState| !partition.consumers.iter().any(|row| row.name == *name);
            consumer.missing_partitions =
                partitions.iter().filter(lacks).map(|partition| partition.partition).collect();
        }
        Self {
            partition: if let [only] = &partitions[..] { Some(only.partition) } else { None },
            head: partitions.iter().map(|partition| partition.head).sum(),
            is_anything_staged: partitions.iter().any(|partition| partition.is_anything_staged),
            is_led: partitions.iter().all(|partition| partition.is_led),
            is_cut_off: false,
            is_whole,
            consumers: consumers.into_values().collect(),
            partitions,
        }
    }

    /// Keeps the first `count` consumers.
    pub fn cut_off(&mut self, count: usize) {
        if self.consumers.len() > count {
            self.is_cut_off = true;
            self.consumers.truncate(count);
        }
    }
}

impl PartitionState {
    /// Adds the consumers, ordered by name, and compares them.
    pub fn with(self, consumers: Vec<Consumer>) -> Self {
        let slowest = consumers.iter().filter(|row| row.lag_records > 0).max_by_key(|row| row.lag_records);
        let (lag_records, slowest) = slowest.map_or((0, None), |row| (row.lag_records, Some(row.name.clone())));
        let totals = consumers.iter().filter_map(|row| Some((row.last_offset, row.total?)));
        let states: BTreeSet<(i64, i64)> = totals.map(|(offset, total)| (offset, total.digest)).collect();
        let offsets: BTreeSet<i64> = states.iter().map(|(offset, _)| *offset).collect();
        Self { lag_records, slowest, differs: states.len() > offsets.len(), consumers, ..self }
    }
}

impl Consumer {
    /// Adds the figures of another partition.
    fn add(&mut self, row: &Self) {
        self.last_offset += row.last_offset;
        self.lag_records += row.lag_records;
        self.lag_ms = self.lag_ms.max(row.lag_ms);
        self.total = self.total.zip(row.total).map(|(sum, total)| sum.plus(total));
        self.duplicate_count += row.duplicate_count;
        self.healed_count += row.healed_count;
        self.rejected_count += row.rejected_count;
        self.crash_count += row.crash_count;
        self.dead_letter_count += row.dead_letter_count;
    }
}

impl Total {
    fn plus(self, other: Self) -> Self {
        Self {
            ride_count: self.ride_count.saturating_add(other.ride_count),
            distance_mm: self.distance_mm.saturating_add(other.distance_mm),
            digest: self.digest.wrapping_add(other.digest),
        }
    }
}

fn as_digits<S: Serializer>(digest: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{digest:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, last_offset: i64, lag_records: i64, digest: i64) -> Consumer {
        let total = Some(Total { ride_count: 1, distance_mm: 5, digest });
        Consumer {
            name: name.to_owned(),
            last_offset,
            lag_records,
            lag_ms: lag_records as f64,
            total,
            ..Consumer::default()
        }
    }

    fn part(partition: i32, consumers: Vec<Consumer>) -> PartitionState {
        PartitionState { partition, head: 9, is_led: true, ..PartitionState::default() }.with(consumers)
    }

    #[test]
    fn figures_of_a_consumer_are_sums_over_the_partitions() {
        let parts = vec![part(0, vec![row("a", 9, 0, i64::MAX), row("b", 9, 0, 7)]), part(3, vec![row("a", 7, 2, 1)])];
        let log = LogState::of(parts, true);
        assert_eq!((log.head, log.partition, log.is_led), (18, None, true));
        let [a, b] = &log.consumers[..] else { panic!("{:?}", log.consumers) };
        assert_eq!((a.last_offset, a.lag_records, a.lag_ms), (16, 2, 2.0));
        assert_eq!(a.total, Some(Total { ride_count: 2, distance_mm: 10, digest: i64::MIN }));
        assert_eq!((&a.missing_partitions[..], &b.missing_partitions[..]), (&[][..], &[3][..]));
        let digests = serde_json::to_value(a).unwrap()["total"]["digest"].clone();
        assert_eq!(digests, "8000000000000000");
    }

    #[test]
    fn consumers_at_one_offset_of_a_partition_must_have_one_digest() {
        assert!(!part(0, vec![row("a", 9, 0, 1), row("b", 9, 0, 1), row("c", 8, 1, 2)]).differs);
        assert!(part(0, vec![row("a", 8, 1, 1), row("b", 8, 1, 2), row("c", 9, 0, 3)]).differs);
        let slow = part(0, vec![row("a", 8, 1, 1), row("b", 7, 2, 2)]);
        assert_eq!((slow.lag_records, slow.slowest.as_deref()), (2, Some("b")));
        assert_eq!(part(0, vec![row("a", 9, 0, 1)]).slowest, None);
    }
}
