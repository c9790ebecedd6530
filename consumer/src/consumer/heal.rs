//! Reading from Postgres the records that the stream does not have (I6).

use anyhow::{Context, Error, Result};
use pglog::Page;
use tokio::time::timeout;

use super::commit::{Committer, Source};
use super::standby::STATEMENT_WAIT;
use crate::kind::{Fold, Kind};
use crate::outcome::Interruption;
use crate::tail::PAGE_LEN_MAX;

/// Pages healed from Postgres in one step, so that a step stays short even when a million records are missing.
pub(super) const HEAL_PAGES_MAX: usize = 10;

impl<F: Fold> Committer<'_, F> {
    /// Folds the records that Postgres has beyond the checkpoint.
    ///
    /// # Errors
    /// As [`heal`](Self::heal).
    pub async fn catch_up(&mut self) -> Result<()> {
        let head = pglog::head(&self.session.client, self.key.partition).await.context("asking for the head")?;
        self.heal(head, HEAL_PAGES_MAX).await?;
        Ok(())
    }

    /// Folds the records after the checkpoint up to `last_offset` from Postgres, at most so many pages. Returns whether it reached
    /// `last_offset`; a large gap takes several steps.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`pglog::Error::Reaped`] if the records are gone.
    pub async fn heal(&mut self, last_offset: i64, page_count_max: usize) -> Result<bool> {
        for _ in 0..page_count_max {
            let missing_count = last_offset - self.loaded.last_offset();
            if missing_count <= 0 {
                return Ok(true);
            }
            let len_max = missing_count.min(PAGE_LEN_MAX as i64);
            let (page, is_of_standby) = match self.read_missing(len_max).await {
                Err(pglog::Error::Reaped { .. }) if self.was_overtaken().await? => {
                    return Err(Interruption::Fenced.into());
                }
                read => read.context("healing a gap")?,
            };
            let records: Vec<_> = page.records().collect();
            // The history keeps no tokens to compare.
            let is_to_compare = is_of_standby && records.last().is_some_and(|last| last.token != 0);
            // A model is changed before the statement that compares, and a state elsewhere is committed where nothing can be compared.
            let is_compared_now = is_to_compare && (self.session.is_elsewhere() || self.fold.kind() == Kind::Model);
            if is_compared_now && !self.are_of_this_log(&records).await? {
                self.leave_standby();
                return Ok(false);
            }
            self.progress.is_searching = page.is_empty() && self.loaded.is_searching();
            self.counts.healed_count += page.len() as i64;
            self.progress.healed_count += page.len();
            let source = if is_to_compare { Source::Stream } else { Source::Postgres };
            let committed = self.commit(&records, source).await;
            if is_to_compare && committed.as_ref().is_err_and(is_unvouched) {
                self.leave_standby();
            }
            committed?;
        }
        Ok(self.loaded.last_offset() >= last_offset)
    }

    /// The records after the checkpoint, and whether they are the standby's. Without a standby that has them, the primary is read.
    async fn read_missing(&mut self, len_max: i64) -> Result<(Page, bool), pglog::Error> {
        let (partition, next_offset) = (self.key.partition, self.loaded.last_offset() + 1);
        if let Some(standby) = self.session.standby.client().await {
            let healer = &mut self.loaded.standby_healer;
            match timeout(STATEMENT_WAIT, healer.read(standby, partition, next_offset, len_max)).await {
                Ok(Ok(page)) if !page.is_empty() || healer.is_searching() => return Ok((page, true)),
                // It is behind.
                Ok(Ok(_) | Err(pglog::Error::Unassigned { .. } | pglog::Error::Reaped { .. })) => {}
                Ok(Err(error)) => self.session.standby.leave(&format!("{:#}", Error::new(error))),
                Err(_) => self.session.standby.leave("it does not answer"),
            }
        }
        let page = self.loaded.healer.read(&self.session.client, partition, next_offset, len_max).await?;
        Ok((page, false))
    }

    fn leave_standby(&mut self) {
        self.session.standby.leave("its records are not those of the primary: was it promoted?");
    }
}

fn is_unvouched(error: &Error) -> bool {
    matches!(error.downcast_ref(), Some(Interruption::Unvouched))
}
