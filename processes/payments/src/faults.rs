//! The fault of the next charge: the planned fault of `POST /_faults`, or else a fault by chance. A replayed response is not a
//! charge and has no fault.

use std::time::Duration;

use axum::http::StatusCode;
use common::fault::Dice;
use serde::{Deserialize, Serialize};

use crate::answer::Answer;

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
    /// 500 with the advice not to retry, and the charge was not made.
    ErrorForGood,
    /// 400, as for an account that may not charge; nothing was charged.
    Refused,
    /// 429, and the charge was not made.
    RateLimited,
    /// The charge is pending, and paid after `ms`.
    Pending,
    /// The charge is pending, and declined after `ms`.
    PendingThenDeclined,
}

impl Fault {
    /// The response of a fault that strikes before the charge. `None`: the charge is made.
    pub fn refusal(self) -> Option<Answer> {
        let answer = match self {
            Self::ErrorBefore => Answer::internal(),
            Self::ErrorForGood => Answer::internal().advising(false),
            Self::Refused => {
                let message = "Your account cannot currently make live charges.";
                Answer::invalid("account_invalid", message).advising(false)
            }
            Self::RateLimited => {
                let message = "Request rate limit exceeded.";
                Answer::error(StatusCode::TOO_MANY_REQUESTS, "invalid_request_error", "rate_limit", message)
            }
            _ => return None,
        };
        Some(answer)
    }
}

/// The body of `POST /_faults`, for example `kind=error-after&count=2`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Plan {
    kind: Fault,
    /// The number of charges that the fault strikes; 0 cancels the plan.
    #[serde(default = "once")]
    count: u64,
    /// The delay of a slow charge, or the time for which a charge is pending; in milliseconds.
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

    /// The fault of the next charge, and its time.
    pub fn draw(&mut self) -> (Option<Fault>, Duration) {
        if let Some(plan) = self.plan.as_mut().filter(|plan| plan.count > 0) {
            plan.count -= 1;
            let ms_max = if plan.kind == Fault::Slow { SLOW_MS_MAX } else { u64::from(u32::MAX) };
            return (Some(plan.kind), Duration::from_millis(plan.ms.min(ms_max)));
        }
        let by_dice = self.dice.strikes().then(|| match (self.dice.coin(), self.dice.coin()) {
            (true, _) => Fault::ErrorBefore,
            (false, true) => Fault::ErrorAfter,
            (false, false) => Fault::TimeOut,
        });
        (by_dice, Duration::ZERO)
    }
}
