//! The loop without servers: a unit follows a script, and the test looks at the faults and pauses that it was given.

use std::sync::Mutex;

use anyhow::anyhow;
use common::fault::{Dice, FaultArgs, Planned};
use monitor::Health;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::*;

/// Longer than any test may take.
const LONG: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slip {
    None,
    Planned,
    Ordered,
}

impl Injectable for Slip {
    fn roll(_: &mut Dice) -> Self {
        Self::None
    }

    fn ordered() -> Self {
        Self::Ordered
    }
}

/// Does the units of a list, and then cancels the token.
struct Script {
    units: Vec<Result<Turn, Failure>>,
    faults: Vec<Slip>,
    waits: Mutex<Vec<Duration>>,
    woken: Notify,
    shutdown: CancellationToken,
}

impl Script {
    fn new(units: impl IntoIterator<Item = Result<Turn, Failure>>) -> Self {
        let mut units: Vec<_> = units.into_iter().collect();
        units.reverse();
        Self {
            units,
            faults: Vec::new(),
            waits: Mutex::default(),
            woken: Notify::new(),
            shutdown: CancellationToken::new(),
        }
    }

    /// Repeats the script; fails if it does not end by itself. The second unit that counts gets a planned fault.
    async fn repeat(&mut self, until: Until, orders: &Orders) -> Result<()> {
        let none = FaultArgs { fault_rate: 0.0, fault_seed: None };
        let faults = FaultSource::new("", &none, Some(Planned { fault: Slip::Planned, batch: 2 }));
        let pulse = Health::default().pulse("units", LONG);
        let (injection, shutdown) = (Injection::new(faults, orders.clone()), self.shutdown.clone());
        let repeated = repeat_with_faults(self, until, &pulse, injection, &shutdown);
        timeout(Duration::from_secs(5), repeated).await.expect("the loop ends")
    }
}

impl Work for Script {
    type Fault = Slip;

    async fn run_once(&mut self, fault: Slip) -> Result<Turn, Failure> {
        self.faults.push(fault);
        let turn = self.units.pop().expect("no unit begins after the last");
        if self.units.is_empty() {
            self.shutdown.cancel();
            // A unit that is in hand when the shutdown begins is finished.
            tokio::task::yield_now().await;
        }
        turn
    }

    async fn woken(&self) {
        self.woken.notified().await;
    }

    fn log_retry(&self, _: &str, wait: Duration) {
        self.waits.lock().unwrap().push(wait);
    }
}

fn passing() -> Result<Turn, Failure> {
    Err(Failure::Passing(anyhow!("the server is away")))
}

#[tokio::test]
async fn a_drain_ends_when_nothing_is_left() {
    let mut script = Script::new([Ok(Turn::done()), Ok(Turn::waiting()), Ok(Turn::idle()), Ok(Turn::done())]);
    script.repeat(Until::Idle, &Orders::default()).await.unwrap();
    assert_eq!(script.faults.len(), 3);
}

#[tokio::test]
async fn once_is_one_unit_whatever_its_result() {
    for turn in [Turn::done(), Turn::idle(), Turn::waiting().pausing(LONG)] {
        let mut script = Script::new([Ok(turn), Ok(Turn::done())]);
        script.repeat(Until::Once, &Orders::default()).await.unwrap();
        assert_eq!(script.faults.len(), 1);
    }
    let mut script = Script::new([passing(), Ok(Turn::done())]);
    let error = script.repeat(Until::Once, &Orders::default()).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), script.faults.len()), ("the server is away", 1));
}

#[tokio::test]
async fn no_unit_begins_after_the_shutdown_and_the_last_one_is_finished() {
    let mut script = Script::new([Ok(Turn::done()), Ok(Turn::done().pausing(LONG))]);
    script.repeat(Until::Stopped, &Orders::default()).await.unwrap();
    assert_eq!(script.faults.len(), 2);
    let mut script = Script::new([Ok(Turn::done())]);
    script.shutdown.cancel();
    script.repeat(Until::Stopped, &Orders::default()).await.unwrap();
    assert_eq!(script.faults, [], "told to stop before the first unit");
}

#[tokio::test]
async fn a_final_failure_ends_the_loop() {
    let mut script = Script::new([Ok(Turn::done()), Err(Failure::Final(anyhow!("act"))), Ok(Turn::done())]);
    let error = script.repeat(Until::Stopped, &Orders::default()).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), script.faults.len()), ("act", 2));
}

