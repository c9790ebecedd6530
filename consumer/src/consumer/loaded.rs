//! The last commit, as this process has loaded it: the state is in the fold, everything that goes with it is here.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Page, Partition, WholeReader};
use stream::codec::EntryId;

use crate::advice::command;
use crate::bootstrap::{self, Role};
use crate::checkpoint::{self, Checkpoint};
use crate::fold::CheckpointKey;
use crate::kind::Fold;
use crate::outcome::Interruption;
use crate::place::Place;
use crate::registry::{Claim, claim};
use crate::vouch::Vouchers;

/// The checkpoint of the state in memory, and the places where reading and saving go on.
pub(super) struct Loaded {
    /// The state in memory is the committed one at this checkpoint.
    pub checkpoint: Checkpoint,
    pub place: Place,
    /// Reading the stream goes on after this entry. Its offset is never beyond the checkpoint.
    pub position: EntryId,
    pub vouchers: Vouchers,
    /// Where healing stopped, so that a large gap is not searched from its batch's beginning each time.
    healer: Option<WholeReader>,
}

impl Loaded {
    /// Loads checkpoint and state. A consumer that is not registered is registered, if it has a `role` to be registered in.
    ///
    /// # Errors
    /// Postgres is away; [`Interruption::Unregistered`] if the consumer may not register again; [`Interruption::OtherFold`] if
    /// the state is that of another fold.
    pub async fn load<F: Fold>(
        client: &mut Client,
        fold: &mut F,
        key: &CheckpointKey,
        role: Option<Role>,
    ) -> Result<Self> {
        let tx = client.transaction().await.context("beginning to load")?;
        let registration = match (checkpoint::find(&tx, key).await?, role) {
            (Some(registration), _) => registration,
            (None, Some(role)) => {
                fold.restart();
                bootstrap::register(&tx, fold, key, role).await?
            }
            (None, None) => return Err(Interruption::Unregistered.into()),
        };
        match claim(key, registration.fold.as_ref(), fold) {
            Ok(Claim::Own) => {}
            Ok(Claim::Unclaimed) => checkpoint::note_fold(&tx, fold.id(), key).await?,
            Err(other) => return Err(Interruption::OtherFold(other).into()),
        }
        fold.restore(registration.state.as_deref()).with_context(|| {
            format!(
                "the state of consumer {} is unreadable: run {}, then begin anew ({}), or with the state of a consumer OTHER \
                 of the same fold ({})",
                key.name,
                command(key, &["--unregister"]),
                command(key, &["--fold", fold.id().name, "--register"]),
                command(key, &["--copy-from", "OTHER"])
            )
        })?;
        tx.commit().await.context("committing the registration")?;
        let checkpoint = registration.checkpoint;
        let position = EntryId { offset: checkpoint.last_offset, copy: 0 };
        Ok(Self { checkpoint, place: Place::default(), position, vouchers: Vouchers::default(), healer: None })
    }

    /// The state reflects the records 1 … last_offset.
    pub fn last_offset(&self) -> i64 {
        self.checkpoint.last_offset
    }

    /// Whether healing is on its way to a place deep in a huge batch.
    pub fn is_searching(&self) -> bool {
        self.healer.as_ref().is_some_and(WholeReader::is_searching)
    }

    /// The records after the checkpoint, at most `len_max`, from Postgres. The history has the reaped ones.
    ///
    /// # Errors
    /// As [`WholeReader::next_page`].
    pub async fn read_missing(
        &mut self,
        client: &Client,
        partition: Partition,
        len_max: i64,
    ) -> Result<Page, pglog::Error> {
        let next_offset = self.last_offset() + 1;
        let mut reader = match self.healer.take() {
            Some(reader) if reader.next_offset() == next_offset => reader,
            _ => WholeReader::at(partition, next_offset),
        };
        let page = reader.next_page(client, len_max).await?;
        self.healer = Some(reader);
        Ok(page)
    }
}
