//! The faults that can be injected into a consumer. None of them may change the state.

use common::fault::{Dice, Injectable};

/// A fault of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing goes wrong.
    None,
    /// Give up after folding a page, before it is committed, and start over.
    CrashBeforeCommit,
    /// SIGKILL after folding a page, before it is committed.
    DieBeforeCommit,
    /// SIGKILL after the commit was sent, before it is answered.
    DieAtCommit,
    /// SIGKILL after the commit was answered, before anything else happens.
    DieAfterCommit,
}

impl Injectable for Fault {
    fn roll(dice: &mut Dice) -> Self {
        if dice.strikes() { Self::ordered() } else { Self::None }
    }

    fn ordered() -> Self {
        Self::CrashBeforeCommit
    }
}
