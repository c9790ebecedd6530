//! The last commit, as this process has loaded it: the state is in the fold, everything that goes with it is here.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Page, Partition, WholeReader};
use stream::codec::EntryId;

use super::part::{Part, fold_of};
use crate::advice::Whose;
use crate::bootstrap::{self, Role};
use crate::checkpoint::{self, Checkpoint, Registration};
use crate::kind::Fold;
use crate::outcome::Interruption;
use crate::place::Place;
use crate::registry::{Claim, claim};
use crate::vouch::Vouchers;

/// The checkpoint of the state in memory, and the places where reading and saving go on.
pub(crate) struct Loaded {
    /// The state in memory is the committed one at this checkpoint.
    pub checkpoint: Checkpoint,
    pub place: Place,
    /// Reading the stream goes on after this entry. Its offset is never beyond the checkpoint.
    pub position: EntryId,
    pub vouchers: Vouchers,
    /// Where healing stopped, so that a large gap is not searched from its batch's beginning each time.
    healer: Option<WholeReader>,
}

/// Loads checkpoints and states of all parts, in one transaction. Where the consumer is not registered, it is registered if it has a
/// `role` to be registered in: everywhere, or nowhere (I8).
///
/// # Errors
/// Postgres is away; [`Interruption::Unregistered`] if the consumer may not register again; [`Interruption::OtherFold`] if
/// a state is that of another fold.
pub(super) async fn load<F: Fold>(
    client: &mut Client,
    folds: &mut [F],
    parts: &mut [Part],
    whose: &Whose,
    role: Option<Role>,
) -> Result<()> {
    let partitions: Vec<Partition> = parts.iter().map(|part| part.key.partition).collect();
    let tx = client.transaction().await.context("beginning to load")?;
    let mut found = checkpoint::find_all(&tx, &whose.name, &partitions).await?;
    if found.len() < partitions.len() && role.is_some() {
        bootstrap::begin_registering(&tx).await?;
    }
    let (mut loaded, fold_count) = (Vec::with_capacity(parts.len()), folds.len());
    for (index, part) in parts.iter().enumerate() {
        let fold = &mut folds[fold_of(index, fold_count)];
        let registration = match (found.remove(&part.key.partition), role) {
            (Some(registration), _) => registration,
            (None, Some(role)) => bootstrap::register(&tx, fold, whose, part.key.partition, role).await?,
            (None, None) => return Err(Interruption::Unregistered.into()),
        };
        match claim(whose, registration.fold.as_ref(), fold) {
            Ok(Claim::Own) => {}
            Ok(Claim::Unclaimed) => checkpoint::note_fold(&tx, fold.id(), &part.key).await?,
            Err(other) => return Err(Interruption::OtherFold(other).into()),
        }
        let id = fold.id().name;
        loaded.push(Loaded::restore(fold, registration).with_context(|| {
            format!(
                "the state of consumer {} is unreadable: run {}, then begin anew ({}), or with the state of a consumer OTHER \
                 of the same fold ({})",
                whose.name,
                whose.command(&["--unregister"]),
                whose.command(&["--fold", id, "--register"]),
                whose.command(&["--copy-from", "OTHER"])
            )
        })?);
    }
    tx.commit().await.context("committing the registration")?;
    parts.iter_mut().zip(loaded).for_each(|(part, loaded)| part.loaded = Some(loaded));
    Ok(())
}

impl Loaded {
    /// Takes up a registration: the fold goes on with its state.
    ///
    /// # Errors
    /// It is not the state of this fold.
    pub fn restore(fold: &mut impl Fold, registration: Registration) -> Result<Self> {
        fold.restore(registration.state.as_deref())?;
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
