//! Whether the consumers have converged. Nobody's word is taken for it: the rides are counted again.

use crate::sample::{LogState, Recount, Total, Verdict};

/// Judges the consumers' states by a recount. The two are of different snapshots, and need not be of one: what a consumer
/// has at an offset never changes, nor do the rides whose records come before it (I4, I9). So they can be compared whenever
/// both are of the same head, and no ride was without an offset when the rides were counted.
pub(crate) fn judge(log: &LogState, recount: Option<&Recount>) -> Verdict {
    let totals: Vec<&Total> = log.consumers.iter().filter_map(|consumer| consumer.total.as_ref()).collect();
    let [first, ..] = totals[..] else { return Verdict::Nobody };
    if log.is_anything_staged || log.consumers.iter().any(|consumer| consumer.last_offset != log.head) {
        return Verdict::Behind;
    }
    let Some(recount) = recount.filter(|recount| recount.is_complete && recount.head == log.head) else {
        return Verdict::AtHead;
    };
    let agrees = |total: &&Total| {
        (total.ride_count, total.distance_mm) == (recount.ride_count, recount.distance_mm)
            && total.digest == first.digest
    };
    match totals.iter().all(agrees) {
        false => Verdict::Differs,
        // Of those that are not looked at nothing is known.
        true if log.is_cut_off => Verdict::AtHead,
        true => Verdict::Converged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Consumer;

    fn consumer(name: &str, last_offset: i64, distance_mm: i64, digest: &str) -> Consumer {
        Consumer {
            name: name.to_owned(),
            last_offset,
            lag_records: 9 - last_offset,
            lag_ms: 0.0,
            total: Some(Total { ride_count: 9, distance_mm, digest: digest.to_owned() }),
            duplicate_count: 0,
            healed_count: 0,
            rejected_count: 0,
            crash_count: 0,
            dead_letter_count: 0,
        }
    }

    fn log(consumers: &[Consumer]) -> LogState {
        LogState { head: 9, is_anything_staged: false, is_led: true, is_cut_off: false, consumers: consumers.to_vec() }
    }

    fn recount(head: i64, is_complete: bool) -> Recount {
        Recount { at_ms: 0, took_ms: 1.0, head, is_complete, ride_count: 9, distance_mm: 5000 }
    }

    #[test]
    fn consumers_have_converged_when_a_recount_at_their_head_agrees() {
        let both = log(&[consumer("a", 9, 5000, "x"), consumer("b", 9, 5000, "x")]);
        assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Converged);
        assert_eq!(judge(&both, Some(&recount(8, true))), Verdict::AtHead, "the recount is of another head");
        assert_eq!(judge(&both, Some(&recount(9, false))), Verdict::AtHead, "it counted rides without an offset");
        assert_eq!(judge(&both, None), Verdict::AtHead);
    }

    #[test]
    fn who_has_another_total_or_other_rides_differs() {
        for other in [consumer("b", 9, 5001, "x"), consumer("b", 9, 5000, "y")] {
            let both = log(&[consumer("a", 9, 5000, "x"), other]);
            assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Differs);
        }
    }

    #[test]
    fn nothing_is_said_while_somebody_is_behind_or_nobody_is_there() {
        let late = log(&[consumer("a", 9, 5000, "x"), consumer("b", 8, 5000, "x")]);
        assert_eq!(judge(&late, Some(&recount(9, true))), Verdict::Behind);
        let staged = LogState { is_anything_staged: true, ..log(&[consumer("a", 9, 5000, "x")]) };
        assert_eq!(judge(&staged, Some(&recount(9, true))), Verdict::Behind);
        assert_eq!(judge(&log(&[]), Some(&recount(9, true))), Verdict::Nobody);
    }

    #[test]
    fn nobody_has_converged_while_some_are_not_looked_at() {
        let some = LogState { is_cut_off: true, ..log(&[consumer("a", 9, 5000, "x")]) };
        assert_eq!(judge(&some, Some(&recount(9, true))), Verdict::AtHead);
    }

    #[test]
    fn a_consumer_of_another_fold_has_to_be_at_the_head_too() {
        let receipts = Consumer { total: None, ..consumer("receipts", 8, 0, "") };
        let both = log(&[consumer("a", 9, 5000, "x"), receipts]);
        assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Behind);
    }
}
