//! A fault that a person orders, in development only: a destination refuses each store for some seconds. Everything around it
//! is what production runs: the attempt is undone, the breaker opens, and units wait. Without `FAULT_ORDERS` no destination is
//! wrapped.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use monitor::Orders;
use tokio::time::Instant;
use tracing::info;

use crate::destination::{Destination, Outcome, Refusal, Unit, UnitRef};

/// How long an ordered outage lasts, from the first store after the order.
pub(crate) const OUTAGE: Duration = Duration::from_secs(10);

/// A destination that refuses each store while an ordered outage lasts.
pub(crate) struct Interrupted {
    name: String,
    inner: Arc<dyn Destination>,
    orders: Orders,
    away_until: Mutex<Option<Instant>>,
}

impl Interrupted {
    /// `orders` are those for this destination.
    pub fn new(name: &str, inner: Arc<dyn Destination>, orders: Orders) -> Self {
        Self { name: name.to_owned(), inner, orders, away_until: Mutex::default() }
    }

    /// The refusal of a store, if there is an outage. Each order begins an outage, or a longer one.
    fn refusal(&self) -> Option<Refusal> {
        let mut away_until = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while self.orders.is_open() {
            self.orders.fill();
            *away_until = Some(away_until.unwrap_or(now).max(now) + OUTAGE);
            info!(destination = self.name, outage_s = OUTAGE.as_secs(), "an ordered outage begins");
        }
        let is_away = away_until.is_some_and(|until| now < until);
        is_away.then(|| Refusal::new(503, "away, as it was ordered"))
    }
}

impl Destination for Interrupted {
    fn store<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Outcome> {
        match self.refusal() {
            Some(refusal) => ready(Outcome::Failed(refusal)).boxed(),
            None => self.inner.store(unit),
        }
    }

    fn undo<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        self.inner.undo(unit)
    }

    fn forget<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        self.inner.forget(unit)
    }
}
