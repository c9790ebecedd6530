//! What goes wrong with the next charge: what `POST /_faults` has planned, or else what the dice say. Answers that are
//! given again under their key are not charges, and nothing happens to them.

use std::time::Duration;

use common::fault::Dice;
use serde::{Deserialize, Serialize};

/// The longest [`Fault::Slow`], in milliseconds.
const SLOW_MS_MAX: u64 = 60_000;

/// One charge's bad luck.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// 500, and nothing was charged.
    ErrorBefore,
    /// Charged, then 500.
    ErrorAfter,
    /// Charged, and never answered.
    TimeOut,
    /// Charged and on disk, and then the process is gone.
    DieAfterCharge,
    /// Charged and answered, but later.
    Slow,
}

/// The body of `POST /_faults`, for example `kind=error-after&count=2`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Plan {
    kind: Fault,
    /// How many of the next charges it strikes; 0 ends the plan before.
    #[serde(default = "once")]
    count: u64,
    /// How much later a slow charge is made, in milliseconds.
    #[serde(default)]
    ms: u64,
}

fn once() -> u64 {
    1
}

/// Decides charge by charge.
#[derive(Debug)]
pub(crate) struct Faults {
    dice: Dice,
    plan: Option<Plan>,
}

impl Faults {
    /// Faults by dice, until something is planned.
    pub fn new(dice: Dice) -> Self {
        Self { dice, plan: None }
    }

    /// Replaces the plan.
    pub fn plan(&mut self, plan: Plan) {
        self.plan = Some(plan);
    }

    /// The fault of the next charge, and how much later it is made.
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
