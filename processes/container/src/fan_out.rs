//! One attempt of a unit: its destinations side by side, the verdict, and the way back.
//!
//! ```text
//! stores side by side ─▶ webhooks ─▶ the verdict, with the row of the last resource ─▶ committed
//!      │ the first failure: nothing more is begun
//!      ▼
//! all that is in flight ends ─▶ the verdict ─▶ every part is undone ─▶ rejected, fail-queued or dead
//! ```
//!
//! Webhooks go last: what was told cannot be made untold, so it is taken back only if its response was unclear, or if the row is
//! then refused.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::{ClientWrapper as Client, Pool};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::destination::{Destination, Outcome, Refusal, Unit, UnitRef};
use crate::metrics;
use crate::points::{Point, pass};
use crate::units::{self, Breaker, Ending, Held, PartOutcome, Row, State, Taken, Unwritten, Verdict, Verdicts};

/// How long the undo of a part that failed rests before it is tried again.
const UNDO_PAUSE_S: f64 = 2.0;

/// A destination, with its bounds.
pub struct Place {
    /// How it stores.
    pub way: Way,
    /// How long a store or an undo may take.
    pub time_out: Duration,
    /// Units that it stores at one time.
    pub permits: Semaphore,
}

/// How a destination stores.
pub enum Way {
    /// By itself, and it can undo.
    Store(Arc<dyn Destination>),
    /// As `Store`, after all others.
    Tell(Arc<dyn Destination>),
    /// In the transaction of the verdict, as a row of this table.
    Row(String),
}

impl Way {
    fn undoing(&self) -> Option<&Arc<dyn Destination>> {
        match self {
            Self::Store(destination) | Self::Tell(destination) => Some(destination),
            Self::Row(_) => None,
        }
    }
}

/// How an attempt has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All destinations that want the unit have it. These are the outcomes.
    Committed(Vec<PartOutcome>),
    /// No destination has it.
    Failed(Ending),
    /// Not everything is taken back yet: it is tried again.
    RollingBack,
    /// Another worker has the unit.
    Lost,
}

impl End {
    /// The state of the unit after the verdict. `None`: this worker has given none.
    pub fn verdict(&self) -> Option<State> {
        match self {
            Self::Committed(_) => Some(State::Committed),
            Self::Failed(ending) => Some(ending.state),
            Self::RollingBack | Self::Lost => None,
        }
    }
}

/// Drives units. Clones are not needed: workers share a reference.
pub struct FanOut {
    places: BTreeMap<String, Place>,
    pool: Pool,
    verdicts: Verdicts,
    /// Destinations that have failed since they last stored a unit, and whether their breakers are open. A success of any other
    /// is not noted in Postgres.
    troubled: Mutex<HashMap<String, bool>>,
}

/// The outcomes of an attempt.
struct Attempted {
    parts: Vec<PartOutcome>,
    /// The destinations that have nothing of this attempt, as far as this worker has begun it.
    untouched: HashSet<String>,
    row: Option<Row>,
    failure: Option<Refusal>,
}

impl FanOut {
    /// Drives units to these destinations.
    pub fn new(places: BTreeMap<String, Place>, pool: Pool, verdicts: Verdicts) -> Self {
        Self { places, pool, verdicts, troubled: Mutex::default() }
    }

    /// Whether one of these destinations has an open breaker, as far as this process knows.
    pub fn is_any_open(&self, destinations: &[String]) -> bool {
        let troubled = self.troubled();
        destinations.iter().any(|name| troubled.get(name) == Some(&true))
    }

    /// Learns of the breakers: another process may have opened or closed them.
    pub fn know(&self, breakers: Vec<Breaker>) {
        *self.troubled() = breakers.into_iter().map(|breaker| (breaker.destination, breaker.is_open)).collect();
    }

