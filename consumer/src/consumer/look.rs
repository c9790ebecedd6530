//! Looking into Postgres whether it has records that the streams do not offer (I6).

use anyhow::{Context, Result};
use pglog::Partition;

use super::heal::HEAL_PAGES_MAX;
use super::step::{Heal, Step};
use crate::kind::Fold;

impl<F: Fold> Step<'_, F> {
    /// Reads the heads of all partitions by one statement, and heals those partitions that need it, each in bounded steps.
    ///
    /// # Errors
    /// As [`Committer::heal`](super::commit::Committer::heal).
    pub async fn look(&mut self, heal: Heal) -> Result<()> {
        let Self { committers, reader, clock, .. } = self;
        let partitions: Vec<Partition> = committers.parts.iter().map(|part| part.key.partition).collect();
        let heads = pglog::heads(&committers.session.client, &partitions).await.context("asking for the heads")?;
        clock.note_look();
        let mut behind = Vec::new();
        for (index, (part, head)) in committers.parts.iter_mut().zip(&heads).enumerate() {
            let last_offset = part.loaded().last_offset();
            let is_silent = !part.is_offered && last_offset < part.seen_head;
            if last_offset < *head && (heal == Heal::All || is_silent || !reader.reads(index)) {
                behind.push((index, *head));
            }
            (part.seen_head, part.is_offered) = (*head, false);
        }
        let page_count = (HEAL_PAGES_MAX / behind.len().max(1)).max(1);
        for (index, head) in behind {
            if !committers.of(index).heal(head, page_count).await? {
                clock.hurry();
            }
        }
        Ok(())
    }
}
