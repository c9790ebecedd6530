//! The fault of the next charge: the planned fault of `POST /_faults`, or else a fault by chance. A replayed response is not a
//! charge and has no fault.

use std::time::Duration;

use common::fault::Dice;
use serde::{Deserialize, Serialize};

/// The longest [`Fault::Slow`], in milliseconds.
const SLOW_MS_MAX: u64 = 60_000;

/// A fault of one charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// 500, and the charge was not made.
    ErrorBefore,
    /// The charge was made, then 500.
    ErrorAfter,
    /// The charge was made, and there is no response.
    TimeOut,
    /// The charge is on disk, and then the process dies.
    DieAfterCharge,
    /// The charge is made later, and then its response is sent.
    Slow,
}

/// The body of `POST /_faults`, for example `kind=error-after&count=2`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Plan {
    kind: Fault,
    /// The number of charges that the fault strikes; 0 cancels the plan.
    #[serde(default = "once")]
    count: u64,
    /// The delay of a slow charge, in milliseconds.
    #[serde(default)]
    ms: u64,
}

fn once() -> u64 {
    1
}

/// Draws the fault of each charge.
#[derive(Debug)]
pub(crate) struct Faults {
    dice: Dice,
    plan: Option<Plan>,
}

impl Faults {
    /// Faults by chance, until a fault is planned.
    pub fn new(dice: Dice) -> Self {
        Self { dice, plan: None }
    }

    /// Replaces the plan.
    pub fn plan(&mut self, plan: Plan) {
        self.plan = Some(plan);
    }

    /// The fault of the next charge, and its delay.
    pub fn draw(&mut self) -> (Option<Fault>, Duration) {
        if let Some(plan) = self.plan.as_mut().filter(|plan| plan.count > 0) {
            plan.count -= 1;
            let slow_ms = if plan.kind == Fault::Slow { plan.ms.min(SLOW_MS_MAX) } else { 0 };
            return (Some(plan.kind), Duration::from_millis(slow_ms));
        }
        let by_dice = self.dice.strikes().then(|| match (self.dice.coin(), self.dice.coin()) {
            (true, _) => Fault::ErrorBefore,
            (false, true) => Fault::ErrorAfter,
            (false, false) => Fault::TimeOut,
        });
        (by_dice, Duration::ZERO)
    }
}
