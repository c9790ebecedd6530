//! The last commit, as this process has loaded it: the state is in the fold, everything that goes with it is here.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Page, Partition, WholeReader};
use stream::codec::EntryId;

use crate::advice::Whose;
use crate::checkpoint::{Checkpoint, Registration};
use crate::kind::Fold;
use crate::place::Place;
use crate::vouch::Vouchers;

/// The checkpoint of the state in memory, and the places where reading and saving go on.
pub(crate) struct Loaded {
    /// The state in memory is the committed one at this checkpoint.
    pub checkpoint: Checkpoint,
    /// The token of the batch with the last record; 0 if it is not known.
    pub token: i64,
    pub place: Place,
    /// Reading the stream goes on after this entry. Its offset is never beyond the checkpoint.
    pub position: EntryId,
    pub vouchers: Vouchers,
    /// Where healing stopped, so that a large gap is not searched from its batch's beginning each time.
    pub healer: Healer,
    /// The same at a standby.
    pub standby_healer: Healer,
}

impl Loaded {
    /// As [`restore`](Self::restore), with advice if it fails.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub fn restore_or_advise(fold: &mut impl Fold, registration: Registration, whose: &Whose) -> Result<Self> {
        let id = fold.id().name;
        Self::restore(fold, registration).with_context(|| {
            format!(
                "the state of consumer {} is unreadable: run {}, then begin anew ({}), or with the state of a consumer OTHER \
                 of the same fold ({})",
                whose.name,
                whose.command(&["--unregister"]),
                whose.command(&["--fold", id, "--register"]),
                whose.command(&["--copy-from", "OTHER"])
            )
        })
    }

    /// Takes up a registration: the fold goes on with its state.
    ///
    /// # Errors
    /// It is not the state of this fold.
    pub fn restore(fold: &mut impl Fold, registration: Registration) -> Result<Self> {
        fold.restore(registration.state.as_deref())?;
        let checkpoint = registration.checkpoint;
        let position = EntryId { offset: checkpoint.last_offset, copy: 0 };
        let token = registration.token;
        Ok(Self {
            checkpoint,
            token,
            place: Place::default(),
            position,
            vouchers: Vouchers::default(),
            healer: Healer::default(),
            standby_healer: Healer::default(),
        })
    }

    /// The state reflects the records 1 … last_offset.
    pub fn last_offset(&self) -> i64 {
        self.checkpoint.last_offset
    }

    /// Whether healing is on its way to a place deep in a huge batch.
    pub fn is_searching(&self) -> bool {
        self.healer.is_searching() || self.standby_healer.is_searching()
    }
}

/// Reads the records after a checkpoint from one server. Each server has one of its own: a standby knows a batch later than the
/// primary, and a reader goes on from what it has seen.
#[derive(Default)]
pub(crate) struct Healer(Option<WholeReader>);

impl Healer {
    /// Whether it is on its way to a place deep in a huge batch.
    pub fn is_searching(&self) -> bool {
        self.0.as_ref().is_some_and(WholeReader::is_searching)
    }

    /// The records from `next_offset` on, at most `len_max`. The history has the reaped ones. After an error, or if it is dropped
    /// halfway, it begins anew.
    ///
    /// # Errors
    /// As [`WholeReader::next_page`].
    pub async fn read(
        &mut self,
        client: &Client,
        partition: Partition,
        next_offset: i64,
        len_max: i64,
    ) -> Result<Page, pglog::Error> {
        let mut reader = match self.0.take() {
            Some(reader) if reader.next_offset() == next_offset => reader,
            _ => WholeReader::at(partition, next_offset),
        };
        let page = reader.next_page(client, len_max).await?;
        self.0 = Some(reader);
        Ok(page)
    }
}
