//! What one step of a consumer can be told to do wrong, and what can come of it.

use common::fault::Dice;

/// What to do wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// Nothing.
    None,
    /// Give up after folding a page, before it is committed, and start over.
    CrashBeforeCommit,
    /// SIGKILL after folding a page, before it is committed.
    DieBeforeCommit,
    /// SIGKILL when the commit was sent and is not answered yet.
    DieAtCommit,
    /// SIGKILL when the commit was answered, before anything else.
    DieAfterCommit,
}

impl common::fault::Injectable for Fault {
    fn roll(dice: &mut Dice) -> Self {
        if dice.strikes() { Self::ordered() } else { Self::None }
    }

    fn ordered() -> Self {
        Self::CrashBeforeCommit
    }
}

/// Reasons to start over from the last commit that are nobody's failure.
#[derive(Debug, thiserror::Error)]
pub enum Interruption {
    /// [`Fault::CrashBeforeCommit`] struck.
    #[error("crash simulated: records folded but transaction aborted")]
    Crash,
    /// The checkpoint is not where this process left it, or the state is not as it was.
    #[error(
        "the state was changed by somebody else: a dead letter was replayed, or another process runs under this name \
         (two of one name take turns, and only one is needed)"
    )]
    Fenced,
    /// A record that was read from the stream is not the one that Postgres has at its offset.
    #[error("an entry of the stream is not of this log")]
    Unvouched,
    /// The baseline was about to pass a consumer that has just registered.
    #[error("a consumer has registered that is not this far")]
    HeldBack,
    /// Somebody unregistered this consumer while it ran.
    #[error("this consumer was unregistered; start it again to register it anew")]
    Unregistered,
}

/// What [`Consumer::run_once`](crate::Consumer::run_once) did. All counts are of committed work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records folded into the state.
    pub applied_count: usize,
    /// Records of other kinds, passed over.
    pub passed_count: usize,
    /// Records put with the dead letters.
    pub dead_letter_count: usize,
    /// How many of all these came from Postgres because the stream lacked them.
    pub healed_count: usize,
    /// Entries skipped because their offset had been passed.
    pub duplicate_count: usize,
    /// Entries that are not of this log, seen for the first time.
    pub rejected_count: usize,
    /// The stream held entries, none of them could be used, and Postgres had nothing more either.
    pub blocked: bool,
}

impl Progress {
    /// Records by which the checkpoint moved.
    pub fn record_count(&self) -> usize {
        self.applied_count + self.passed_count + self.dead_letter_count
    }
}
