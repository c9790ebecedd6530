//! Reading from Postgres what the stream does not have (I6).

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Page, Reader};

use super::{Consumer, Place, Source};
use crate::checkpoint;
use crate::fold::Fold;
use crate::outcome::{Fault, Interruption, Progress};
use crate::tail::PAGE_LEN_MAX;

/// Pages healed from Postgres in one step, so that a step stays short even when a million records are missing.
const HEAL_PAGES_MAX: usize = 10;

impl<F: Fold> Consumer<F> {
    /// Folds what Postgres has beyond the checkpoint.
    pub(super) async fn catch_up(&mut self, fault: &mut Fault, progress: &mut Progress) -> Result<()> {
        let client = self.client.as_ref().context("no connection")?;
        let head = pglog::head(client, self.partition).await.context("asking for the head")?;
        self.heal(head, fault, progress).await?;
        Ok(())
    }

    /// Reads the records after the checkpoint up to `last_offset` from Postgres and folds them. Returns whether all were;
    /// a large gap takes several steps.
    pub(super) async fn heal(&mut self, last_offset: i64, fault: &mut Fault, progress: &mut Progress) -> Result<bool> {
        for _ in 0..HEAL_PAGES_MAX {
            let partition = self.partition;
            let (client, place) = self.parts()?;
            let missing_count = last_offset - place.mark.last_offset;
            if missing_count <= 0 {
                return Ok(true);
            }
            let page = match read_missing(client, partition, place, missing_count.min(PAGE_LEN_MAX as i64)).await {
                Err(pglog::Error::Reaped { .. }) if self.was_overtaken().await? => {
                    return Err(Interruption::Fenced.into());
                }
                page => page.context("healing a gap")?,
            };
            self.counts.healed_count += page.len() as i64;
            progress.healed_count += page.len();
            let records: Vec<_> = page.records().collect();
            self.commit(&records, Source::Postgres, fault, progress).await?;
        }
        Ok(self.checkpoint()? >= last_offset)
    }

    /// Whether another process of this name has moved the checkpoint. Records that it has passed may be reaped: then they
    /// are gone for this process, and not missing.
    pub(super) async fn was_overtaken(&mut self) -> Result<bool> {
        let mark = self.parts()?.1.mark;
        let tx = self.client.as_mut().context("no connection")?.transaction().await.context("beginning to look")?;
        Ok(checkpoint::find(&tx, &self.name, self.partition).await? != Some(mark))
    }
}

/// The records after the checkpoint, at most `len_max`, from Postgres.
async fn read_missing(client: &Client, partition: i32, place: &mut Place, len_max: i64) -> Result<Page, pglog::Error> {
    let next_offset = place.mark.last_offset + 1;
    let mut reader = match place.healer.take() {
        Some(reader) if reader.next_offset() == next_offset => reader,
        _ => Reader::at(client, partition, next_offset).await?,
    };
    let page = reader.next_page(client, len_max).await?;
    place.healer = Some(reader);
    Ok(page)
}
