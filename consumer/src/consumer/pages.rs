//! Committing records whatever they hold. Postgres may refuse what the row of a record holds: a text with NUL, a number that is
//! too large, JSON that is nested too deep. Another attempt does not change that, and the other records of the page are sound. So
//! a refused page is committed in smaller pages until that record is alone, and then it becomes a dead letter.

use anyhow::Result;
use pglog::Record;

use super::commit::{Committer, Source};
use crate::fold::Rejection;
use crate::kind::Fold;

impl<F: Fold> Committer<'_, F> {
    /// Folds records that follow the checkpoint without a gap, and commits the new state with the new checkpoint.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`](crate::Interruption). The state in memory is then ahead of the committed one.
    pub async fn commit(&mut self, records: &[Record<'_>], source: Source) -> Result<()> {
        let (mut left, mut page_len) = (records, records.len());
        while !left.is_empty() {
            let (page, after) = left.split_at(page_len.min(left.len()));
            let committed = self.commit_page(page, source, None).await;
            // Only the statements of a fold with rows are refused so. It starts empty with each page: nothing is folded twice.
            let refused = committed.as_ref().err().and_then(|error| error.downcast_ref::<Rejection>());
            match (refused, page) {
                (None, _) => {
                    committed?;
                    (left, page_len) = (after, page_len * 2);
                }
                (Some(rejection), [_]) => {
                    self.session.roll_back().await?;
                    self.commit_page(page, source, Some(rejection)).await?;
                    left = after;
                }
                (Some(_), _) => {
                    self.session.roll_back().await?;
                    page_len = page.len() / 2;
                }
            }
        }
        Ok(())
    }
}
