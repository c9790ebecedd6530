//! Whether a process makes progress.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::orders::{OrderBook, Orders};

/// A pulse that rests counts as fresh.
const RESTING: u64 = u64::MAX;

/// All pulses of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Health {
    is_served: bool,
    takes_orders: bool,
    pulses: Arc<Mutex<Vec<Pulse>>>,
    orders: Arc<OnceLock<OrderBook>>,
}

impl Health {
    pub(crate) fn served(takes_orders: bool) -> Self {
        Self { is_served: true, takes_orders, ..Self::default() }
    }

    /// Whether the process serves its health and its metrics.
    pub fn is_served(&self) -> bool {
        self.is_served
    }

    /// A new pulse. Until it has beaten for the first time, the process is not ready.
    pub fn pulse(&self, name: &'static str, age_max: Duration) -> Pulse {
        let pulse = Pulse(Arc::new(Beats { name, age_max, born: Instant::now(), last_ms: AtomicU64::new(0) }));
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner).push(pulse.clone());
        pulse
    }

    /// The orders that an operator gives; the caller carries them out. Without `FAULT_ORDERS` there is never an order.
    pub fn orders(&self) -> Orders {
        self.orders_at([String::new()]).remove("").unwrap_or_default()
    }

    /// As [`Health::orders`], for a process whose faults strike one of these places: `POST /fault?at=NAME`. A process calls
    /// one of the two, once.
    pub fn orders_at(&self, names: impl IntoIterator<Item = String>) -> OrderBook {
        if !self.takes_orders {
            return OrderBook::default();
        }
        self.orders.get_or_init(|| names.into_iter().map(|name| (name, Orders::default())).collect()).clone()
    }

    /// Where orders go. `None`: the process accepts no orders.
    pub(crate) fn order_book(&self) -> Option<&OrderBook> {
        self.orders.get()
    }

    /// Whether every loop makes progress.
    pub(crate) fn is_ready(&self) -> bool {
        self.pulses().iter().all(Pulse::is_fresh)
    }

    /// Every pulse, in the order of creation.
    pub(crate) fn pulses(&self) -> Vec<Pulse> {
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The pulse of one loop. It beats when the loop has succeeded. Clones share it.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    name: &'static str,
    age_max: Duration,
    born: Instant,
    /// The time of the last beat, in milliseconds after `born`; 0: it has never beaten; or [`RESTING`].
    last_ms: AtomicU64,
}

impl Pulse {
    /// The loop succeeded, or there was nothing to do.
    pub fn beat(&self) {
        let now_ms = (self.0.born.elapsed().as_millis() as u64).max(1);
        self.0.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// There is nothing to do until the next beat, however long that is.
    pub fn rest(&self) {
        self.0.last_ms.store(RESTING, Ordering::Relaxed);
    }

    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    /// The time since the last beat. `None`: it has never beaten.
    pub(crate) fn age(&self) -> Option<Duration> {
        match self.0.last_ms.load(Ordering::Relaxed) {
            0 => None,
            RESTING => Some(Duration::ZERO),
            last_ms => Some(self.0.born.elapsed().saturating_sub(Duration::from_millis(last_ms))),
        }
    }

    /// Whether it beat within its largest age, or rests.
    pub fn is_fresh(&self) -> bool {
        self.age().is_some_and(|age| age <= self.0.age_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_fresh_after_a_beat_and_while_it_rests() {
        let health = Health::default();
        let pulse = health.pulse("rounds", Duration::from_secs(60));
        assert!(!pulse.is_fresh(), "it has never beaten");
        pulse.beat();
        assert!(pulse.is_fresh() && health.pulses()[0].is_fresh());
        let late = health.pulse("late", Duration::ZERO);
        late.beat();
        std::thread::sleep(Duration::from_millis(5));
        assert!(!late.is_fresh());
        late.rest();
        assert!(late.is_fresh());
    }
}
