//! The loop of a process: one bounded unit of work, again and again. Users: every process that is no server.
//!
//! For each unit the loop
//! 1. chooses the fault to inject: one that a person ordered, else the one that was drawn,
//! 2. runs the unit, and drops it if it has not finished some time after a shutdown began: 10 s, unless the unit says otherwise,
//! 3. after a success: beats the pulse, and pauses for as long as the unit asks, or until it is woken,
//! 4. after an error: logs it, and pauses for longer after each error in a row.
//!
//! A shutdown ends every pause, and no unit begins after it.

use std::future::pending;
use std::time::Duration;

use anyhow::{Error, Result};
use common::backoff::Backoff;
use common::fault::{FaultSource, Injectable};
use common::shutdown::{CancellationToken, GRACE, sleep_or_stop, stop_within};
use connect::postgres::leave_if_read_only;
use monitor::{Orders, Pulse};
use tracing::warn;

/// A unit of work that a process repeats.
///
/// A unit is bounded: it processes one batch, or what is due now, and every step of it has a time limit. When the process stops,
/// the unit may be dropped at any await point. It must leave nothing behind that a kill would not leave.
pub trait Work {
    /// The faults that can be injected into a unit; `()` where there are none.
    type Fault: Injectable;

    /// The longest pause between two attempts while a server is away.
    const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);

    /// The time in which a unit must finish after a shutdown has begun.
    const STOP_WAIT: Duration = GRACE;

    /// Does one unit.
    ///
    /// # Errors
    /// After [`Failure::Passing`] the loop pauses and tries again; [`Failure::Final`] ends the loop.
    fn run_once(&mut self, fault: Self::Fault) -> impl Future<Output = Result<Turn, Failure>>;

    /// Returns as soon as there may be more to do, which ends the pause early. The default never returns.
    fn woken(&self) -> impl Future<Output = ()> {
        pending()
    }

    /// Logs a failed unit. The loop tries again after `wait`.
    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "step failed, trying again");
    }
}

/// The result of one unit, and how long to pause after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    effect: Effect,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Done,
    Crashed,
    Idle,
    Waiting,
}

impl Turn {
    /// The unit did something, so its fault was injected. The next unit gets another fault.
    pub fn done() -> Self {
        Self { effect: Effect::Done, pause: Duration::ZERO }
    }

    /// The injected fault has undone the unit. The next unit gets another fault. The pulse does not beat, because nothing was
    /// achieved.
    pub fn crashed() -> Self {
        Self { effect: Effect::Crashed, pause: Duration::ZERO }
    }

    /// The unit found nothing to do, and nothing is left. This ends a loop that runs [`Until::Idle`].
    pub fn idle() -> Self {
        Self { effect: Effect::Idle, pause: Duration::ZERO }
    }

    /// The unit did nothing, and more may be left: another process is at work, for example.
    pub fn waiting() -> Self {
        Self { effect: Effect::Waiting, pause: Duration::ZERO }
    }

    /// The same, with a pause before the next unit.
    pub fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }
}

/// Why a unit failed.
#[derive(Debug)]
pub enum Failure {
    /// A server is away, for example. The loop tries again after a pause.
    Passing(Error),
    /// An operator must act. The loop ends with this error.
    Final(Error),
}

/// An error is passing unless the unit says otherwise.
impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

/// When a loop ends if no shutdown ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Never.
    Stopped,
    /// `--drain`: when nothing is left to do.
    Idle,
    /// `--once`: after one unit, even if it failed.
    Once,
}

impl Until {
    /// Until nothing is left, if the process was started with `--drain`.
    pub fn drained(is_draining: bool) -> Self {
        if is_draining { Self::Idle } else { Self::Stopped }
    }

    /// One unit, if the process was started with `--once`.
    pub fn once(is_once: bool) -> Self {
        if is_once { Self::Once } else { Self::Stopped }
    }

    fn is_reached(self, effect: Effect) -> bool {
        match self {
            Self::Stopped => false,
            Self::Idle => effect == Effect::Idle,
            Self::Once => true,
        }
    }
}

/// The faults of a loop: drawn ones, and those that a button of the live page orders.
pub struct Injection<F> {
    faults: FaultSource<F>,
    orders: Orders,
    /// Drawn for the next unit that does something.
    drawn: F,
    is_ordered: bool,
}

impl<F: Injectable> Injection<F> {
    /// Draws from `faults`, and injects one ordered fault for each open order.
    pub fn new(mut faults: FaultSource<F>, orders: Orders) -> Self {
        let drawn = faults.draw();
        Self { faults, orders, drawn, is_ordered: false }
    }

    /// The fault of the next unit.
    fn next_fault(&mut self) -> F {
        // Remembered: an order that arrives while the unit runs is for the next unit.
        self.is_ordered = self.orders.is_open();
        if self.is_ordered { F::ordered() } else { self.drawn }
    }

    /// The unit did something, and its fault with it. After a unit that did nothing the fault and the order still stand.
    fn was_injected(&mut self) {
        self.drawn = self.faults.draw();
        if self.is_ordered {
            self.orders.fill();
        }
    }
}

/// Repeats a unit that has no faults, until `until` is reached or the shutdown begins.
///
/// # Errors
/// [`Failure::Final`]; with [`Until::Once`] any failure.
pub async fn repeat<W: Work<Fault = ()>>(
    work: &mut W,
    until: Until,
    pulse: &Pulse,
    shutdown: &CancellationToken,
) -> Result<()> {
    let injection = Injection::new(FaultSource::none(), Orders::default());
    repeat_with_faults(work, until, pulse, injection, shutdown).await
}

/// As [`repeat`], for a unit that has faults. The loop draws them and hands them to the unit, so that tests of the unit choose
/// them. If a unit did nothing, the next one gets the same fault.
///
/// # Errors
/// As [`repeat`].
pub async fn repeat_with_faults<W: Work>(
    work: &mut W,
    until: Until,
    pulse: &Pulse,
    mut injection: Injection<W::Fault>,
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut backoff = Backoff::up_to(W::RETRY_WAIT_MAX);
    while !shutdown.is_cancelled() {
        let fault = injection.next_fault();
        let turn = tokio::select! {
            turn = work.run_once(fault) => turn,
            () = stop_within(W::STOP_WAIT, shutdown) => break,
        };
        match turn {
            Ok(Turn { effect, pause }) => {
                if effect != Effect::Crashed {
                    pulse.beat();
                    backoff.reset();
                }
                if matches!(effect, Effect::Done | Effect::Crashed) {
                    injection.was_injected();
                }
                if until.is_reached(effect) {
                    break;
                }
                sleep_until_woken(pause, work.woken(), shutdown).await;
            }
            Err(Failure::Passing(error)) if until != Until::Once => {
                leave_if_read_only(error.as_ref());
                let wait = backoff.next_wait();
                work.log_retry(&format!("{error:#}"), wait);
                // Not woken early: more work does not bring a server back.
                sleep_or_stop(wait, shutdown).await;
            }
            Err(Failure::Passing(error) | Failure::Final(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Sleeps until the pause is over, the unit is woken, or the shutdown begins.
async fn sleep_until_woken(pause: Duration, woken: impl Future<Output = ()>, shutdown: &CancellationToken) {
    if pause.is_zero() {
        return;
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
        () = woken => {}
    }
}

#[cfg(test)]
mod tests;
