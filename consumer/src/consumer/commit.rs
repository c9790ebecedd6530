//! Folding records and committing the result with the new checkpoint (I5).
//!
//! A commit takes one of two ways. A state is committed by one statement, which moves checkpoint and state and writes the dead
//! letters. Rows, and moves that need a permission, are committed by a transaction of several statements. A fault is injected
//! at the same two points of both ways: before the commit is sent, and before it is answered. A model is changed before the
//! first point.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use common::fault::die;
use common::tasks::after_all_other_tasks;
use pglog::Record;
use stream::codec::EntryId;
use tokio_postgres::error::SqlState;
use tracing::{debug, warn};

use super::guard::Guard;
use super::loaded::Loaded;
use super::session::ConsumerSession;
use crate::checkpoint::{self, Advance, Counts, Home, Registration, advance_all};
use crate::fault::Fault;
use crate::fold::{CheckpointKey, LogPlace, PageEnd, Rejection};
use crate::kind::{Fold, Kind};
use crate::letters::Letters;
use crate::outcome::{Interruption, Progress};
use crate::place::Place;
use crate::trace::trace_batch;
use crate::vouch::Tokens;

/// Where records were read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Postgres has to vouch for their tokens before they are committed.
    Stream,
    Postgres,
}

/// The half of a step that works on Postgres: it folds and commits records that follow the checkpoint.
pub(super) struct Committer<'a, F> {
    pub key: &'a CheckpointKey,
    /// The partition in log lines.
    pub label: Option<i32>,
    pub guard: Guard,
    pub fold: &'a mut F,
    pub session: &'a mut ConsumerSession,
    pub loaded: &'a mut Loaded,
    /// Counted since the last commit, and written with the next one.
    pub counts: &'a mut Counts,
    /// Crashes of this consumer that are not counted in any partition yet.
    pub crash_count: &'a mut i64,
    /// Entries up to here were counted when they were rejected.
    pub rejected_to: &'a mut EntryId,
    /// Injected into the step's first commit.
    pub fault: &'a mut Fault,
    pub progress: &'a mut Progress,
}

/// Records that were folded in memory.
pub(super) struct Folded<'a> {
    pub applied_count: usize,
    pub letters: Letters<'a>,
}

