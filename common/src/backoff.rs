//! How long to wait before trying again. Users: streamer, consumer, reaper, api, simulator.

use std::time::Duration;

/// Doubling waits with jitter: 100 ms, 200 ms, … up to a bound. Forgets everything after a success.
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

    /// It worked: the next failure waits for the shortest time again.
    pub fn reset(&mut self) {
        self.failure_count = 0;
    }

    /// It failed: how long to wait. Between half of the nominal wait and all of it, at random, so that processes which
    /// lost the same server do not all come back in the same moment. It is counted.
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
