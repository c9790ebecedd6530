//! Whether the consumers have converged. A consumer's own figures do not decide it: SQL counts the rides again.

use crate::sample::{Consumer, LogState, PartitionState, Recount, Total, Verdict};

/// Compares the consumers' states with a recount. The two come from different snapshots. They are comparable if both have the
/// same heads and every ride had an offset when the rides were counted: a consumer's state at an offset never changes, and
/// neither do the rides up to that offset (I4, I9). The heads' tokens tell whether Postgres was put back in between.
pub(crate) fn judge(log: &LogState, recount: Option<&Recount>) -> Verdict {
    let totals: Vec<&Total> = log.consumers.iter().filter_map(|consumer| consumer.total.as_ref()).collect();
    if totals.is_empty() {
        return Verdict::NoConsumer;
    }
    let is_behind =
        |partition: &PartitionState| partition.consumers.iter().any(|row| row.last_offset != partition.head);
    let is_partial = |consumer: &Consumer| !consumer.missing_partitions.is_empty();
    if log.is_anything_staged || log.partitions.iter().any(is_behind) || log.consumers.iter().any(is_partial) {
        return Verdict::Behind;
    }
    let heads = log.partitions.iter().map(|partition| (partition.head, partition.head_token));
    let Some(recount) =
        recount.filter(|recount| log.is_whole && recount.is_complete && heads.eq(recount.heads.iter().copied()))
    else {
        return Verdict::AtHead;
    };
    let agrees = |total: &&Total| is_equal(total, recount);
    if !totals.iter().all(agrees) || log.partitions.iter().any(|partition| partition.differs) {
        Verdict::Differs
    } else if log.is_cut_off {
        // The consumers beyond the limit were not read, so their states are unknown.
        Verdict::AtHead
    } else {
        Verdict::Converged
    }
}

/// Notes for each consumer whether its total equals the recount, if both are of the same heads. Otherwise the total is neither
/// right nor wrong.
pub(crate) fn compare(log: &mut LogState, recount: Option<&Recount>) {
    let Some(recount) = recount.filter(|recount| log.is_whole && recount.is_complete) else { return };
    for consumer in &mut log.consumers {
        let mut parts = log.partitions.iter().zip(&recount.heads);
        let is_there = parts.all(|(partition, (head, _))| {
            partition.consumers.iter().any(|row| row.name == consumer.name && row.last_offset == *head)
        });
        consumer.agrees = consumer.total.filter(|_| is_there).map(|total| is_equal(&total, recount));
    }
}

