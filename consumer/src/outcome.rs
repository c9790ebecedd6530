//! The results of one step of a consumer: progress, or a reason to start over from the last commit.

use pglog::Partition;

use crate::advice::Whose;
use crate::fold::{FoldId, STATE_LEN_MAX};

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
    /// A record that was read from the stream or from a standby is not the record that Postgres has at its offset.
    #[error("a record of the stream, or of the standby, is not of this log")]
    Unvouched,
    /// The baseline was about to pass a consumer that has just registered.
    #[error("a consumer that is not this far has just registered")]
    HeldBack,
    /// The registration of this consumer is gone.
    #[error(
        "this consumer was unregistered while it ran, or the tables were restored from a time before it was registered"
    )]
    Unregistered,
    /// The consumer was unregistered, and is not registered anew by itself.
    #[error(
        "consumer {} was unregistered, and does not come back by itself. To register it anew, run {}, or begin with the state \
         of a consumer OTHER of the same fold ({}). Then start it again",
        whose.name, whose.command(&["--fold", fold.name, "--register"]), whose.command(&["--copy-from", "OTHER"])
    )]
    StaysUnregistered {
        /// The consumer.
        whose: Whose,
        /// Its fold.
        fold: FoldId,
    },
    /// The state is not where the process looks for it.
    #[error("consumer {} keeps its state in a database of its own: set STATE_DATABASE_URL, or choose another name", whose.name)]
    KeptElsewhere {
        /// The consumer.
        whose: Whose,
    },
    /// The state is in the log's own database.
    #[error("consumer {} keeps its state in the log's own database: leave STATE_DATABASE_URL out, or choose another name", whose.name)]
    KeptInLog {
        /// The consumer.
        whose: Whose,
    },
    /// The log knows the consumer, and its own database does not.
    #[error(
        "consumer {} is registered, and its state is not in STATE_DATABASE_URL: was another database given, or was this one \
         emptied? If the state is lost, run {}, and begin anew ({})",
        whose.name, whose.command(&["--unregister"]), whose.command(&["--fold", fold.name, "--register"])
    )]
    StateLost {
        /// The consumer.
        whose: Whose,
        /// Its fold.
        fold: FoldId,
    },
    /// The tables of the own database are missing.
    #[error("the tables are missing in STATE_DATABASE_URL: apply consumer/home.sql there")]
    Homeless,
    /// The log does not have what was folded.
    #[error(
        "the log was put back to an older state: consumer {} has folded up to offset {offset} of partition {partition}, and the log \
         has another record there, or none. Its state tells of records that are gone: put its own database back as well, or begin \
         anew, with the same STATE_DATABASE_URL: run {}, then {}",
        whose.name, whose.command(&["--unregister"]), whose.command(&["--fold", fold.name, "--register"])
    )]
    PutBack {
        /// The consumer.
        whose: Whose,
        /// Its fold.
        fold: FoldId,
        /// The partition.
        partition: pglog::Partition,
        /// Where its state is.
        offset: i64,
    },
    /// The consumer is registered with another fold, or with another version of it.
    #[error(transparent)]
    OtherFold(#[from] crate::other_fold::OtherFold),
    /// A consumer that begins here would lack records.
    #[error(
        "consumer {} cannot begin at offset {}: records before {first_retained} are reaped, and the history does not have all of them \
         (partition {partition}). Begin with the state of a consumer OTHER of the same fold ({}). A fold with rows can also leave out the \
         reaped records ({})",
        whose.name, last_offset + 1, whose.command(&["--copy-from", "OTHER"]),
        whose.command(&["--fold", fold.name, "--from", "retained"])
    )]
    Gone {
        /// The consumer.
        whose: Whose,
        /// The partition that lacks records.
        partition: Partition,
        /// Its fold.
        fold: FoldId,
        /// Where it was to begin: its checkpoint.
        last_offset: i64,
        /// The lowest offset that is not reaped.
        first_retained: i64,
    },
    /// A state that reflects some records only is no state of its fold.
    #[error(
        "the state of fold {fold} would lack the reaped records: begin with --from baseline or --from start. Only a fold with \
         rows can leave them out"
    )]
    Partial {
        /// The fold.
        fold: FoldId,
    },
    /// A model is built from tables, and never from earlier records.
    #[error("fold {fold} begins at the head of the log, and reads from tables what happened before: leave out --from")]
    OnlyAtHead {
        /// The fold.
        fold: FoldId,
    },
    /// The rows of a consumer would stay when it is unregistered.
    #[error(
        "fold {fold} keeps rows of each consumer in {table}, and Postgres would not delete them together with the \
         registration. Nothing is registered. Make the table if it is missing, delete rows of consumers that are not \
         registered, and run as its owner: ALTER TABLE {table} ADD FOREIGN KEY (name, partition) REFERENCES checkpoints ON \
         DELETE CASCADE"
    )]
    Unbound {
        /// The fold.
        fold: FoldId,
        /// The table that does not reference `checkpoints`.
        table: String,
    },
    /// A table of the fold is missing, or the role may not use it.
    #[error(
        "fold {fold} cannot use its tables: {reason}. Nothing is registered. Apply schema.sql and ops/roles.sql, or the file that \
         makes the fold's own tables"
    )]
    Unwritable {
        /// The fold.
        fold: FoldId,
        /// The reason, from Postgres.
        reason: String,
    },
    /// The fold's state does not fit into the row of the checkpoint.
    #[error(
        "the state of fold {fold} has {len} bytes, and the limit is {STATE_LEN_MAX}: let the fold write rows into a table of \
         its own (RowFold)"
    )]
    StateTooLong {
        /// The fold.
        fold: FoldId,
        /// The length of its state, in bytes of JSON.
        len: usize,
    },
}

