//! Reading from Postgres the records that the stream does not have (I6).

use anyhow::{Context, Result};

use super::commit::{Committer, Source};
use crate::kind::Fold;
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
        let head = pglog::head(self.session.reader(), self.key.partition).await.context("asking for the head")?;
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
            let page = match self.loaded.read_missing(self.session.reader(), self.key.partition, len_max).await {
                Err(pglog::Error::Reaped { .. }) if self.was_overtaken().await? => {
                    return Err(Interruption::Fenced.into());
                }
                // The standby is behind: it has not even the records that are folded already.
                Err(pglog::Error::Unassigned { .. }) if self.session.reads_standby() => return Ok(false),
                page => page.context("healing a gap")?,
            };
            self.progress.is_searching = page.is_empty() && self.loaded.is_searching();
            self.counts.healed_count += page.len() as i64;
            self.progress.healed_count += page.len();
            let records: Vec<_> = page.records().collect();
            // A standby may have been promoted beside the primary: then its records are not those of the log. The history keeps no
            // tokens to compare.
            let is_known = records.last().is_some_and(|last| last.token != 0);
            let source = if self.session.reads_standby() && is_known { Source::Stream } else { Source::Postgres };
            self.commit(&records, source).await?;
        }
        Ok(self.loaded.last_offset() >= last_offset)
    }
}
