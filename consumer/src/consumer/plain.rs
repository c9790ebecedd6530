//! Pages that are just the next records of their partitions, as most are. Each is committed as a whole.

use anyhow::Result;
use common::tasks::after_all_other_tasks;
use pglog::{Partition, Record};
use stream::codec::{Entry, Fields};

use super::read::{Page, positions};
use super::step::Step;
use crate::kind::{Fold, Kind};

/// The records of such a page.
pub(super) struct Plain<'a> {
    /// The index of the part.
    pub part: usize,
    pub records: Vec<Record<'a>>,
}

impl<F: Fold> Step<'_, F> {
    /// Folds pages of different parts, and commits them.
    ///
    /// # Errors
    /// Postgres is away, or an [`Interruption`](crate::Interruption).
    pub async fn fold_entries(&mut self, pages: &[Page<'_>]) -> Result<()> {
        // A model is changed before Postgres compares the tokens. So Postgres vouches for each entry first. A state elsewhere is
        // committed where there are no batches to compare with.
        let is_compared_later = self.committers.folds[0].kind() != Kind::Model;
        let (mut plain, mut plain_pages, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for page in pages {
            let part = &self.committers.parts[page.part];
            let next_offset = part.loaded().last_offset() + 1;
            let plain_of = || plain_records(&page.entries, part.key.partition, next_offset);
            match is_compared_later.then(plain_of).flatten() {
                Some(records) if self.committers.of(page.part).may_commit(&records).await? => {
                    plain.push(Plain { part: page.part, records });
                    plain_pages.push(page);
                }
                _ => others.push(page),
            }
        }
        let refused =
            if plain.is_empty() { Vec::new() } else { self.fold_plain(&plain, &plain_pages, &others).await? };
        for part in &refused {
            self.committers.of(*part).reload().await?;
        }
        others.extend(plain_pages.into_iter().filter(|page| refused.contains(&page.part)));
        for page in others {
            self.fold_one_by_one(page).await?;
        }
        Ok(())
    }

    /// Folds plain pages. Their tokens are compared by the statement that commits them. Returns the parts for which Postgres does
    /// not vouch: nothing was committed there.
    async fn fold_plain(
        &mut self,
        plain: &[Plain<'_>],
        pages: &[&Page<'_>],
        others: &[&Page<'_>],
    ) -> Result<Vec<usize>> {
        let Self { committers, reader, block, .. } = self;
        let mut ahead = positions(committers.parts);
        pages.iter().for_each(|page| ahead[page.part] = page.last_id);
        // A tail reads on if the next position is certain in each of its streams.
        let mut tails: Vec<(usize, bool)> = Vec::new();
        for page in pages.iter().filter(|page| !others.iter().any(|other| other.tail == page.tail)) {
            let is_full = page.entries.len() >= reader.len_max(page.tail);
            match tails.last_mut() {
                Some((tail, is_any_full)) if *tail == page.tail => *is_any_full |= is_full,
                _ => tails.push((page.tail, is_full)),
            }
        }
        let asking = async {
            // Redis gathers the next page while a full one is folded. A small page is folded at once: with this yield the
            // connection's task sends its commit first. A client waits for that commit, and none for the next page.
            if !tails.iter().any(|(_, is_full)| *is_full) {
                after_all_other_tasks().await;
            }
            for (tail, is_full) in tails {
                reader.read_ahead(tail, &ahead, is_full, *block).await;
            }
        };
        let ((), refused) = tokio::join!(biased; asking, committers.commit_plain(plain));
        let refused = refused?;
        for page in pages.iter().filter(|page| !refused.contains(&page.part)) {
            committers.of(page.part).loaded.position = page.last_id;
        }
        Ok(refused)
    }
}

/// The page as records, if it has the offsets `next_offset`, `next_offset + 1`, … and nothing else.
fn plain_records<'a>(entries: &[Entry<'a>], partition: Partition, next_offset: i64) -> Option<Vec<Record<'a>>> {
    let numbered = (next_offset..).zip(entries);
    let records = numbered.map(|(offset, entry)| {
        let fields = entry.fields.as_ref().ok()?;
        (entry.id.offset == offset).then(|| record(partition, offset, fields))
    });
    records.collect()
}

/// An entry as a record.
pub(super) fn record<'a>(partition: Partition, offset: i64, fields: &Fields<'a>) -> Record<'a> {
    let Fields { object, action, data, staged_at_us, token, traceparent } = *fields;
    Record { partition, offset, token, object, action, data, staged_at_us, traceparent }
}