    fn troubled(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.troubled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does an attempt of a unit, from its beginning or from wherever another worker has left it. If the unit is unreadable, the
    /// attempt fails.
    ///
    /// # Errors
    /// Postgres is away. The unit is taken again when the lease has run out.
    pub async fn drive(&self, taken: &Taken, unit: &Unit, unreadable: Option<Refusal>) -> Result<End> {
        let held = Held::from(taken);
        if taken.state == State::RollingBack {
            let failure = Refusal::new(taken.status.unwrap_or(500) as u16, taken.error.as_deref().unwrap_or_default());
            return self.take_back(taken, unit.reference(), &failure, &HashSet::new()).await;
        }
        let attempted = match unreadable.or_else(|| worn_out(taken)) {
            Some(failure) => not_begun(taken, failure),
            None => self.attempt(taken, unit).await,
        };
        if attempted.failure.is_none() {
            pass(Point::Told, &taken.subject);
        }
        let failure = match attempted.failure {
            Some(failure) => failure,
            None => match self.commit(taken, attempted.row, &attempted.parts).await? {
                Ok(true) => {
                    pass(Point::Committed, &taken.subject);
                    return Ok(End::Committed(attempted.parts));
                }
                Ok(false) => return Ok(End::Lost),
                Err(refusal) => refusal,
            },
        };
        let mut client = self.client().await?;
        let status = failure.status as i16;
        if !units::roll_back(&mut client, held, status, &failure.reason, &attempted.parts).await? {
            return Ok(End::Lost);
        }
        drop(client);
        pass(Point::RollingBack, &taken.subject);
        let untouched = if taken.take_count == 1 { attempted.untouched } else { HashSet::new() };
        self.take_back(taken, unit.reference(), &failure, &untouched).await
    }

    /// Gives the verdict that all destinations keep the unit. `false`: the lease was lost. The inner error is the refusal of the row
    /// by Postgres, and nothing was written then.
    ///
    /// # Errors
    /// Whether the verdict was committed is unknown.
    async fn commit(&self, taken: &Taken, row: Option<Row>, parts: &[PartOutcome]) -> Result<Result<bool, Refusal>> {
        let verdict = Verdict { unit: taken.clone(), row, parts: parts.to_vec() };
        match self.verdicts.write(verdict).await {
            Ok(is_ours) => Ok(Ok(is_ours)),
            Err(Unwritten::Refused(reason)) => Ok(Err(Refusal::new(422, format!("the row is refused: {reason}")))),
            Err(error) => Err(error).context("giving the verdict"),
        }
    }

    /// Stores the parts.
    async fn attempt(&self, taken: &Taken, unit: &Unit) -> Attempted {
        let (stopped, mut parts, mut row, mut refusals) = (AtomicBool::new(false), Vec::new(), None, Vec::new());
        let mut untouched = HashSet::new();
        let named = || taken.destinations.iter().map(|name| (name, self.places.get(name)));
        for is_told in [false, true] {
            let running = named().filter(|(_, place)| place.is_some_and(|place| is_of_phase(&place.way, is_told)));
            let stopped = &stopped;
            let mut running: FuturesUnordered<_> = running
                .map(|(name, place)| async move { (name, self.store(name, place, unit, stopped).await) })
                .collect();
            while let Some((name, outcome)) = running.next().await {
                if let Some(Outcome::Failed(refusal)) = &outcome {
                    stopped.store(true, Ordering::Relaxed);
                    refusals.push((name.clone(), refusal.clone()));
                }
                self.note(name, outcome.as_ref(), taken.uow).await;
                if outcome == Some(Outcome::Stored) && !is_told {
                    pass(Point::FirstStored, &taken.subject);
                }
                if outcome.as_ref().is_none_or(stored_nothing) {
                    untouched.insert(name.clone());
                }
                parts.push(part_of(name, outcome));
            }
            if !is_told && refusals.is_empty() {
                pass(Point::AllStored, &taken.subject);
            }
        }
        for (name, place) in named() {
            match place.map(|place| &place.way) {
                Some(Way::Row(table)) => {
                    let data = String::from_utf8_lossy(&unit.document).into_owned();
                    row = Some(Row { table: table.clone(), data });
                    let state = if refusals.is_empty() { "stored" } else { "pending" };
                    parts.push(PartOutcome { destination: name.clone(), state, status: None, error: None });
                }
                Some(_) => {}
                None => refusals.push((name.clone(), Refusal::new(503, "this destination is not declared here"))),
            }
        }
        // 4xx wins: a retry cannot succeed.
        let worst = refusals.into_iter().min_by_key(|(_, refusal)| refusal.is_passing());
        let failure = worst.map(|(name, refusal)| Refusal { reason: format!("{name}: {}", refusal.reason), ..refusal });
        Attempted { parts, untouched, row, failure }
    }

    /// Stores one part, unless another part has failed already: `None`.
    async fn store(&self, name: &str, place: Option<&Place>, unit: &Unit, stopped: &AtomicBool) -> Option<Outcome> {
        let place = place?;
        let destination = place.way.undoing()?;
        let Ok(turn) = timeout(units::TURN_WAIT, place.permits.acquire()).await else {
            return Some(Outcome::Failed(
                Refusal::new(503, "it stores as many units as it may, and none has ended").clear(),
            ));
        };
        // An error means that the semaphore is closed, and no code closes it.
        let _permit = turn.ok()?;
        if stopped.load(Ordering::Relaxed) {
            return None;
        }
        let began_at = Instant::now();
        let stored = timeout(place.time_out, destination.store(unit)).await;
        let outcome = stored.unwrap_or_else(|_| Outcome::Failed(Refusal::new(504, "no response in time")));
        metrics::stored(name, &outcome, began_at.elapsed());
        Some(outcome)
    }

    /// Undoes all parts that may ever have been begun, also those that have failed, and ends the attempt.
    async fn take_back(
        &self,
        taken: &Taken,
        unit: UnitRef<'_>,
        failure: &Refusal,
        untouched: &HashSet<String>,
    ) -> Result<End> {
        let undoing = taken.destinations.iter().filter(|name| !untouched.contains(*name)).filter_map(|name| {
            let place = self.places.get(name)?;
            let destination = place.way.undoing()?;
            Some(async move { (name, timeout(place.time_out, destination.undo(unit)).await) })
        });
        let mut undoing: FuturesUnordered<_> = undoing.collect();
        let mut is_undone = true;
        while let Some((destination, undone)) = undoing.next().await {
            let refusal = match undone {
                Ok(Ok(())) => {
                    pass(Point::FirstUndone, &taken.subject);
                    continue;
                }
                Ok(Err(refusal)) => refusal.to_string(),
                Err(_) => "no response in time".to_owned(),
            };
            is_undone = false;
            metrics::undo_failed(destination);
            warn!(uow = taken.uow, attempt = taken.attempt, destination, refusal, "a part is not taken back yet");
        }
        let mut client = self.client().await?;
        if !is_undone {
            let is_ours = units::put_off(&client, Held::from(taken), UNDO_PAUSE_S).await?;
            return Ok(if is_ours { End::RollingBack } else { End::Lost });
        }
        pass(Point::AllUndone, &taken.subject);
        let (status, pause_min) = (failure.status as i16, failure.retry_after.unwrap_or_default());
        let ended = units::finish_rollback(&mut client, Held::from(taken), status, &failure.reason, pause_min).await?;
        pass(Point::RolledBack, &taken.subject);
        Ok(ended.map_or(End::Lost, End::Failed))
    }

    /// Lets each of these destinations forget a unit whose row goes. A destination that is not declared any more is passed over.
    ///
    /// # Errors
    /// A destination that has not forgotten it, and why.
    pub async fn forget(&self, destinations: &[String], unit: UnitRef<'_>) -> Result<(), (String, Refusal)> {
        for name in destinations {
            let Some(place) = self.places.get(name) else { continue };
            let Some(destination) = place.way.undoing() else { continue };
            let forgotten = timeout(place.time_out, destination.forget(unit)).await;
            let forgotten = forgotten.unwrap_or_else(|_| Err(Refusal::new(504, "no response in time")));
            forgotten.map_err(|refusal| (name.clone(), refusal))?;
        }
        Ok(())
    }

    /// Notes an outcome at the breaker of the destination. That Postgres is away does not change the outcome.
    async fn note(&self, destination: &str, outcome: Option<&Outcome>, uow: i64) {
        let noted = match outcome {
            Some(Outcome::Failed(refusal)) if refusal.is_passing() => self.note_failure(destination, uow).await,
            // Only one of the units that are stored together notes it: it changes the rows of all that wait.
            Some(Outcome::Stored) if self.troubled().remove(destination).is_some() => {
                self.note_success(destination).await
            }
            _ => Ok(()),
        };
        if let Err(error) = noted {
            warn!(destination, error = format!("{error:#}"), "the breaker did not learn of an outcome");
        }
    }

    async fn note_failure(&self, destination: &str, uow: i64) -> Result<()> {
        let is_open = units::note_failure(&*self.client().await?, destination, uow).await?;
        self.troubled().insert(destination.to_owned(), is_open);
        Ok(())
    }

    async fn note_success(&self, destination: &str) -> Result<()> {
        units::note_success(&*self.client().await?, destination).await
    }

    async fn client(&self) -> Result<impl std::ops::DerefMut<Target = Client>> {
        connect::postgres::take(&self.pool).await
    }
}

fn stored_nothing(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Stored => false,
        Outcome::Declined => true,
        Outcome::Failed(refusal) => refusal.is_clear,
    }
}

