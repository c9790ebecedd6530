//! Faults that an operator orders, in development only: the buttons of the live page, and the plans of `payments`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::http::HeaderMap;

/// A header that every order must have. A browser lets a page of another site send it only if this server allows it, which it
/// does not. A page whose own host name points at this server needs no permission, so an order must also be sent to
/// `localhost` or a loopback address.
pub const ORDER_HEADER: &str = "x-fault-order";

/// Whether a request with these headers may order a fault: a person on this machine has sent it, and no page of another site.
pub fn is_order(headers: &HeaderMap) -> bool {
    headers.contains_key(ORDER_HEADER) && web::is_this_machine(headers)
}

/// At most this many orders are kept. More are refused.
const OPEN_MAX: u32 = 10;

/// The orders of a process whose faults strike one of several places, by the name of the place. Empty if it takes no orders.
pub type OrderBook = BTreeMap<String, Orders>;

/// The number of open orders to inject a fault into a batch. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Orders(Arc<AtomicU32>);

impl Orders {
    /// Whether a fault is to be injected into the next batch.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Marks one order as carried out.
    pub fn fill(&self) {
        // An error means that no order is open.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| open.checked_sub(1));
    }

    /// Adds an order; `false` if too many are open.
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