impl Interruption {
    /// The error of a fold whose first statements fail. It is final if Postgres refused them because of a table, a column or
    /// a privilege (class 42).
    pub(crate) fn refused(fold: FoldId, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref().and_then(tokio_postgres::Error::as_db_error) {
            Some(refusal) if refusal.code().code().starts_with("42") => {
                Self::Unwritable { fold, reason: refusal.message().to_owned() }.into()
            }
            _ => error,
        }
    }

    /// Whether another attempt cannot help, because a person must first do what the text says.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Unregistered
            | Self::StaysUnregistered { .. }
            | Self::OtherFold(_)
            | Self::KeptElsewhere { .. }
            | Self::KeptInLog { .. }
            | Self::StateLost { .. }
            | Self::Homeless
            | Self::PutBack { .. }
            | Self::Gone { .. }
            | Self::Partial { .. }
            | Self::OnlyAtHead { .. }
            | Self::Unbound { .. }
            | Self::Unwritable { .. }
            | Self::StateTooLong { .. } => true,
            Self::Crash | Self::Fenced | Self::Unvouched | Self::HeldBack => false,
        }
    }
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
    /// The records that come next lie deep in a huge batch, and were not reached yet: the next step goes on.
    pub is_searching: bool,
    /// The fold has more to do at once to keep its model: the next step goes on.
    pub is_tending: bool,
}

impl Progress {
    /// Adds the work in another partition.
    pub(crate) fn add(&mut self, other: &Self) {
        self.applied_count += other.applied_count;
        self.passed_count += other.passed_count;
        self.dead_letter_count += other.dead_letter_count;
        self.healed_count += other.healed_count;
        self.duplicate_count += other.duplicate_count;
        self.rejected_count += other.rejected_count;
        self.blocked |= other.blocked;
        self.is_searching |= other.is_searching;
        self.is_tending |= other.is_tending;
    }

    /// Records by which the checkpoint moved.
    pub fn record_count(&self) -> usize {
        self.applied_count + self.passed_count + self.dead_letter_count
    }
}
