//! The results of one step of a consumer: progress, or a reason to start over from the last commit.

/// A reason to start over from the last commit that is no failure of a server.
#[derive(Debug, thiserror::Error)]
pub enum Interruption {
    /// [`Fault::CrashBeforeCommit`](crate::Fault::CrashBeforeCommit) was injected.
    #[error("crash simulated: records folded but transaction aborted")]
    Crash,
    /// The checkpoint is not where this process left it, or the state is not as it was.
    #[error(
        "another process changed this consumer's state: it replayed a dead letter, or it runs under the same name (two \
         processes of one name take turns, and one is enough)"
    )]
    Fenced,
    /// A record that was read from the stream is not the record that Postgres has at its offset.
    #[error("an entry of the stream is not of this log")]
    Unvouched,
    /// The baseline was about to pass a consumer that has just registered.
    #[error("a consumer that is not this far has just registered")]
    HeldBack,
    /// An operator unregistered this consumer while it ran.
    #[error("this consumer was unregistered; start it again to register it anew")]
    Unregistered,
}

/// The work of one [`Consumer::run_once`](crate::Consumer::run_once). All counts are of committed work.
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
