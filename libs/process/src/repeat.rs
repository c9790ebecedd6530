//! The loop of a process: one bounded unit of work, again and again.

use std::future::pending;
use std::time::Duration;

use anyhow::{Error, Result};
use common::backoff::Backoff;
use common::fault::{Fault, Faults};
use common::shutdown::{CancellationToken, stop_at_last};
use monitor::{Orders, Pulse};
use tracing::warn;

/// A unit of work that a process repeats.
///
/// A unit is bounded: it does at most one batch and returns within seconds, or a minute at most. It may be dropped at any
/// await point when the process stops, and must leave nothing behind that a kill would not leave.
pub trait Work {
    /// The faults that can be injected into a unit; `()` where there are none.
    type Fault: Fault;

    /// The longest pause between two attempts while a server is away.
    const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);

    /// Does one unit.
    ///
    /// # Errors
    /// [`Failure::Passing`] is tried again after a pause; [`Failure::Final`] ends the loop.
    fn run_once(&mut self, fault: Self::Fault) -> impl Future<Output = Result<Turn, Failure>>;

    /// Returns as soon as there may be more to do, which ends the pause early. The default never returns.
    fn woken(&self) -> impl Future<Output = ()> {
        pending()
    }

    /// Logs a failure that is tried again after `wait`.
    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "step failed, trying again");
    }
}

/// The result of one unit, and how long to pause after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    kind: Kind,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Done,
    Idle,
    Waiting,
}

impl Turn {
    /// The unit did something, and the fault that was drawn for it has struck. The next unit draws anew.
    pub fn done() -> Self {
        Self { kind: Kind::Done, pause: Duration::ZERO }
    }

    /// There is nothing left to do: this ends a loop that runs [`Until::Idle`].
    pub fn idle() -> Self {
        Self { kind: Kind::Idle, pause: Duration::ZERO }
    }

    /// Nothing was done, and more may be left: another process is at work, for example.
    pub fn waiting() -> Self {
        Self { kind: Kind::Waiting, pause: Duration::ZERO }
    }

    /// The same, with a pause before the next unit.
    pub fn pausing(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }
}

/// Why a unit failed.
#[derive(Debug)]
pub enum Failure {
    /// A server is away, for example: the unit is tried again after a pause.
    Passing(Error),
    /// An operator must act: the loop ends with this error.
    Final(Error),
}

/// An error is passing unless the unit says otherwise.
impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Passing(error.into())
    }
}

/// When a loop ends, beside a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Only by a shutdown.
    Stopped,
    /// `--drain`: when nothing is left to do.
    Idle,
    /// `--once`: after one unit, which is not tried again.
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

    fn is_reached(self, kind: Kind) -> bool {
        self == Self::Once || self == Self::Idle && kind == Kind::Idle
    }
}

/// The faults of a loop: the drawn ones, and those that a person orders by a button of the live page.
pub struct Injection<F> {
    faults: Faults<F>,
    orders: Orders,
}

impl<F: Fault> Injection<F> {
    /// Faults as the dice say, and one for each order.
    pub fn new(faults: Faults<F>, orders: Orders) -> Self {
        Self { faults, orders }
    }
}

/// Repeats the unit until `until` or `shutdown`, without faults.
///
/// # Errors
/// [`Failure::Final`]; with [`Until::Once`] any failure.
pub async fn repeat<W: Work<Fault = ()>>(
    work: &mut W,
    until: Until,
    pulse: &Pulse,
    shutdown: &CancellationToken,
) -> Result<()> {
    let injection = Injection::new(Faults::none(), Orders::default());
    repeat_with_faults(work, until, pulse, injection, shutdown).await
}

/// As [`repeat`]: the fault of each unit is drawn here and handed to the unit, so that tests choose it. A unit that did nothing
/// keeps its fault for the next one.
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
    let mut drawn = injection.faults.draw();
    while !shutdown.is_cancelled() {
        let is_ordered = injection.orders.is_open();
        let fault = if is_ordered { W::Fault::ordered() } else { drawn };
        let turn = tokio::select! {
            turn = work.run_once(fault) => turn,
            () = stop_at_last(shutdown) => break,
        };
        let pause = match turn {
            Ok(Turn { kind, pause }) => {
                pulse.beat();
                backoff.reset();
                if kind == Kind::Done {
                    drawn = injection.faults.draw();
                    if is_ordered {
                        injection.orders.fill();
                    }
                }
                if until.is_reached(kind) {
                    break;
                }
                pause
            }
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(error)) if until == Until::Once => return Err(error),
            Err(Failure::Passing(error)) => {
                let wait = backoff.next_wait();
                work.log_retry(&format!("{error:#}"), wait);
                rest(wait, pending(), shutdown).await;
                continue;
            }
        };
        rest(pause, work.woken(), shutdown).await;
    }
    Ok(())
}

async fn rest(pause: Duration, woken: impl Future<Output = ()>, shutdown: &CancellationToken) {
    if pause.is_zero() {
        return;
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
        () = woken => {}
    }
}
