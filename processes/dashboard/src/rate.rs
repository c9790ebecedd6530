//! How fast a count grows.

use std::collections::VecDeque;

/// A rate is measured over at least this many milliseconds.
const RATE_OVER_MS: u64 = 3000;

/// The growth of one count per second, between two of its readings.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    /// Time and value of each reading, the oldest first.
    counts: VecDeque<(u64, i64)>,
}

impl Rate {
    /// The rate after one more reading. `None`: there is only one yet.
    pub fn after(&mut self, at_ms: u64, count: i64) -> Option<f64> {
        // The clock was put back, or the count begins anew: earlier readings cannot be compared any more.
        if self.counts.back().is_some_and(|(last_ms, last)| *last_ms > at_ms || *last > count) {
            self.counts.clear();
        }
        if self.counts.back().is_none_or(|(last_ms, _)| *last_ms < at_ms) {
            self.counts.push_back((at_ms, count));
        }
        // Keep the youngest reading that is old enough as the first; earlier ones are not needed.
        while self.counts.get(1).is_some_and(|(first_ms, _)| at_ms - first_ms >= RATE_OVER_MS) {
            self.counts.pop_front();
        }
        let (first_ms, first) = *self.counts.front()?;
        let elapsed_ms = at_ms - first_ms;
        (elapsed_ms > 0).then(|| (count - first) as f64 / (elapsed_ms as f64 / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut rate = Rate::default();
        assert_eq!(rate.after(10_000, 100), None);
        assert_eq!(rate.after(10_000, 100), None, "the same reading says nothing new");
        assert_eq!(rate.after(12_000, 120), Some(10.0));
        assert_eq!(rate.after(13_000, 160), Some(20.0));
        assert_eq!(rate.after(16_000, 190), Some(10.0), "since the count at 13 s");
        assert_eq!(rate.after(5_000, 191), None, "the clock was put back");
        assert_eq!(rate.after(6_000, 192), Some(1.0));
        assert_eq!(rate.after(7_000, 3), None, "the process was restarted");
        assert_eq!(rate.after(8_000, 5), Some(2.0));
    }
}
