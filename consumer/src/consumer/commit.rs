//! Folding records and committing the new state with the new checkpoint (I5).
//!
//! A commit takes one of two ways. One statement moves the checkpoint and writes the state, if the fold gives such a
//! statement and nothing else is to be written. Otherwise a transaction of several statements does it. Both ways pass the
//! same two points at which a fault can be injected: before the commit, and at the commit.

use std::time::Instant;

use anyhow::{Context, Result};
use common::fault::die;
use common::tasks::after_all_other_tasks;
use pglog::{Partition, Record};
use tracing::debug;

use super::guard::Guard;
use super::loaded::Loaded;
use super::session::ConsumerSession;
use crate::checkpoint::{self, Advance, Counts};
use crate::dead_letter::bury;
use crate::fault::Fault;
use crate::fold::{Fold, Rejection};
use crate::outcome::{Interruption, Progress};
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
    pub name: &'a str,
    pub partition: Partition,
    pub guard: Guard,
    pub fold: &'a mut F,
    pub session: &'a mut ConsumerSession,
    pub loaded: &'a mut Loaded,
    /// Counted since the last commit, and written with the next one.
    pub counts: &'a mut Counts,
    /// Injected into the step's first commit.
    pub fault: Fault,
    pub progress: Progress,
}

/// Records that were folded in memory.
struct Folded<'a> {
    applied_count: usize,
    dead_letters: Vec<(&'a Record<'a>, Rejection)>,
}

impl<F: Fold> Committer<'_, F> {
    /// Folds records that follow the checkpoint without a gap, and commits the new state with the new checkpoint.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`]. The state in memory is then ahead of the committed one.
    pub async fn commit(&mut self, records: &[Record<'_>], source: Source) -> Result<()> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(()) };
        let began_at = Instant::now();
        let old = self.loaded.checkpoint;
        assert_eq!(first.offset, old.last_offset + 1, "records are folded without a gap");
        assert_eq!(last.offset - old.last_offset, records.len() as i64, "records are folded without a gap");
        let folded = self.fold_records(records);
        let tokens = match source {
            Source::Stream => Tokens::of(records),
            Source::Postgres => Tokens::default(),
        };
        let advance = Advance { old, new_offset: last.offset, counts: *self.counts, tokens };
        let is_one_statement =
            folded.dead_letters.is_empty() && self.guard == Guard::None && self.fold.update().is_some();
        let is_committed = if is_one_statement {
            self.commit_at_once(&advance, &folded).await?
        } else {
            self.commit_in_steps(&advance, &folded).await?
        };
        if !is_committed {
            return Err(self.find_conflict(source).await?.into());
        }
        if self.fault == Fault::DieAfterCommit {
            die();
        }
        self.fault = Fault::None;
        *self.counts = Counts::default();
        self.loaded.checkpoint.last_offset = last.offset;
        trace_batch(self.name, records, began_at.elapsed());
        self.progress.applied_count += folded.applied_count;
        self.progress.dead_letter_count += folded.dead_letters.len();
        self.progress.passed_count += records.len() - folded.applied_count - folded.dead_letters.len();
        Ok(())
    }

    /// Folds into the state in memory.
    fn fold_records<'a>(&mut self, records: &'a [Record<'a>]) -> Folded<'a> {
        let mut folded = Folded { applied_count: 0, dead_letters: Vec::new() };
        for record in records {
            if !self.fold.takes(record.object, record.action) {
                continue;
            }
            match self.fold.apply(record) {
                Ok(()) => folded.applied_count += 1,
                Err(rejection) => folded.dead_letters.push((record, rejection)),
            }
            debug!(consumer = self.name, offset = record.offset, state = self.fold.summary(), "record folded");
        }
        folded
    }

    /// Commits by one statement. `false`: the checkpoint cannot move, and nothing was done.
    async fn commit_at_once(&mut self, advance: &Advance, folded: &Folded<'_>) -> Result<bool> {
        if is_before_commit(self.fault) {
            // The statement would commit by itself. In a transaction it leaves behind what a crash before COMMIT leaves.
            self.session.begin().await?;
        }
        let update = self.fold.update().filter(|_| folded.applied_count > 0);
        let (client, saver) = (&self.session.client, &mut self.loaded.saver);
        let committing = saver.advance_and_save(client, self.name, self.partition, advance, update.as_ref());
        let is_moved = commit_or_die(self.fault, committing).await?;
        if is_moved {
            crash_or_die_before_commit(self.fault)?;
        }
        Ok(is_moved)
    }

    /// Commits by a transaction. All of it but COMMIT is sent before the first answer comes, and each answer is looked at
    /// before COMMIT is sent. `false`: the checkpoint cannot move, and the transaction is to be rolled back.
    async fn commit_in_steps(&mut self, advance: &Advance, folded: &Folded<'_>) -> Result<bool> {
        // The transaction writes new versions of the rows, whose places it does not learn.
        self.loaded.saver.forget_versions();
        self.session.is_in_transaction = true;
        let (client, partition) = (&self.session.client, self.partition);
        let beginning = async { client.batch_execute("BEGIN").await.context("beginning") };
        let asking = self.guard.permits(client, partition, advance.new_offset);
        let advancing = checkpoint::advance(client, self.name, partition, advance);
        let saving = async {
            if folded.applied_count > 0 {
                self.fold.save(client, self.name, partition).await?;
            }
            anyhow::Ok(())
        };
        let (begun, is_permitted, is_moved, saved) = tokio::join!(beginning, asking, advancing, saving);
        begun?;
        if !is_permitted? {
            return Err(Interruption::HeldBack.into());
        }
        if !is_moved? {
            return Ok(false);
        }
        saved?;
        for (record, rejection) in &folded.dead_letters {
            bury(client, self.name, partition, record, rejection).await?;
        }
        crash_or_die_before_commit(self.fault)?;
        // Every statement before was checked: COMMIT of an aborted transaction would answer Ok.
        commit_or_die(self.fault, client.batch_execute("COMMIT")).await.context("committing")?;
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
        let committed = checkpoint::find(&self.session.client, self.name, self.partition).await?;
        Ok(committed != Some(self.loaded.checkpoint))
    }

    /// Loads the last commit again: the state in memory is ahead of it.
    pub async fn reload(&mut self) -> Result<()> {
        let client = &mut self.session.client;
        *self.loaded = Loaded::load(client, self.fold, self.name, self.partition, false).await?;
        Ok(())
    }
}

fn is_before_commit(fault: Fault) -> bool {
    matches!(fault, Fault::CrashBeforeCommit | Fault::DieBeforeCommit)
}

/// The first fault point: every statement but COMMIT has succeeded.
fn crash_or_die_before_commit(fault: Fault) -> Result<()> {
    match fault {
        Fault::CrashBeforeCommit => Err(Interruption::Crash.into()),
        Fault::DieBeforeCommit => die(),
        Fault::None | Fault::DieAtCommit | Fault::DieAfterCommit => Ok(()),
    }
}

/// The second fault point: the statement that commits is on its way, and its answer has not been read.
async fn commit_or_die<T>(fault: Fault, committing: impl Future<Output = T>) -> T {
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