fn is_equal(total: &Total, recount: &Recount) -> bool {
    (total.ride_count, total.distance_mm) == (recount.ride_count, recount.distance_mm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(name: &str, last_offset: i64, distance_mm: i64, digest: i64) -> Consumer {
        Consumer {
            name: name.to_owned(),
            last_offset,
            lag_records: 9 - last_offset,
            total: Some(Total { ride_count: 9, distance_mm, digest }),
            ..Consumer::default()
        }
    }

    fn part(partition: i32, consumers: &[Consumer]) -> PartitionState {
        let part = PartitionState { partition, head: 9, head_token: 5, is_led: true, ..PartitionState::default() };
        part.with(consumers.to_vec())
    }

    fn log(consumers: &[Consumer]) -> LogState {
        LogState::of(vec![part(0, consumers)], true)
    }

    fn recount(head: i64, is_complete: bool) -> Recount {
        Recount { at_ms: 0, took_ms: 1.0, head, heads: vec![(head, 5)], is_complete, ride_count: 9, distance_mm: 5000 }
    }

    #[test]
    fn consumers_have_converged_when_a_recount_at_their_head_agrees() {
        let both = log(&[consumer("a", 9, 5000, 1), consumer("b", 9, 5000, 1)]);
        assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Converged);
        assert_eq!(judge(&both, Some(&recount(8, true))), Verdict::AtHead, "the recount is of another head");
        let of_another_past = Recount { heads: vec![(9, 4)], ride_count: 8, ..recount(9, true) };
        assert_eq!(judge(&both, Some(&of_another_past)), Verdict::AtHead, "Postgres was put back since");
        assert_eq!(judge(&both, Some(&recount(9, false))), Verdict::AtHead, "it counted rides without an offset");
        assert_eq!(judge(&both, None), Verdict::AtHead);
    }

    #[test]
    fn another_total_or_other_rides_differ() {
        for other in [consumer("b", 9, 5001, 1), consumer("b", 9, 5000, 2)] {
            let both = log(&[consumer("a", 9, 5000, 1), other]);
            assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Differs);
        }
    }

    #[test]
    fn no_total_is_judged_while_a_consumer_is_behind_or_there_is_none() {
        let late = log(&[consumer("a", 9, 5000, 1), consumer("b", 8, 5000, 1)]);
        assert_eq!(judge(&late, Some(&recount(9, true))), Verdict::Behind);
        let staged = LogState { is_anything_staged: true, ..log(&[consumer("a", 9, 5000, 1)]) };
        assert_eq!(judge(&staged, Some(&recount(9, true))), Verdict::Behind);
        assert_eq!(judge(&log(&[]), Some(&recount(9, true))), Verdict::NoConsumer);
    }

    #[test]
    fn consumers_that_were_not_read_keep_the_others_from_converged() {
        let some = LogState { is_cut_off: true, ..log(&[consumer("a", 9, 5000, 1)]) };
        assert_eq!(judge(&some, Some(&recount(9, true))), Verdict::AtHead);
    }

    #[test]
    fn a_consumer_of_another_fold_has_to_be_at_the_head_too() {
        let receipts = Consumer { total: None, ..consumer("receipts", 8, 0, 0) };
        let both = log(&[consumer("a", 9, 5000, 1), receipts]);
        assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Behind);
    }

    /// Half of the rides each, and a digest per partition.
    fn halves(digests: [i64; 4]) -> Vec<PartitionState> {
        let half = |name, digest| Consumer {
            total: Some(Total { ride_count: 4, distance_mm: 2500, digest }),
            ..consumer(name, 9, 0, 0)
        };
        vec![
            part(0, &[half("a", digests[0]), half("b", digests[1])]),
            part(1, &[half("a", digests[2]), half("b", digests[3])]),
        ]
    }

    #[test]
    fn a_sum_over_partitions_is_compared_and_digests_within_each() {
        let both = Recount { heads: vec![(9, 5), (9, 5)], ride_count: 8, ..recount(18, true) };
        let mut log = LogState::of(halves([1, 1, 2, 2]), true);
        assert_eq!(judge(&log, Some(&both)), Verdict::Converged);
        compare(&mut log, Some(&both));
        assert_eq!(log.consumers[0].agrees, Some(true));
        // The sums of the digests are equal, and the partitions' own are not.
        assert_eq!(judge(&LogState::of(halves([1, 2, 2, 1]), true), Some(&both)), Verdict::Differs);
        let other = Recount { heads: vec![(8, 5), (10, 5)], ..both.clone() };
        assert_eq!(
            judge(&LogState::of(halves([1; 4]), true), Some(&other)),
            Verdict::AtHead,
            "the same sum of other heads"
        );
        let mut log = LogState::of(halves([1; 4]), true);
        compare(&mut log, Some(&other));
        assert_eq!(log.consumers[0].agrees, None);
    }

    #[test]
    fn a_part_of_the_log_is_not_compared_and_a_missing_registration_keeps_it_behind() {
        let both = Recount { heads: vec![(9, 5), (9, 5)], ride_count: 8, ..recount(18, true) };
        assert_eq!(judge(&LogState::of(halves([1; 4]), false), Some(&both)), Verdict::AtHead);
        let mut parts = halves([1; 4]);
        parts[1].consumers.pop();
        assert_eq!(judge(&LogState::of(parts, true), Some(&both)), Verdict::Behind);
    }
}
