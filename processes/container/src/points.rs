//! The steps of a unit at which tests and chaos kill or stop the process.
//!
//! ```text
//! body-received ─▶ file-synced ─▶ accepted ─▶ taken ─▶ first-stored ─▶ all-stored ─▶ told ─▶ committed ─▶ file-deleted
//!                       └▶ file-found ─▶ file-taken                                    └▶ rolling-back ─▶ first-undone
//!                                                                                         ─▶ all-undone ─▶ rolled-back
//! ```
//!
//! The flags count for the whole process. They are kept in a static, so that no step has to carry them.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use nix::sys::signal::{Signal, raise};

/// A step of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Point {
    /// The body has arrived, and its file is not complete.
    BodyReceived,
    /// The file is complete and synced, and the unit has no row.
    FileSynced,
    /// The unit has its row.
    Accepted,
    /// A unit that was due is taken.
    Taken,
    /// The first destination has stored its part.
    FirstStored,
    /// All destinations have stored their parts, and no webhook is told.
    AllStored,
    /// The webhooks are told, and there is no verdict.
    Told,
    /// A photo is written, and its file has no name.
    FileUnnamed,
    /// The verdict that the unit is kept is committed.
    Committed,
    /// The verdict that the attempt has failed is committed.
    RollingBack,
    /// A tombstone is about to replace a file.
    FileBuried,
    /// The first part is taken back.
    FirstUndone,
    /// All parts are taken back, and the rollback has not ended.
    AllUndone,
    /// The end of the rollback is committed.
    RolledBack,
    /// The unit is final, and its file is deleted. The client has no response yet.
    FileDeleted,
    /// The sweep has found a file without a unit.
    FileFound,
    /// The sweep has made a unit of a file.
    FileTaken,
    /// The sweep has deleted files, and they are not noted as gone.
    FilesSwept,
}

/// `POINT` or `POINT:SUBJECT`: at this step of any unit, or of the units about this subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    point: Point,
    subject: Option<String>,
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (point, subject) = match text.split_once(':') {
            Some((point, subject)) => (point, Some(subject.to_owned())),
            None => (text, None),
        };
        Ok(Self { point: Point::from_str(point, false)?, subject })
    }
}

impl At {
    fn is(&self, point: Point, subject: &str) -> bool {
        self.point == point && self.subject.as_deref().is_none_or(|wanted| wanted == subject)
    }
}

/// A signal that the process sends to itself, once.
struct Strike {
    at: At,
    signal: Signal,
    is_armed: AtomicBool,
}

static STRIKES: OnceLock<Vec<Strike>> = OnceLock::new();

/// Arms the points of this process: it dies at the first, and stops itself at the second.
pub(crate) fn arm(die_at: Option<At>, stop_at: Option<At>) {
    let strikes = [(die_at, Signal::SIGKILL), (stop_at, Signal::SIGSTOP)].into_iter();
    let strikes = strikes.filter_map(|(at, signal)| Some(Strike { at: at?, signal, is_armed: true.into() }));
    // An error means that they are armed already.
    let _ = STRIKES.set(strikes.collect());
}

/// A unit about this subject has come to this point.
pub(crate) fn pass(point: Point, subject: &str) {
    for strike in STRIKES.get().into_iter().flatten().filter(|strike| strike.at.is(point, subject)) {
        if strike.is_armed.swap(false, Ordering::Relaxed) {
            let _ = raise(strike.signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_may_be_of_one_subject() {
        let at = |point, subject: Option<&str>| Ok(At { point, subject: subject.map(str::to_owned) });
        assert_eq!("told".parse(), at(Point::Told, None));
        assert_eq!("first-undone:a:7".parse(), at(Point::FirstUndone, Some("a:7")));
        assert_eq!("lunch".parse::<At>(), Err("invalid variant: lunch".to_owned()));
    }

    #[test]
    fn an_unarmed_point_is_passed() {
        pass(Point::Told, "7");
    }
}
