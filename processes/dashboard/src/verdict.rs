//! Whether the consumers have converged. A consumer's own figures do not decide it: SQL counts the rides again.

use crate::sample::{LogState, Recount, Total, Verdict};

/// Compares the consumers' states with a recount. The two come from different snapshots. They are comparable if both have the
/// same head and every ride had an offset when the rides were counted: a consumer's state at an offset never changes, and
/// neither do the rides up to that offset (I4, I9). The head's token tells whether Postgres was put back in between.
pub(crate) fn judge(log: &LogState, recount: Option<&Recount>) -> Verdict {
    let totals: Vec<&Total> = log.consumers.iter().filter_map(|consumer| consumer.total.as_ref()).collect();
    let [first, ..] = totals[..] else { return Verdict::NoConsumer };
    if log.is_anything_staged || log.consumers.iter().any(|consumer| consumer.last_offset != log.head) {
        return Verdict::Behind;
    }
    let Some(recount) = recount
        .filter(|recount| recount.is_complete && (recount.head, recount.head_token) == (log.head, log.head_token))
    else {
        return Verdict::AtHead;
    };
    let agrees = |total: &&Total| {
        (total.ride_count, total.distance_mm) == (recount.ride_count, recount.distance_mm)
            && total.digest == first.digest
    };
    if !totals.iter().all(agrees) {
        Verdict::Differs
    } else if log.is_cut_off {
        // The consumers beyond the limit were not read, so their states are unknown.
        Verdict::AtHead
    } else {
        Verdict::Converged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Consumer;

    fn consumer(name: &str, last_offset: i64, distance_mm: i64, digest: &str) -> Consumer {
        Consumer {
            name: name.to_owned(),
            fold: None,
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
        LogState {
            partition: 0,
            head: 9,
            head_token: 5,
            is_anything_staged: false,
            is_led: true,
            is_cut_off: false,
            consumers: consumers.to_vec(),
        }
    }

    fn recount(head: i64, is_complete: bool) -> Recount {
        Recount { at_ms: 0, took_ms: 1.0, head, head_token: 5, is_complete, ride_count: 9, distance_mm: 5000 }
    }

    #[test]
    fn consumers_have_converged_when_a_recount_at_their_head_agrees() {
        let both = log(&[consumer("a", 9, 5000, "x"), consumer("b", 9, 5000, "x")]);
        assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Converged);
        assert_eq!(judge(&both, Some(&recount(8, true))), Verdict::AtHead, "the recount is of another head");
        let of_another_past = Recount { head_token: 4, ride_count: 8, ..recount(9, true) };
        assert_eq!(judge(&both, Some(&of_another_past)), Verdict::AtHead, "Postgres was put back since");
        assert_eq!(judge(&both, Some(&recount(9, false))), Verdict::AtHead, "it counted rides without an offset");
        assert_eq!(judge(&both, None), Verdict::AtHead);
    }

    #[test]
    fn another_total_or_other_rides_differ() {
        for other in [consumer("b", 9, 5001, "x"), consumer("b", 9, 5000, "y")] {
            let both = log(&[consumer("a", 9, 5000, "x"), other]);
            assert_eq!(judge(&both, Some(&recount(9, true))), Verdict::Differs);
        }
    }

    #[test]
    fn no_total_is_judged_while_a_consumer_is_behind_or_there_is_none() {
        let late = log(&[consumer("a", 9, 5000, "x"), consumer("b", 8, 5000, "x")]);
        assert_eq!(judge(&late, Some(&recount(9, true))), Verdict::Behind);
        let staged = LogState { is_anything_staged: true, ..log(&[consumer("a", 9, 5000, "x")]) };
        assert_eq!(judge(&staged, Some(&recount(9, true))), Verdict::Behind);
        assert_eq!(judge(&log(&[]), Some(&recount(9, true))), Verdict::NoConsumer);
    }

    #[test]
    fn consumers_that_were_not_read_keep_the_others_from_converged() {
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
