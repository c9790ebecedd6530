//! Faults that somebody orders while watching: the buttons of the live page, in development only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// More orders than this are not kept: whoever presses a button so often has seen enough.
const OPEN_MAX: u32 = 10;

/// Orders to inject a fault into the next batch, and how many of them are open. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Orders(Arc<AtomicU32>);

impl Orders {
    /// Whether the next batch shall suffer.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// One order was carried out.
    pub fn fill(&self) {
        // An error: there was none.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| open.checked_sub(1));
    }

    /// One more; `false` if there are too many.
    pub fn place(&self) -> bool {
        let more = |open| (open < OPEN_MAX).then_some(open + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_open_until_it_is_filled_and_too_many_are_refused() {
        let orders = Orders::default();
        orders.fill();
        assert!(!orders.is_open());
        assert_eq!((0..12).filter(|_| orders.place()).count(), 10);
        for _ in 0..10 {
            assert!(orders.is_open());
            orders.clone().fill();
        }
        assert!(!orders.is_open());
    }
}