fn is_of_phase(way: &Way, is_told: bool) -> bool {
    match way {
        Way::Store(_) => !is_told,
        Way::Tell(_) => is_told,
        Way::Row(_) => false,
    }
}

fn part_of(destination: &str, outcome: Option<Outcome>) -> PartOutcome {
    let state = outcome.as_ref().map_or("pending", Outcome::state);
    let refusal = match outcome {
        Some(Outcome::Failed(refusal)) => Some(refusal),
        _ => None,
    };
    let status = refusal.as_ref().map(|refusal| refusal.status as i16);
    PartOutcome { destination: destination.to_owned(), state, status, error: refusal.map(|refusal| refusal.reason) }
}

/// The failure of an attempt that has been taken up too often.
fn worn_out(taken: &Taken) -> Option<Refusal> {
    let reason = "the attempt was taken up too often: it may end the process";
    (taken.take_count > units::TAKE_COUNT_MAX).then(|| Refusal::new(500, reason))
}

/// An attempt that fails before this worker begins any part.
fn not_begun(taken: &Taken, failure: Refusal) -> Attempted {
    let parts = taken.destinations.iter().map(|name| part_of(name, None)).collect();
    // Postgres may have been put back, and an attempt of this number may have stored everything.
    Attempted { parts, untouched: HashSet::new(), row: None, failure: Some(failure) }
}