#[tokio::test]
async fn pauses_after_failures_grow_until_a_unit_succeeds() {
    let mut script = Script::new([passing(), passing(), Ok(Turn::idle()), passing(), Ok(Turn::done())]);
    script.repeat(Until::Stopped, &Orders::default()).await.unwrap();
    let waits_ms: Vec<u128> = script.waits.lock().unwrap().iter().map(Duration::as_millis).collect();
    let [first, second, anew] = waits_ms[..] else { panic!("three failures: {waits_ms:?}") };
    assert!((50..=100).contains(&first) && (100..=200).contains(&second), "{waits_ms:?}");
    assert!((50..=100).contains(&anew), "{waits_ms:?}");
}

#[tokio::test]
async fn a_unit_that_is_woken_does_not_pause_on() {
    let mut script = Script::new([Ok(Turn::idle().pausing(LONG)), Ok(Turn::done())]);
    script.woken.notify_one();
    script.repeat(Until::Stopped, &Orders::default()).await.unwrap();
    assert_eq!(script.faults.len(), 2);
}

#[tokio::test]
async fn a_drawn_fault_is_kept_until_a_unit_does_something() {
    let units = [Turn::done(), Turn::idle(), Turn::waiting(), Turn::done()];
    let mut script = Script::new(units.into_iter().map(Ok).chain([passing(), Ok(Turn::done())]));
    script.repeat(Until::Stopped, &Orders::default()).await.unwrap();
    let planned = [Slip::Planned; 5];
    assert_eq!(
        script.faults,
        [&[Slip::None], &planned[..]].concat(),
        "planned for the second unit that does something"
    );
}

#[tokio::test]
async fn an_ordered_fault_stands_until_a_unit_does_something() {
    let orders = Orders::default();
    assert!(orders.place());
    let mut script = Script::new([Ok(Turn::idle()), passing(), Ok(Turn::done()), Ok(Turn::done())]);
    script.repeat(Until::Stopped, &orders).await.unwrap();
    assert_eq!(script.faults, [Slip::Ordered, Slip::Ordered, Slip::Ordered, Slip::Planned]);
    assert!(!orders.is_open(), "one order is one fault");
}

/// Needs 200 ms after the shutdown has begun, and may take `STOP_WAIT_MS` of them.
struct Slow<const STOP_WAIT_MS: u64> {
    shutdown: CancellationToken,
    is_finished: bool,
}

impl<const STOP_WAIT_MS: u64> Work for Slow<STOP_WAIT_MS> {
    type Fault = ();

    const STOP_WAIT: Duration = Duration::from_millis(STOP_WAIT_MS);

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        self.shutdown.cancel();
        tokio::time::sleep(Duration::from_millis(200)).await;
        self.is_finished = true;
        Ok(Turn::done())
    }
}

async fn is_finished_after_shutdown<const STOP_WAIT_MS: u64>() -> bool {
    let shutdown = CancellationToken::new();
    let mut slow = Slow::<STOP_WAIT_MS> { shutdown: shutdown.clone(), is_finished: false };
    let pulse = Health::default().pulse("units", LONG);
    repeat(&mut slow, Until::Stopped, &pulse, &shutdown).await.unwrap();
    slow.is_finished
}

#[tokio::test]
async fn a_unit_has_its_own_time_to_finish_after_the_shutdown() {
    assert!(is_finished_after_shutdown::<60_000>().await);
    assert!(!is_finished_after_shutdown::<1>().await);
}

#[tokio::test]
async fn a_unit_that_a_fault_undid_beats_no_pulse_and_has_another_fault_next() {
    let mut script = Script::new([Ok(Turn::crashed()), Ok(Turn::crashed())]);
    let (health, shutdown) = (Health::default(), script.shutdown.clone());
    let pulse = health.pulse("units", LONG);
    let none = FaultArgs { fault_rate: 0.0, fault_seed: None };
    let faults = FaultSource::new("", &none, Some(Planned { fault: Slip::Planned, batch: 2 }));
    let injection = Injection::new(faults, Orders::default());
    repeat_with_faults(&mut script, Until::Stopped, &pulse, injection, &shutdown).await.unwrap();
    assert_eq!(script.faults, [Slip::None, Slip::Planned]);
    assert!(!pulse.is_fresh(), "nothing was achieved");
}
