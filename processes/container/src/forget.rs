//! Units that were settled long ago are forgotten: first by their destinations, then by Postgres.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use futures_util::{StreamExt, stream};
use process::{Failure, Turn, Work};
use tracing::{info, warn};

use crate::destination::UnitRef;
use crate::hand::Hand;
use crate::units::{self, Old};

/// Units of one step.
const PAGE_LEN: usize = 500;

/// Units that destinations forget side by side.
const SIDE_BY_SIDE_MAX: usize = 16;

/// Units that a destination fails to forget before it counts as away until the next turn.
const FAILURE_COUNT_MAX: usize = 8;

/// How often to look for old units.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Forgets old units, again and again. Any process may do it for the units of all: every step may be repeated. While a destination
/// is away, only the units that have a part in it stay. A unit that it cannot forget holds no other up.
pub(crate) struct Forgetting {
    hand: Hand,
    keep: Duration,
    /// The destinations that have failed in this turn, and how often.
    failed: HashMap<String, usize>,
    /// The units that they have not forgotten in this turn.
    stuck: Vec<i64>,
}

impl Work for Forgetting {
    type Fault = ();

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let away = self.failed.iter().filter(|(_, count)| **count >= FAILURE_COUNT_MAX);
        let away: Vec<String> = away.map(|(name, _)| name.clone()).collect();
        let old = units::old(&*self.hand.client().await?, self.keep, (&away, &self.stuck), PAGE_LEN as i64).await?;
        let is_last = old.len() < PAGE_LEN;
        let forgotten = self.forget(&old).await;
        let count = units::delete(&*self.hand.client().await?, &forgotten).await?;
        if count > 0 {
            info!(count, "old units are forgotten");
        }
        if !is_last {
            return Ok(Turn::done());
        }
        self.failed.clear();
        self.stuck.clear();
        Ok(Turn::done().pausing(LOOK_INTERVAL))
    }
}

impl Forgetting {
    /// Forgets units that were settled longer than `keep` ago.
    pub fn new(hand: Hand, keep: Duration) -> Self {
        Self { hand, keep, failed: HashMap::new(), stuck: Vec::new() }
    }

    /// Lets the destinations forget these units. Returns those that all have forgotten.
    async fn forget(&mut self, old: &[Old]) -> Vec<i64> {
        let (fan_out, failed) = (&self.hand.fan_out, RefCell::new((&mut self.failed, &mut self.stuck)));
        let forgetting = stream::iter(old).map(async |old| {
            let Old { uow, key, attempt, ref resource, ref subject, ref destinations } = *old;
            let count_of = |name: &String| failed.borrow().0.get(name).copied().unwrap_or_default();
            if destinations.iter().any(|name| count_of(name) >= FAILURE_COUNT_MAX) {
                return None;
            }
            match fan_out.forget(destinations, UnitRef { uow, key, attempt, resource, subject }).await {
                Ok(()) => Some(uow),
                Err((destination, refusal)) => {
                    let refusal = refusal.to_string();
                    warn!(uow, destination, refusal, "a destination forgets an old unit later");
                    let (counts, stuck) = &mut *failed.borrow_mut();
                    *counts.entry(destination).or_default() += 1;
                    stuck.push(uow);
                    None
                }
            }
        });
        forgetting.buffer_unordered(SIDE_BY_SIDE_MAX).filter_map(std::future::ready).collect().await
    }
}
