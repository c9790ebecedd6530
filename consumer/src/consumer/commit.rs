//! Folding records and committing the new state with the new checkpoint (I5): in one statement where that is possible, and
//! in a transaction of several where more has to be written or looked at.

use std::time::Instant;

use anyhow::{Context, Result};
use common::fault::die;
use pglog::{Record, Session};
use tracing::debug;

use super::{Consumer, Source};
use crate::bootstrap::BASELINE;
use crate::checkpoint::{self, Counts, Step};
use crate::dead_letter::bury;
use crate::fold::{Fold, Rejection};
use crate::outcome::{Fault, Interruption, Progress};
use crate::trace;
use crate::vouch::Tokens;

type DeadLetters<'a> = Vec<(&'a Record<'a>, Rejection)>;

impl<F: Fold> Consumer<F> {
    /// Folds records that follow the checkpoint without a gap, and commits the new state with the new checkpoint.
    pub(super) async fn commit(
        &mut self,
        records: &[Record<'_>],
        source: Source,
        fault: &mut Fault,
        progress: &mut Progress,
    ) -> Result<()> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(()) };
        let began_at = Instant::now();
        let old = self.parts()?.1.mark;
        assert_eq!(first.offset, old.last_offset + 1, "records are folded without a gap");
        assert_eq!(last.offset - old.last_offset, records.len() as i64, "records are folded without a gap");
        let (applied_count, dead_letters) = self.apply(records);
        let tokens = match source {
            Source::Stream => Tokens::of(records),
            Source::Postgres => Tokens::default(),
        };
        let step = Step { old, new_offset: last.offset, counts: self.counts, tokens };
        let is_changed = applied_count > 0;
        // Where it is to break before COMMIT, there has to be something that breaks.
        let stops_before_commit = matches!(fault, Fault::CrashBeforeCommit | Fault::DieBeforeCommit);
        let is_one_statement =
            dead_letters.is_empty() && self.name != BASELINE && self.fold.update().is_some() && !stops_before_commit;
        let is_committed = match is_one_statement {
            true => self.commit_at_once(&step, *fault, is_changed).await?,
            false => self.commit_in_steps(&step, *fault, is_changed, &dead_letters).await?,
        };
        if !is_committed {
            self.roll_back().await;
            let is_unvouched = source == Source::Stream && !self.was_overtaken().await?;
            return Err(if is_unvouched { Interruption::Unvouched } else { Interruption::Fenced }.into());
        }
        if *fault == Fault::DieAfterCommit {
            die();
        }
        *fault = Fault::None;
        self.counts = Counts::default();
        self.parts()?.1.mark.last_offset = last.offset;
        trace::trace_batch(&self.name, records, began_at.elapsed());
        progress.applied_count += applied_count;
        progress.dead_letter_count += dead_letters.len();
        progress.passed_count += records.len() - applied_count - dead_letters.len();
        Ok(())
    }

    /// Folds into the state in memory: how many records, and those that can never apply.
    fn apply<'a>(&mut self, records: &'a [Record<'a>]) -> (usize, DeadLetters<'a>) {
        let mut dead_letters = Vec::new();
        let mut applied_count = 0;
        for record in records {
            if !self.fold.takes(record.object, record.action) {
                continue;
            }
            match self.fold.apply(record) {
                Ok(()) => applied_count += 1,
                Err(rejection) => dead_letters.push((record, rejection)),
            }
            debug!(consumer = self.name, offset = record.offset, state = self.fold.summary(), "record folded");
        }
        (applied_count, dead_letters)
    }

    /// In one statement. `false`: the checkpoint cannot move, and nothing was done.
    async fn commit_at_once(&mut self, step: &Step, fault: Fault, is_changed: bool) -> Result<bool> {
        let client = self.client.as_ref().context("no connection")?;
        let saver = &mut self.place.as_mut().context("nothing is loaded")?.saver;
        let update = self.fold.update().filter(|_| is_changed);
        let committing = saver.advance_and_save(client, &self.name, self.partition, step, update.as_ref());
        match fault {
            Fault::DieAtCommit => die_when_sent(committing).await,
            _ => committing.await,
        }
    }

    /// In a transaction. All of it but COMMIT is sent before the first answer comes. Each answer is looked at before COMMIT.
    /// `false`: the checkpoint cannot move, and what was done is to be rolled back.
    async fn commit_in_steps(
        &mut self,
        step: &Step,
        fault: Fault,
        is_changed: bool,
        dead_letters: &DeadLetters<'_>,
    ) -> Result<bool> {
        let client = self.client.as_ref().context("no connection")?;
        self.place.as_mut().context("nothing is loaded")?.saver.forget_versions();
        self.is_in_transaction = true;
        let beginning = async { client.batch_execute("BEGIN").await.context("beginning") };
        let holding = async {
            match self.name == BASELINE {
                true => is_held_back(client, self.partition, step.new_offset).await,
                false => Ok(false),
            }
        };
        let advancing = checkpoint::advance(client, &self.name, self.partition, step);
        let saving = async {
            match is_changed {
                true => self.fold.save(client, &self.name, self.partition).await,
                false => Ok(()),
            }
        };
        let (begun, is_held, is_moved, saved) = tokio::join!(beginning, holding, advancing, saving);
        begun?;
        if is_held? {
            return Err(Interruption::HeldBack.into());
        }
        if !is_moved? {
            return Ok(false);
        }
        saved?;
        for (record, rejection) in dead_letters {
            bury(client, &self.name, self.partition, record, rejection).await?;
        }
        // Every statement before was checked: COMMIT of an aborted transaction would answer Ok.
        let committing = client.batch_execute("COMMIT");
        match fault {
            Fault::CrashBeforeCommit => return Err(Interruption::Crash.into()),
            Fault::DieBeforeCommit => die(),
            Fault::DieAtCommit => die_when_sent(committing).await,
            Fault::None | Fault::DieAfterCommit => committing.await.context("committing")?,
        }
        self.is_in_transaction = false;
        Ok(true)
    }
}

/// Ends this process when a statement is on its way and not answered.
async fn die_when_sent<T>(sending: impl Future<Output = T>) -> ! {
    tokio::select! {
        biased;
        _ = sending => {}
        // Time enough for the task that owns the socket to send it.
        () = tokio::task::yield_now() => {}
    }
    die()
}

/// Whether the baseline must not move to `new_offset` yet. It never passes a consumer, not even one that registers in this
/// moment: who starts with its state, and whoever audits, counts on that.
async fn is_held_back(tx: &impl Session, partition: i32, new_offset: i64) -> Result<bool> {
    pglog::hold_registration(tx).await?;
    Ok(pglog::lowest_checkpoint(tx, partition).await?.is_none_or(|lowest| lowest < new_offset))
}
