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
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tracing::warn;

use crate::destination::{Destination, Outcome, Refusal, Unit, UnitRef};
use crate::units::{self, Breaker, Ending, Held, PartOutcome, Row, State, Taken};

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
    /// All destinations that want the unit have it.
    Committed,
    /// No destination has it.
    Failed(Ending),
    /// Not everything is taken back yet: it is tried again.
    RollingBack,
    /// Another worker has the unit.
    Lost,
}

/// Drives units. Clones are not needed: workers share a reference.
pub struct FanOut {
    places: BTreeMap<String, Place>,
    pool: Pool,
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
    pub fn new(places: BTreeMap<String, Place>, pool: Pool) -> Self {
        Self { places, pool, troubled: Mutex::default() }
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

    /// Does an attempt of a unit, from its beginning or from wherever another worker has left it.
    ///
    /// # Errors
    /// Postgres is away. The unit is taken again when the lease has run out.
    pub async fn drive(&self, taken: &Taken, unit: &Unit) -> Result<End> {
        let held = held(taken);
        if taken.state == State::RollingBack {
            let failure = Refusal::new(taken.status.unwrap_or(500) as u16, taken.error.as_deref().unwrap_or_default());
            return self.take_back(taken, unit.reference(), &failure, &HashSet::new()).await;
        }
        let attempted =
            if taken.take_count > units::TAKE_COUNT_MAX { worn_out(taken) } else { self.attempt(taken, unit).await };
        let mut client = self.client().await?;
        let failure = match attempted.failure {
            Some(failure) => failure,
            None => match units::commit(&mut client, held, attempted.row.as_ref(), &attempted.parts).await {
                Ok(true) => return Ok(End::Committed),
                Ok(false) => return Ok(End::Lost),
                Err(error) => row_refusal(error)?,
            },
        };
        let status = failure.status as i16;
        if !units::roll_back(&mut client, held, status, &failure.reason, &attempted.parts).await? {
            return Ok(End::Lost);
        }
        drop(client);
        let untouched = if taken.take_count == 1 { attempted.untouched } else { HashSet::new() };
        self.take_back(taken, unit.reference(), &failure, &untouched).await
    }

    /// Stores the parts.
    async fn attempt(&self, taken: &Taken, unit: &Unit) -> Attempted {
        let (stopped, mut parts, mut row, mut refusals) = (AtomicBool::new(false), Vec::new(), None, Vec::new());
        let mut untouched = HashSet::new();
        let named = || taken.destinations.iter().map(|name| (name, self.places.get(name)));
        for is_told in [false, true] {
            let running = named().filter(|(_, place)| place.is_some_and(|place| is_of_phase(&place.way, is_told)));
            let stopped = &stopped;
            let mut running: FuturesUnordered<_> =
                running.map(|(name, place)| async move { (name, self.store(place, unit, stopped).await) }).collect();
            while let Some((name, outcome)) = running.next().await {
                if let Some(Outcome::Failed(refusal)) = &outcome {
                    stopped.store(true, Ordering::Relaxed);
                    refusals.push((name.clone(), refusal.clone()));
                }
                self.note(name, outcome.as_ref(), taken.uow).await;
                if outcome.as_ref().is_none_or(stored_nothing) {
                    untouched.insert(name.clone());
                }
                parts.push(part_of(name, outcome));
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
    async fn store(&self, place: Option<&Place>, unit: &Unit, stopped: &AtomicBool) -> Option<Outcome> {
        let place = place?;
        let destination = place.way.undoing()?;
        // An error means that the semaphore is closed, and no code closes it.
        let _permit = place.permits.acquire().await.ok()?;
        if stopped.load(Ordering::Relaxed) {
            return None;
        }
        let stored = timeout(place.time_out, destination.store(unit)).await;
        Some(stored.unwrap_or_else(|_| Outcome::Failed(Refusal::new(504, "no response in time"))))
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
                Ok(Ok(())) => continue,
                Ok(Err(refusal)) => refusal.to_string(),
                Err(_) => "no response in time".to_owned(),
            };
            is_undone = false;
            warn!(uow = taken.uow, attempt = taken.attempt, destination, refusal, "a part is not taken back yet");
        }
        let mut client = self.client().await?;
        if !is_undone {
            let is_ours = units::put_off(&client, held(taken), UNDO_PAUSE_S).await?;
            return Ok(if is_ours { End::RollingBack } else { End::Lost });
        }
        let (status, pause_min) = (failure.status as i16, failure.retry_after.unwrap_or_default());
        let ended = units::finish_rollback(&mut client, held(taken), status, &failure.reason, pause_min).await?;
        Ok(ended.map_or(End::Lost, End::Failed))
    }

    /// Notes an outcome at the breaker of the destination. That Postgres is away does not change the outcome.
    async fn note(&self, destination: &str, outcome: Option<&Outcome>, uow: i64) {
        let is_troubled = self.troubled().contains_key(destination);
        let noted = match outcome {
            Some(Outcome::Failed(refusal)) if refusal.is_passing() => self.note_failure(destination, uow).await,
            Some(Outcome::Stored) if is_troubled => self.note_success(destination).await,
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
        units::note_success(&*self.client().await?, destination).await?;
        self.troubled().remove(destination);
        Ok(())
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
    let (state, refusal) = match outcome {
        None => ("pending", None),
        Some(Outcome::Stored) => ("stored", None),
        Some(Outcome::Declined) => ("declined", None),
        Some(Outcome::Failed(refusal)) if refusal.status == 504 => ("timed_out", Some(refusal)),
        Some(Outcome::Failed(refusal)) if refusal.is_passing() => ("failed_5xx", Some(refusal)),
        Some(Outcome::Failed(refusal)) => ("failed_4xx", Some(refusal)),
    };
    let status = refusal.as_ref().map(|refusal| refusal.status as i16);
    PartOutcome { destination: destination.to_owned(), state, status, error: refusal.map(|refusal| refusal.reason) }
}

/// An attempt that has been taken up too often.
fn worn_out(taken: &Taken) -> Attempted {
    let parts = taken.destinations.iter().map(|name| part_of(name, None)).collect();
    let reason = "the attempt was taken up too often: it may end the process";
    Attempted { parts, untouched: HashSet::new(), row: None, failure: Some(Refusal::new(500, reason)) }
}

/// The refusal of a row by Postgres. Nothing was written then.
///
/// # Errors
/// Any other error: whether the verdict was committed may be unknown.
fn row_refusal(error: anyhow::Error) -> Result<Refusal> {
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code).cloned();
    let is_of_the_data = |code: &SqlState| code.code().starts_with("22") || code.code().starts_with("23");
    match code {
        Some(code) if is_of_the_data(&code) => Ok(Refusal::new(422, format!("the row is refused: {error:#}"))),
        _ => Err(error).context("giving the verdict"),
    }
}

/// The unit as the statements want it.
pub fn held(taken: &Taken) -> Held<'_> {
    Held {
        uow: taken.uow,
        lease: taken.lease,
        attempt: taken.attempt,
        resource: &taken.resource,
        subject: &taken.subject,
        traceparent: taken.traceparent.as_deref(),
    }
}
