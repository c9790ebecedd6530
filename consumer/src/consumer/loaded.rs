//! The last commit, as this process has loaded it: the state is in the fold, everything that goes with it is here.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Page, Partition, Reader};
use stream::codec::EntryId;

use crate::bootstrap;
use crate::checkpoint::{self, Checkpoint, Saver};
use crate::fold::Fold;
use crate::outcome::Interruption;
use crate::vouch::Vouchers;

/// The checkpoint of the state in memory, and the places where reading and saving go on.
pub(super) struct Loaded {
    /// The state in memory is the committed one at this checkpoint.
    pub checkpoint: Checkpoint,
    pub saver: Saver,
    /// Reading the stream goes on after this entry. Its offset is never beyond the checkpoint.
    pub position: EntryId,
    pub vouchers: Vouchers,
    /// Where healing stopped, so that a large gap is not searched from its batch's beginning each time.
    healer: Option<Reader>,
}

impl Loaded {
    /// Loads checkpoint and state, in one transaction. A consumer that is not registered is registered, if it
    /// `may_register`.
    ///
    /// # Errors
    /// Postgres is away; [`Interruption::Unregistered`] if the consumer may not register again.
    pub async fn load<F: Fold>(
        client: &mut Client,
        fold: &mut F,
        name: &str,
        partition: Partition,
        may_register: bool,
    ) -> Result<Self> {
        let tx = client.transaction().await.context("beginning to load")?;
        let checkpoint = match checkpoint::find(&tx, name, partition).await? {
            Some(checkpoint) => checkpoint,
            None if may_register => bootstrap::register(&tx, fold, name, partition).await?,
            None => return Err(Interruption::Unregistered.into()),
        };
        fold.load(&tx, name, partition).await?;
        tx.commit().await.context("committing the registration")?;
        let position = EntryId { offset: checkpoint.last_offset, copy: 0 };
        Ok(Self { checkpoint, saver: Saver::default(), position, vouchers: Vouchers::default(), healer: None })
    }

    /// The state reflects the records 1 … last_offset.
    pub fn last_offset(&self) -> i64 {
        self.checkpoint.last_offset
    }

    /// The records after the checkpoint, at most `len_max`, from Postgres.
    ///
    /// # Errors
    /// As [`Reader::at`] and [`Reader::next_page`].
    pub async fn read_missing(
        &mut self,
        client: &Client,
        partition: Partition,
        len_max: i64,
    ) -> Result<Page, pglog::Error> {
        let next_offset = self.last_offset() + 1;
        let mut reader = match self.healer.take() {
            Some(reader) if reader.next_offset() == next_offset => reader,
            _ => Reader::at(client, partition, next_offset).await?,
        };
        let page = reader.next_page(client, len_max).await?;
        self.healer = Some(reader);
        Ok(page)
    }
}
