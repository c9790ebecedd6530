//! The units of work in Postgres: accepting them, taking them, and the verdict.
//!
//! Every statement that changes a unit compares its lease. So a worker whose lease has run out changes nothing any more, whatever
//! it finds out later, and the unit obeys its new holder (C2).

mod accept;
mod breakers;
mod commit;
mod files;
mod groups;
mod old;
mod past;
mod settle;
mod show;
mod take;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

pub use accept::{Accepted, NewUnit, accept};
pub use breakers::{
    Breaker, choose_canaries, note_failure, note_success, open_destinations, read_breakers, register, release_canary,
};
pub use commit::{Row, Verdict};
pub use files::{
    Folders, final_files, known_folders, note_gone, open_spools_at, register_folders, register_spool, states_of_files,
};
pub use groups::{Accepts, Unwritten, Verdicts, start_queues};
pub use old::{Old, delete, old};
pub use past::{Ended, PAST_LEN, committed, committed_rows, ended, in_flight, undone};
pub use settle::{Ending, Held, PartOutcome, finish_rollback, put_off, roll_back};
pub use show::{AttemptPart, Shown, ShownPart, show};
pub use take::{Taken, take};

/// The longest time-out of a destination, for a store and for an undo.
pub const TIME_OUT_MAX: Duration = Duration::from_secs(20);

/// How long a part waits for its turn at a destination that stores as many units as it may.
pub const TURN_WAIT: Duration = Duration::from_secs(5);

/// The part of the work on a unit that belongs to no destination: its file is read, and the verdict is written.
const OWN_WAIT: Duration = Duration::from_secs(15);

/// The longest work on a unit: the stores, the webhooks, the undos, and our own part. Work that takes longer is given up.
pub const WORK_WAIT: Duration =
    TURN_WAIT.saturating_add(TIME_OUT_MAX).saturating_mul(2).saturating_add(TIME_OUT_MAX.saturating_add(OWN_WAIT));

/// How long a unit is leased: longer than the work, so that two workers have a unit only if one of them was stopped.
pub const LEASE: Duration = WORK_WAIT.saturating_add(Duration::from_secs(5));

/// How often an attempt is taken up before it counts as failed: it may be the cause that the process ends.
pub const TAKE_COUNT_MAX: i32 = 5;

/// Attempts before a unit is left to a person.
pub const ATTEMPT_COUNT_MAX: i32 = 8;

/// The longest reason that is stored, in characters.
const ERROR_LEN_MAX: usize = 1000;

/// The state of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits for a worker.
    Queued,
    /// A worker has it.
    FannedOut,
    /// A part has failed, and all are being taken back.
    RollingBack,
    /// All parts are taken back. The next attempt comes later.
    FailQueued,
    /// Its last attempt has failed. A person retries it or drops it.
    Dead,
    /// All destinations that want it have it.
    Committed,
    /// No destination has it: the request is at fault.
    Rejected,
    /// No destination has it: a person has dropped it.
    Dropped,
}

impl State {
    const NAMES: [(Self, &'static str); 8] = [
        (Self::Queued, "queued"),
        (Self::FannedOut, "fanned_out"),
        (Self::RollingBack, "rolling_back"),
        (Self::FailQueued, "fail_queued"),
        (Self::Dead, "dead"),
        (Self::Committed, "committed"),
        (Self::Rejected, "rejected"),
        (Self::Dropped, "dropped"),
    ];

    /// Its name in the table and in responses.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(state, _)| *state == self).map_or("", |(_, name)| name)
    }

    /// All names, in the order in which a unit may have them.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().map(|(_, name)| *name)
    }

    /// Whether it never changes again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::Rejected | Self::Dropped)
    }
}

impl FromStr for State {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state).ok_or(Unknown)
    }
}

impl fmt::Display for State {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A state that only a newer version knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the unit has a state of a newer version")]
pub struct Unknown;

/// A reason as it is stored: Postgres takes no NUL, and the column has a limit.
fn bounded(reason: &str) -> String {
    reason.replace('\0', " ").chars().take(ERROR_LEN_MAX).collect()
}

/// The pause before the next attempt: 1 s, doubled with each, at most 5 minutes.
pub fn pause_after(attempt: i32) -> Duration {
    Duration::from_secs(1 << (attempt - 1).clamp(0, 9)).min(Duration::from_secs(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_a_name_that_is_read_back() {
        for (state, name) in State::NAMES {
            assert_eq!((state.name(), name.parse()), (name, Ok(state)));
        }
        assert_eq!("spooled".parse::<State>(), Err(Unknown));
    }

    /// The wait for a turn and the store are what [`crate::fan_out`] does in each of its two phases. The undos come last.
    #[test]
    fn a_lease_outlasts_the_longest_work() {
        let phase = TURN_WAIT + TIME_OUT_MAX;
        let (stores, webhooks, undos) = (phase, phase, TIME_OUT_MAX);
        assert!(
            stores + webhooks + undos + Duration::from_secs(10) <= WORK_WAIT,
            "time is left for Postgres and the spool"
        );
        assert!(WORK_WAIT < LEASE);
        assert_eq!(LEASE.as_secs(), 90, "the longest pause after a process was killed");
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pauses: Vec<u64> = [1, 2, 3, 9, 10, 100].map(|attempt| pause_after(attempt).as_secs()).to_vec();
        assert_eq!(pauses, [1, 2, 4, 256, 300, 300]);
    }

    #[test]
    fn a_reason_fits_its_column() {
        assert_eq!(bounded("a\0b"), "a b");
        assert_eq!(bounded(&"é".repeat(2000)).chars().count(), ERROR_LEN_MAX);
    }
}
