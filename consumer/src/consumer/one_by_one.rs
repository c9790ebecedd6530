//! Pages that are more than the next records: each entry is looked at. It may be a duplicate, not of this log, or lie behind a gap.

use anyhow::Result;
use stream::codec::{Entry, EntryId};
use tracing::{debug, warn};

use super::commit::{Committer, Source};
use super::heal::HEAL_PAGES_MAX;
use super::plain::record;
use super::read::{Page, positions};
use super::step::Step;
use crate::kind::Fold;
use crate::vouch::Origin;

impl<F: Fold> Step<'_, F> {
    /// Folds and commits a page, entry by entry.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`](crate::Interruption).
    pub async fn fold_one_by_one(&mut self, page: &Page<'_>) -> Result<()> {
        let Page { part, tail, entries, last_id } = page;
        let mut ready = Vec::with_capacity(entries.len());
        let mut committer = self.committers.of(*part);
        let (is_page_used, unusable_to) = committer.look_at(entries, *last_id, &mut ready).await?;
        // A tail of several streams is asked when all their positions are certain.
        if is_page_used && unusable_to == 0 && self.reader.streams_of(*tail).len() == 1 {
            let mut ahead = positions(self.committers.parts);
            ahead[*part] = *last_id;
            let is_full = entries.len() >= self.reader.len_max(*tail);
            self.reader.read_ahead(*tail, &ahead, is_full, self.block).await;
        }
        let mut committer = self.committers.of(*part);
        committer.commit(&ready, Source::Stream).await?;
        if unusable_to > committer.loaded.last_offset() {
            committer.catch_up().await?;
        }
        committer.move_position(entries);
        Ok(())
    }
}

impl<F: Fold> Committer<'_, F> {
    /// Looks at each entry. Collects the next records, and heals gaps before them. Returns whether the whole page can be used, and the
    /// offset up to which the stream cannot tell the next records, and Postgres is to be asked; 0 if it can.
    async fn look_at<'r>(
        &mut self,
        entries: &[Entry<'r>],
        last_id: EntryId,
        ready: &mut Vec<pglog::Record<'r>>,
    ) -> Result<(bool, i64)> {
        let mut unusable_to = 0;
        self.look_up_tokens(last_id.offset).await?;
        for entry in entries {
            let offset = entry.id.offset;
            let next_offset = self.loaded.last_offset() + ready.len() as i64 + 1;
            if offset < next_offset {
                self.skip_duplicate(entry.id);
                continue;
            }
            match (self.origin(entry), &entry.fields) {
                // Very far ahead: it is cheaper to read the records in between than to look up their tokens.
                (Origin::NotKnownYet, _) => return Ok((true, offset)),
                (Origin::ThisLog, Ok(fields)) => {
                    if offset > next_offset {
                        self.commit(&std::mem::take(ready), Source::Stream).await?;
                        if !self.heal(offset - 1, HEAL_PAGES_MAX).await? {
                            return Ok((false, unusable_to));
                        }
                    }
                    ready.push(record(self.key.partition, offset, fields));
                }
                // It has the id of a record of this log, and Redis refuses the true entry because of it.
                (Origin::Foreign, _) | (Origin::ThisLog, Err(_)) => {
                    self.reject(entry);
                    unusable_to = offset;
                }
            }
        }
        Ok((true, unusable_to))
    }

    /// Reading goes on after the last entry that the checkpoint has passed.
    fn move_position(&mut self, entries: &[Entry<'_>]) {
        let Self { loaded, progress, .. } = self;
        match entries.iter().rev().find(|entry| entry.id.offset <= loaded.last_offset()) {
            Some(entry) => loaded.position = entry.id,
            None => progress.blocked = progress.record_count() == 0 && !progress.is_searching,
        }
    }

    fn skip_duplicate(&mut self, id: EntryId) {
        debug!(consumer = self.key.name, partition = self.label, %id, "duplicate skipped: already folded");
        self.counts.duplicate_count += 1;
        self.progress.duplicate_count += 1;
    }

    fn reject(&mut self, entry: &Entry<'_>) {
        if entry.id > *self.rejected_to {
            *self.rejected_to = entry.id;
            self.counts.rejected_count += 1;
            self.progress.rejected_count += 1;
            let why =
                entry.fields.as_ref().err().map_or_else(|| "its token is not its batch's".into(), |e| e.to_string());
            let (consumer, partition) = (&self.key.name, self.label);
            warn!(consumer, partition, id = %entry.id, why, "stream entry ignored: it is not of this log");
        }
    }

    /// Looks up the tokens of the records after the checkpoint, up to `last_offset`.
    async fn look_up_tokens(&mut self, last_offset: i64) -> Result<()> {
        let next_offset = self.loaded.last_offset() + 1;
        let vouchers = &mut self.loaded.vouchers;
        vouchers.look_up(&self.session.client, self.key.partition, next_offset, last_offset).await
    }

    /// Whether the records may be committed as they are: the statement that commits them compares their tokens, or they are known
    /// to be of this log.
    pub(super) async fn may_commit(&mut self, records: &[pglog::Record<'_>]) -> Result<bool> {
        Ok(!self.session.is_elsewhere() || self.are_of_this_log(records).await?)
    }

    /// Whether the log's batches have the tokens of these records.
    pub(super) async fn are_of_this_log(&mut self, records: &[pglog::Record<'_>]) -> Result<bool> {
        self.look_up_tokens(records.last().map_or(0, |last| last.offset)).await?;
        let vouchers = &self.loaded.vouchers;
        Ok(records.iter().all(|record| vouchers.origin(record.offset, record.token) == Origin::ThisLog))
    }

    /// Whether the entry is the record at its offset. Its token must have been looked up.
    fn origin(&self, entry: &Entry<'_>) -> Origin {
        match &entry.fields {
            Ok(fields) => self.loaded.vouchers.origin(entry.id.offset, fields.token),
            Err(_) => Origin::Foreign,
        }
    }
}