impl<F: Fold> Committer<'_, F> {
    /// Folds one page of records that follow the checkpoint without a gap, and commits the new state with the new checkpoint. If
    /// the page was `refused`, it has one record, which becomes a dead letter.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`]; a [`Rejection`] if Postgres refuses what a row holds. The state in memory is
    /// then ahead of the committed one.
    pub async fn commit_page(
        &mut self,
        records: &[Record<'_>],
        source: Source,
        refused: Option<&Rejection>,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(()) };
        let began_at = Instant::now();
        let old = self.loaded.checkpoint;
        assert_eq!(first.offset, old.last_offset + 1, "records are folded without a gap");
        assert_eq!(last.offset - old.last_offset, records.len() as i64, "records are folded without a gap");
        let folded = self.fold_records(records, refused);
        let (applied_count, letter_count) = (folded.applied_count, folded.letters.len());
        let tokens = match source {
            Source::Stream => Tokens::of(records),
            // Elsewhere the token of the last record is kept beside the state.
            Source::Postgres if self.session.is_elsewhere() => Tokens::of(records),
            Source::Postgres => Tokens::default(),
        };
        let is_changed = applied_count > 0;
        let end = PageEnd { from: self.place(), offset: last.offset, token: last.token };
        self.fold.settle(&self.session.client, end).await.context("bringing the model up to date")?;
        let state = if is_changed { self.fold.state()? } else { None };
        let counts = Counts { crash_count: *self.crash_count, ..*self.counts };
        let advance = Advance { old, new_offset: last.offset, state, counts, tokens, letters: folded.letters };
        let has_rows = is_changed && matches!(self.fold.kind(), Kind::Rows { .. });
        let is_committed = if has_rows || self.guard != Guard::None {
            self.commit_in_steps(&advance, has_rows).await?
        } else {
            self.commit_at_once(&advance).await?
        };
        if !is_committed {
            return Err(self.find_conflict(source).await?.into());
        }
        if *self.fault == Fault::DieAfterCommit {
            die();
        }
        *self.fault = Fault::None;
        *self.crash_count = 0;
        self.note_commit(records, applied_count, letter_count);
        trace_batch(&self.key.name, records, began_at.elapsed());
        Ok(())
    }

    /// The page is committed.
    pub fn note_commit(&mut self, records: &[Record<'_>], applied_count: usize, letter_count: usize) {
        *self.counts = Counts::default();
        self.loaded.checkpoint.last_offset += records.len() as i64;
        self.loaded.token = records.last().map_or(0, |last| last.token);
        self.progress.applied_count += applied_count;
        self.progress.dead_letter_count += letter_count;
        self.progress.passed_count += records.len() - applied_count - letter_count;
    }

    /// Where the consumer is in the log.
    pub fn place(&self) -> LogPlace {
        LogPlace { partition: self.key.partition, checkpoint: self.loaded.last_offset() }
    }

    /// Folds in memory: into the state, or into what is collected from this page.
    pub fn fold_records<'r>(&mut self, records: &'r [Record<'r>], refused: Option<&Rejection>) -> Folded<'r> {
        let mut folded = Folded { applied_count: 0, letters: Letters::default() };
        let (consumer, partition) = (&self.key.name, self.label);
        self.fold.begin_page();
        for record in records {
            if !self.fold.takes(record.object, record.action) {
                continue;
            }
            match refused.map_or_else(|| self.fold.apply(record), |rejection| Err(rejection.clone())) {
                Ok(()) => folded.applied_count += 1,
                Err(rejection) => {
                    let reason = &rejection.0;
                    warn!(consumer, partition, offset = record.offset, reason, "record put with the dead letters");
                    folded.letters.push(record, &rejection);
                }
            }
            debug!(consumer, partition, offset = record.offset, state = self.fold.summary(), "record folded");
        }
        folded
    }

    /// Commits by one statement, which is a transaction of its own. `false`: the checkpoint cannot move, and nothing was done.
    async fn commit_at_once(&mut self, advance: &Advance<'_>) -> Result<bool> {
        crash_or_die_before_commit(*self.fault)?;
        let committing = move_checkpoint(self.session, advance, self.key, &mut self.loaded.place);
        commit_or_die(*self.fault, committing).await
    }

    /// Commits by a transaction. Nothing is sent before BEGIN is answered: behind a BEGIN that failed, each statement would
    /// commit by itself. `false`: the checkpoint cannot move, and the transaction is to be rolled back.
    async fn commit_in_steps(&mut self, advance: &Advance<'_>, has_rows: bool) -> Result<bool> {
        self.session.begin().await?;
        let session = &*self.session;
        let client = session.home();
        if !self.guard.permits(client, self.key.partition, advance.new_offset).await? {
            return Err(Interruption::HeldBack.into());
        }
        let advancing = move_checkpoint(session, advance, self.key, &mut self.loaded.place);
        let writing = async {
            if has_rows {
                for statement in self.fold.statements(self.key) {
                    statement.execute(client).await?;
                }
            }
            anyhow::Ok(())
        };
        let is_moved = match tokio::join!(advancing, writing) {
            (Ok(is_moved), Ok(())) => is_moved,
            (Ok(true), Err(error)) => return Err(error),
            (Ok(false), Err(_)) => false,
            // After the statement that failed, Postgres refuses the others only because the transaction has failed.
            (Err(error), Err(cause)) if is_aftermath(&error) => return Err(cause),
            (Err(error), _) => return Err(error),
        };
        if !is_moved {
            return Ok(false);
        }
        crash_or_die_before_commit(*self.fault)?;
        let committing = async { client.batch_execute("COMMIT").await.context("committing") };
        commit_or_die(*self.fault, committing).await?;
        self.session.is_in_transaction = false;
        Ok(true)
    }

    /// Why the checkpoint could not move: another process has moved it, or the records are not of this log.
    async fn find_conflict(&mut self, source: Source) -> Result<Interruption> {
        self.session.roll_back().await?;
        if source == Source::Stream && !self.was_overtaken().await? {
            Ok(Interruption::Unvouched)
        } else {
            Ok(Interruption::Fenced)
        }
    }

    /// Whether another process of this name has moved the checkpoint, or a dead letter was replayed. Records that another
    /// process has passed may be reaped: they are gone for this process, and not missing.
    pub async fn was_overtaken(&mut self) -> Result<bool> {
        let committed = checkpoint::find(self.session.home(), self.key).await?;
        Ok(committed.map(|registration| registration.checkpoint) != Some(self.loaded.checkpoint))
    }

    /// Loads the last commit again: the state in memory is ahead of it.
    pub async fn reload(&mut self) -> Result<()> {
        let registration = checkpoint::find(self.session.home(), self.key).await?;
        let registration = registration.ok_or(Interruption::Unregistered)?;
        // Another registration may be that of another fold: all is loaded anew then.
        ensure!(registration.checkpoint == self.loaded.checkpoint, Interruption::Fenced);
        *self.loaded = Loaded::restore(self.fold, Registration { token: self.loaded.token, ..registration })?;
        Ok(())
    }
}

/// Moves a checkpoint, with what goes with it, where it is kept.
async fn move_checkpoint(
    session: &ConsumerSession,
    advance: &Advance<'_>,
    key: &CheckpointKey,
    place: &mut Place,
) -> Result<bool> {
    if session.is_elsewhere() {
        let moved = advance_all(session.home(), Home::Own, &key.name, &[(key.partition, advance)]).await?;
        return Ok(!moved.is_empty());
    }
    advance.execute(&session.client, key, place).await
}

fn is_aftermath(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    error == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
}

/// The first fault point: the page is folded, and every statement but the one that commits has succeeded.
pub(super) fn crash_or_die_before_commit(fault: Fault) -> Result<()> {
    match fault {
        Fault::CrashBeforeCommit => Err(Interruption::Crash.into()),
        Fault::DieBeforeCommit => die(),
        Fault::None | Fault::DieAtCommit | Fault::DieAfterCommit => Ok(()),
    }
}

/// The second fault point: the statement that commits is on its way, and its answer has not been read.
pub(super) async fn commit_or_die<T>(fault: Fault, committing: impl Future<Output = T>) -> T {
    if fault == Fault::DieAtCommit {
        tokio::select! {
            biased;
            _ = committing => {}
            // Time enough for the task that owns the socket to send it.
            () = after_all_other_tasks() => {}
        }
        die();
    }
    committing.await
}
