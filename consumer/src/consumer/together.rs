//! Committing the plain pages of several partitions.
//!
//! States are committed together, by one statement: it costs Postgres little more than a commit of one of them. Rows are committed
//! by one transaction per page, because Postgres may refuse what a row holds.

use std::time::Instant;

use anyhow::Result;
use common::fault::die;

use super::commit::{Folded, Source, commit_or_die, crash_or_die_before_commit};
use super::guard::Guard;
use super::plain::Plain;
use super::step::Committers;
use crate::checkpoint::{Advance, Counts, Home, advance_all};
use crate::fault::Fault;
use crate::kind::{Fold, Kind};
use crate::outcome::Interruption;
use crate::trace::trace_batch;
use crate::vouch::Tokens;

impl<F: Fold> Committers<'_, F> {
    /// Folds and commits plain pages. Returns the parts for which Postgres does not vouch: nothing was committed there, and the state
    /// in memory is ahead.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`].
    pub async fn commit_plain(&mut self, pages: &[Plain<'_>]) -> Result<Vec<usize>> {
        if pages.len() > 1 && self.folds[0].kind() == Kind::State && self.guard == Guard::None {
            return self.commit_together(pages).await;
        }
        let mut refused = Vec::new();
        for Plain { part, records } in pages {
            match self.of(*part).commit(records, Source::Stream).await {
                Err(error) if matches!(error.downcast_ref(), Some(Interruption::Unvouched)) => refused.push(*part),
                committed => committed?,
            }
        }
        Ok(refused)
    }

    async fn commit_together(&mut self, pages: &[Plain<'_>]) -> Result<Vec<usize>> {
        let began_at = Instant::now();
        let (mut advances, mut applied_counts) = (Vec::with_capacity(pages.len()), Vec::with_capacity(pages.len()));
        for Plain { part, records } in pages {
            // The first one writes the crashes of all.
            let crash_count = if advances.is_empty() { *self.crash_count } else { 0 };
            let mut committer = self.of(*part);
            let Folded { applied_count, letters } = committer.fold_records(records, None);
            let state = if applied_count > 0 { committer.fold.state()? } else { None };
            let advance = Advance {
                old: committer.loaded.checkpoint,
                new_offset: records.last().map_or(0, |last| last.offset),
                state,
                counts: Counts { crash_count, ..*committer.counts },
                tokens: Tokens::of(records),
                letters,
            };
            advances.push((committer.key.partition, advance));
            applied_counts.push(applied_count);
        }
        crash_or_die_before_commit(self.fault)?;
        let home = if self.session.is_elsewhere() { Home::Own } else { Home::Log };
        let moves: Vec<_> = advances.iter().map(|(partition, advance)| (*partition, advance)).collect();
        let committing = advance_all(self.session.home(), home, &self.whose.name, &moves);
        let moved = commit_or_die(self.fault, committing).await?;
        if self.fault == Fault::DieAfterCommit {
            die();
        }
        self.fault = Fault::None;
        let mut refused = Vec::new();
        for ((page, (partition, advance)), applied_count) in pages.iter().zip(&advances).zip(applied_counts) {
            if !moved.contains(partition) {
                refused.push(page.part);
                continue;
            }
            if advance.counts.crash_count > 0 {
                *self.crash_count = 0;
            }
            let mut committer = self.of(page.part);
            committer.note_commit(&page.records, applied_count, advance.letters.len());
            // Another statement than the one that knows the place has moved the row.
            committer.loaded.place.forget();
            trace_batch(&self.whose.name, &page.records, began_at.elapsed());
        }
        for part in &refused {
            if self.of(*part).was_overtaken().await? {
                return Err(Interruption::Fenced.into());
            }
        }
        Ok(refused)
    }
}
