//! Users: consumer, api, simulator, and `libs/process` for every process that it repeats.
//!
//! How long to wait before the next attempt.

use std::time::Duration;

/// Waits that double, with jitter: 100 ms, 200 ms, … up to a bound. After a success they begin anew.
#[derive(Debug)]
pub struct Backoff {
    failure_count: u32,
    longest: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);

    /// Waits of at most `longest` each.
    pub fn up_to(longest: Duration) -> Self {
        Self { failure_count: 0, longest }
    }

    /// An attempt succeeded: the wait after the next failure is the shortest again.
    pub fn reset(&mut self) {
        self.failure_count = 0;
    }

    /// An attempt failed: how long to wait before the next one. The wait is random, between half of the nominal wait and all
    /// of it, so that processes which lost the same server do not all come back in the same moment. Each call counts as a
    /// retry in the metrics.
    pub fn next_wait(&mut self) -> Duration {
        metrics::counter!("rocket_rides_retries_total").increment(1);
        let nominal = Self::FIRST.saturating_mul(1 << self.failure_count.min(16)).min(self.longest);
        self.failure_count = self.failure_count.saturating_add(1);
        nominal.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_start_over_after_a_success() {
        let mut backoff = Backoff::up_to(Duration::from_secs(2));
        let waits_ms: Vec<u128> = (0..40).map(|_| backoff.next_wait().as_millis()).collect();
        assert!((50..=100).contains(&waits_ms[0]), "{waits_ms:?}");
        assert!(waits_ms.iter().skip(5).all(|wait_ms| (1000..=2000).contains(wait_ms)), "{waits_ms:?}");
        backoff.reset();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
