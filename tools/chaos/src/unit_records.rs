//! The units' records of the log, folded: each attempt has one verdict, and none comes after a final one (C2).

use std::collections::HashMap;

use pglog::Record;
use serde::Deserialize;

use crate::history::History;

/// The data of a record.
#[derive(Debug, Deserialize)]
struct Data {
    uow: i64,
    attempt: i32,
    status: i16,
}

/// The newest verdict of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub action: String,
    pub attempt: i32,
    pub status: i16,
}

/// The records so far: the newest verdict of each unit.
#[derive(Debug, Default)]
pub(crate) struct UnitRecords(HashMap<i64, Verdict>);

impl UnitRecords {
    /// Takes the next record with the object `unit`.
    pub fn take(&mut self, record: &Record<'_>, history: &History) {
        let data: Data = match serde_json::from_str(record.data) {
            Ok(data) => data,
            Err(error) => return history.violation(&format!("record {} is of no unit: {error}", record.offset)),
        };
        let verdict = Verdict { action: record.action.to_owned(), attempt: data.attempt, status: data.status };
        if let Err(fault) = self.add(data.uow, verdict) {
            history.violation(&format!("C2: record {} of unit {} {fault}", record.offset, data.uow));
        }
    }

    /// The newest verdict of a unit.
    pub fn of(&self, uow: i64) -> Option<&Verdict> {
        self.0.get(&uow)
    }

    /// The units with a record.
    pub fn uows(&self) -> impl Iterator<Item = i64> {
        self.0.keys().copied()
    }

    fn add(&mut self, uow: i64, verdict: Verdict) -> Result<(), String> {
        let before = self.0.get(&uow);
        let is_next = match before {
            None => verdict.attempt == 1,
            Some(before) => before.is_passing() && verdict.attempt == before.attempt + 1,
        };
        let is_known = match verdict.action.as_str() {
            "commit" => verdict.status == 200,
            "rejected" => (400..500).contains(&verdict.status),
            _ => verdict.is_passing() && (400..600).contains(&verdict.status),
        };
        let text = format!("is {verdict:?}, and its verdict before is {before:?}");
        self.0.insert(uow, verdict);
        if is_next && is_known { Ok(()) } else { Err(text) }
    }
}

impl Verdict {
    /// Another attempt may follow.
    fn is_passing(&self) -> bool {
        matches!(self.action.as_str(), "fail_queued" | "dead")
    }

    /// The state of a unit that has no later verdict.
    pub fn state(&self) -> &str {
        if self.action == "commit" { "committed" } else { &self.action }
    }
}

#[cfg(test)]
impl UnitRecords {
    /// The records of units whose verdicts are these, without the attempts before.
    pub fn with(verdicts: impl IntoIterator<Item = (i64, Verdict)>) -> Self {
        Self(verdicts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The faults of the verdicts of one unit: action, attempt, status.
    fn faults(verdicts: &[(&str, i32, i16)]) -> usize {
        let mut records = UnitRecords::default();
        let verdicts = verdicts.iter().map(|(action, attempt, status)| Verdict {
            action: (*action).to_owned(),
            attempt: *attempt,
            status: *status,
        });
        verdicts.filter(|verdict| records.add(7, verdict.clone()).is_err()).count()
    }

    #[test]
    fn each_attempt_has_one_verdict() {
        let failed = ("fail_queued", 1, 503);
        assert_eq!(faults(&[failed, ("dead", 2, 504), ("commit", 3, 200)]), 0);
        assert_eq!(faults(&[failed, ("rejected", 2, 422)]), 0);
        assert_eq!(faults(&[failed, failed]), 1, "twice");
        assert_eq!(faults(&[failed, ("commit", 3, 200)]), 1, "an attempt without a verdict");
        assert_eq!(faults(&[("commit", 2, 200)]), 1, "the first is missing");
        assert_eq!(faults(&[("commit", 1, 200), ("fail_queued", 2, 503)]), 1, "after the end");
        assert_eq!(faults(&[("rejected", 1, 422), ("commit", 2, 200)]), 1, "after the end");
        assert_eq!(faults(&[("rejected", 1, 503)]), 1, "no fault of the request");
        assert_eq!(faults(&[("forgotten", 1, 200)]), 1);
    }
}
