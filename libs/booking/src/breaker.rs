//! The breaker: while the payment processor is away, bookings fail at once instead of waiting for it.
//!
//! ```text
//! closed --5 failures in a row--> open: no request is sent
//!                                 open --the pause is over--> one request probes
//!                                 the probe fails: open again, for twice the pause
//! closed <--any request succeeds--
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use monitor::{declare_gauge, gauge};

/// Failures in a row that open the breaker.
const FAILURE_COUNT_MAX: u32 = 5;

/// The first pause, and the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// After this time another request may probe: the process may have dropped the earlier probe. Longer than a charge takes.
const PROBE_WAIT: Duration = Duration::from_secs(15);

const OPEN: &str = "rocket_rides_processor_breaker_open";

/// The breaker of one process.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failure_count: u32,
    /// `None`: closed.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    next_probe: Instant,
    pause: Duration,
}

/// The right to send one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The breaker is closed.
    Usual,
    /// The breaker is open, and this request tries whether the processor is back.
    Probe,
}

impl Breaker {
    /// Describes the gauge.
    pub fn describe() {
        declare_gauge(OPEN, "1 while no charge is asked for because the payment processor is away", &[]);
    }

    /// How many of `count_max` requests may be sent now.
    pub fn room(&self, count_max: usize, now: Instant) -> usize {
        match &self.state().open {
            None => count_max,
            Some(open) => usize::from(open.next_probe <= now).min(count_max),
        }
    }

    /// The right to send a request.
    ///
    /// # Errors
    /// The time after which one may be sent.
    pub fn pass(&self, now: Instant) -> Result<Pass, Duration> {
        let mut state = self.state();
        let Some(open) = &mut state.open else { return Ok(Pass::Usual) };
        let wait = open.next_probe.saturating_duration_since(now);
        if !wait.is_zero() {
            return Err(wait);
        }
        open.next_probe = now + PROBE_WAIT;
        Ok(Pass::Probe)
    }

    /// The processor has responded.
    pub fn succeeded(&self) {
        *self.state() = State::default();
        gauge!(OPEN).set(0.0);
    }

    /// The processor has not responded to a request that had this pass.
    pub fn failed(&self, pass: Pass, now: Instant) {
        let mut state = self.state();
        state.failure_count += 1;
        let pause = match (&state.open, pass) {
            (None, _) if state.failure_count < FAILURE_COUNT_MAX => return,
            (None, _) => PAUSE,
            (Some(open), Pass::Probe) => (open.pause * 2).min(PAUSE_MAX),
            // It was sent before the breaker opened, and says nothing new.
            (Some(_), Pass::Usual) => return,
        };
        state.open = Some(Open { next_probe: now + pause, pause });
        gauge!(OPEN).set(1.0);
        tracing::warn!(
            failure_count = state.failure_count,
            ?pause,
            "the payment processor is away: not asked for a while"
        );
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..FAILURE_COUNT_MAX {
            assert_eq!(breaker.pass(now), Ok(Pass::Usual));
        }
        (0..FAILURE_COUNT_MAX).for_each(|_| breaker.failed(Pass::Usual, now));
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            (1..FAILURE_COUNT_MAX).for_each(|_| breaker.failed(Pass::Usual, now));
            breaker.succeeded();
        }
        assert_eq!(breaker.pass(now), Ok(Pass::Usual));
        assert_eq!(open(now).pass(now), Err(PAUSE));
    }

    #[test]
    fn one_request_probes_and_each_failed_probe_doubles_the_pause() {
        let mut now = Instant::now();
        let breaker = open(now);
        let mut pause = PAUSE;
        for _ in 0..10 {
            assert_eq!(breaker.room(5, now), 0);
            now += pause;
            assert_eq!(breaker.room(5, now), 1);
            assert_eq!(breaker.pass(now), Ok(Pass::Probe));
            assert!(breaker.pass(now).is_err(), "one at a time");
            breaker.failed(Pass::Usual, now);
            breaker.failed(Pass::Probe, now);
            pause = (pause * 2).min(PAUSE_MAX);
        }
        now += pause;
        assert_eq!(breaker.pass(now), Ok(Pass::Probe));
        breaker.succeeded();
        assert_eq!((breaker.pass(now), breaker.room(5, now)), (Ok(Pass::Usual), 5));
    }

    #[test]
    fn a_probe_that_never_ends_is_followed_by_another() {
        let now = Instant::now() + PAUSE;
        let breaker = open(now - PAUSE);
        assert_eq!(breaker.pass(now), Ok(Pass::Probe));
        assert_eq!(breaker.pass(now), Err(PROBE_WAIT));
        assert_eq!(breaker.pass(now + PROBE_WAIT), Ok(Pass::Probe));
    }
}
