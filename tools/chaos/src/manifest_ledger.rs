//! The ledger of the clients of the container: every manifest that they filed, with what they were told about it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use simulator::Manifest;

use crate::history::History;

/// The field of a document with the id of its trace. So a document is found wherever it is stored.
pub(crate) const FILED_AS: &str = "filed_as";

/// A manifest that a client filed.
#[derive(Debug, Clone)]
pub(crate) struct Filed {
    pub manifest: Manifest,
    /// A destination refuses it.
    pub is_refused: bool,
    /// How often it was sent.
    pub send_count: usize,
    /// The units that responses named, each with its last state.
    pub told: BTreeMap<i64, String>,
}

/// A document that a client has read.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub trace_id: u128,
    /// The newest unit about the ride that some client knew as committed when the request was sent.
    pub min_uow: Option<i64>,
}

/// All that clients sent and saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// By the id of the trace.
    pub filed: HashMap<u128, Filed>,
    pub shown: Vec<Shown>,
    /// The newest unit of each ride that was told to be committed.
    newest: HashMap<i64, i64>,
}

/// All that clients sent and saw.
#[derive(Default)]
pub(crate) struct ManifestLedger(Mutex<Seen>);

impl ManifestLedger {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client is about to send a manifest, for the first time or again.
    pub fn send(&self, trace_id: u128, manifest: &Manifest, is_refused: bool) {
        let new = || Filed { manifest: manifest.clone(), is_refused, send_count: 0, told: BTreeMap::new() };
        self.lock().filed.entry(trace_id).or_insert_with(new).send_count += 1;
    }

    /// A response names a unit and its state.
    pub fn told(&self, trace_id: u128, uow: i64, state: &str, history: &History) {
        let mut seen = self.lock();
        let Some(filed) = seen.filed.get_mut(&trace_id) else { return };
        let before = filed.told.insert(uow, state.to_owned());
        if let Some(before) = before.filter(|before| is_final(before) && before != state) {
            history.violation(&format!("C2: unit {uow} was told to be {before}, and then {state}"));
        }
        if filed.manifest.key.is_some() && filed.told.len() > 1 {
            history.violation(&format!("C1: a key has several units: {filed:?}"));
        }
        let ride_id = filed.manifest.document["ride_id"].as_i64();
        if let (Some(ride_id), "committed") = (ride_id, state) {
            let newest = seen.newest.entry(ride_id).or_insert(uow);
            *newest = uow.max(*newest);
        }
    }

    /// The newest unit about this ride that some client knows as committed.
    pub fn newest(&self, ride_id: i64) -> Option<i64> {
        self.lock().newest.get(&ride_id).copied()
    }

    /// A client read this document. `false`: it is no document that a client has filed.
    pub fn shown(&self, document: &Value, min_uow: Option<i64>) -> bool {
        let Some(trace_id) = trace_id_of(document) else { return false };
        self.lock().shown.push(Shown { trace_id, min_uow });
        true
    }

    /// A copy of everything, for the comparison at the end.
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }
}

/// Whether the state of a unit never changes again.
pub(crate) fn is_final(state: &str) -> bool {
    matches!(state, "committed" | "rejected" | "dropped")
}

/// The id of the trace of the request that filed this document.
pub(crate) fn trace_id_of(document: &Value) -> Option<u128> {
    u128::from_str_radix(document[FILED_AS].as_str()?, 16).ok()
}

impl fmt::Display for ManifestLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.lock();
        let count = |state| seen.filed.values().filter(|filed| filed.told.values().any(|told| told == state)).count();
        let untold = seen.filed.values().filter(|filed| !filed.told.values().any(|told| is_final(told)));
        write!(
            f,
            "{} manifests filed, {} told to be committed, {} rejected, {} of unknown fate; {} read",
            seen.filed.len(),
            count("committed"),
            count("rejected"),
            untold.count(),
            seen.shown.len()
        )
    }
}
