//! The register: the state of each attempt that the receiver was told of.

use std::collections::HashMap;

use journal::Journaled;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::webhook::Data;

/// The state of an attempt. It only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// The part is stored.
    Stored,
    /// The part was taken back, or it was never stored and must not be.
    Undone,
}

/// An attempt: a line of the journal, and an element of a response.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Told {
    unit: Uuid,
    attempt: i32,
    uow: i64,
    resource: String,
    subject: String,
    /// The state that the notice asks for; in the register, the state.
    pub state: State,
}

impl Told {
    /// The attempt of a notice.
    pub fn new(data: Data<'_>, state: State) -> Self {
        let Data { unit, attempt, uow, resource, subject, .. } = data;
        Self { unit, attempt, uow, resource: resource.into_owned(), subject: subject.into_owned(), state }
    }
}

/// The attempts, in the order in which they were first told. Only the journal's writing task changes it.
#[derive(Debug, Default)]
pub(super) struct Register {
    told: Vec<Told>,
    /// The index in `told` of each attempt.
    places: HashMap<(Uuid, i32), usize>,
}

impl Register {
    /// The state of an attempt. `None`: the receiver was not told of it.
    pub fn find(&self, told: &Told) -> Option<State> {
        self.places.get(&(told.unit, told.attempt)).map(|place| self.told[*place].state)
    }

    /// The attempts after the first `after`, at most `limit`.
    pub fn page(&self, after: usize, limit: usize) -> &[Told] {
        let rest = self.told.get(after..).unwrap_or_default();
        &rest[..limit.min(rest.len())]
    }

    /// The count of all attempts.
    pub fn len(&self) -> usize {
        self.told.len()
    }
}

impl Journaled for Register {
    type Entry = Told;
    /// The state after the entry.
    type Outcome = State;

    fn apply(&mut self, told: Told) -> State {
        let place = *self.places.entry((told.unit, told.attempt)).or_insert(self.told.len());
        match self.told.get_mut(place) {
            Some(known) => known.state = known.state.max(told.state),
            None => self.told.push(told),
        }
        self.told[place].state
    }
}
