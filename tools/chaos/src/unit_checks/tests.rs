//! Each difference is seen: of a state that is right, one thing is changed at a time.

use serde_json::json;

use super::*;
use crate::manifest_ledger::{FILED_AS, Shown};
use crate::unit_records::Verdict;

/// A committed unit with a photo, whose first attempt failed; a rejected unit; and a newer committed unit of the same ride.
struct State {
    units: Vec<Unit>,
    stores: Stores,
    seen: Seen,
    verdicts: Vec<(i64, Verdict)>,
}

fn right() -> State {
    let mut state = State { units: Vec::new(), stores: Stores::default(), seen: Seen::default(), verdicts: Vec::new() };
    state.add(1, "committed", 2, Some(b"photo"));
    state.add(2, "rejected", 1, None);
    state.add(3, "committed", 1, None);
    state.stores.board.insert("7".to_owned(), 3);
    state.seen.shown.push(Shown { trace_id: 3, min_uow: Some(1) });
    state
}

impl State {
    fn add(&mut self, uow: i64, state: &str, attempt: i32, photo: Option<&[u8]>) {
        let is_committed = state == "committed";
        let status = if is_committed { 200 } else { 422 };
        let passengers = vec!["Ada"; uow as usize];
        let manifest = Manifest {
            document: json!({ "ride_id": 7, "passengers": passengers, FILED_AS: format!("{uow:032x}") }),
            photo: photo.map(<[u8]>::to_vec),
            key: Some(format!("client-{uow}")),
        };
        let key = format!("key-{uow}");
        if is_committed {
            self.stores.rows.insert(uow, manifest.document.clone());
            self.stores.photos.extend(photo.map(|photo| ((key.clone(), attempt), hash_of(photo))));
            self.stores.notices.push((key.clone(), attempt));
        }
        let action = if is_committed { "commit" } else { state };
        self.verdicts.push((uow, Verdict { action: action.to_owned(), attempt, status }));
        self.units.push(Unit {
            uow,
            key,
            state: state.to_owned(),
            attempt,
            status: Some(status),
            subject: "7".to_owned(),
            idempotency_key: manifest.key.clone(),
            trace_id: Some(uow as u128),
        });
        let told = BTreeMap::from([(uow, state.to_owned())]);
        self.seen.filed.insert(uow as u128, Filed { manifest, is_refused: !is_committed, send_count: 1, told });
    }

    /// The differences after a change.
    fn after(change: impl FnOnce(&mut Self)) -> Vec<String> {
        let mut state = right();
        change(&mut state);
        differences(&state.units, &state.stores, &state.seen, &UnitRecords::with(state.verdicts))
    }
}

#[track_caller]
fn assert_seen(words: &str, change: impl FnOnce(&mut State)) {
    let texts = State::after(change);
    assert!(texts.iter().any(|text| text.starts_with(words)), "{words}: {texts:?}");
}

#[test]
fn nothing_is_wrong_with_what_is_right() {
    assert_eq!(State::after(|_| {}), Vec::<String>::new());
    // The board may wait for a rebuild, and a request without a response may have no unit.
    let unanswered = |state: &mut State| {
        let filed = Filed { told: BTreeMap::new(), ..state.seen.filed[&1].clone() };
        state.seen.filed.insert(9, filed);
    };
    assert_eq!(State::after(unanswered), Vec::<String>::new());
}

#[test]
fn a_destination_that_lacks_a_part_is_seen() {
    assert_seen("C3: Unit { uow: 3", |state| _ = state.stores.rows.remove(&3));
    assert_seen("C3: Unit { uow: 3", |state| _ = state.stores.rows.insert(3, json!({ "ride_id": 7 })));
    assert_seen("C3: Unit { uow: 1", |state| state.stores.photos.clear());
    assert_seen("C3: Unit { uow: 1", |state| state.stores.photos.values_mut().for_each(|hash| *hash += 1));
    assert_seen("C3: the receiver of notices was not told", |state| _ = state.stores.notices.pop());
    assert_seen("C3: the board shows", |state| state.stores.board.clear());
    assert_seen("C3: the board shows", |state| _ = state.stores.board.insert("7".to_owned(), 1));
}

#[test]
fn a_destination_that_keeps_too_much_is_seen() {
    assert_seen("C3: manifests has a row of unit 2", |state| _ = state.stores.rows.insert(2, json!({})));
    let first = ("key-1".to_owned(), 1);
    assert_seen("C3: there is a photo", |state| _ = state.stores.photos.insert(first.clone(), 5));
    assert_seen("C3: the receiver of notices keeps", |state| state.stores.notices.push(first.clone()));
    assert_seen("C3: the board shows", |state| _ = state.stores.board.insert("8".to_owned(), 2));
}

#[test]
fn a_unit_that_is_forgotten_or_false_is_seen() {
    let remove = |state: &mut State| state.units.retain(|unit| unit.uow != 3);
    assert_seen("C1: unit 3 is gone", remove);
    assert_seen("C1: Filed", remove);
    assert_seen("C1: Unit", |state| _ = state.seen.filed.remove(&3));
    assert_seen("C1: Unit", |state| state.units[2].state = "fail_queued".to_owned());
    assert_seen("C1: Unit", |state| state.units[1].state = "committed".to_owned());
    assert_seen("C1: Unit", |state| state.units[0].idempotency_key = None);
    assert_seen("C1: Filed", |state| state.seen.filed.get_mut(&2).unwrap().told = [(2, "committed".into())].into());
    let twice = |state: &mut State| state.units.push(Unit { uow: 4, ..state.units[0].clone() });
    assert_seen("C1: Filed", twice);
}

#[test]
fn a_verdict_that_is_not_in_the_log_is_seen() {
    assert_seen("I1: Unit { uow: 2", |state| _ = state.verdicts.remove(1));
    assert_seen("I1: Unit { uow: 1", |state| state.verdicts[0].1.attempt = 1);
    assert_seen("I1: Unit { uow: 1", |state| state.verdicts[0].1.action = "rejected".to_owned());
}

#[test]
fn a_read_of_what_is_not_committed_or_not_the_newest_is_seen() {
    assert_seen("C2: a client read", |state| state.seen.shown[0].trace_id = 2);
    assert_seen("C2: a client read", |state| state.seen.shown[0].trace_id = 9);
    assert_seen("C2: a client read", |state| state.seen.shown[0].min_uow = Some(4));
}
