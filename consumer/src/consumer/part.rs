//! One partition in the memory of a consumer, and loading all of them.

use anyhow::{Context, Result, ensure};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;
use stream::codec::EntryId;

use super::loaded::Loaded;
use crate::advice::Whose;
use crate::bootstrap::{self, Role};
use crate::checkpoint::{self, Counts};
use crate::fold::{CheckpointKey, LogPlace};
use crate::kind::Fold;
use crate::outcome::{Interruption, Progress};
use crate::registry::{Claim, claim};

/// A partition that the consumer folds. Its state is in the fold of the same index.
pub(crate) struct Part {
    pub key: CheckpointKey,
    /// The partition in log lines. `None`: the log has no other.
    pub label: Option<i32>,
    /// `None` after every failure: the state in memory may be ahead of the committed one.
    pub loaded: Option<Loaded>,
    /// Counted since the last commit, and written with the next one.
    pub counts: Counts,
    /// Entries up to here were counted when they were rejected. An entry that is not of this log is met again until the
    /// streamer sets the stream aside.
    pub rejected_to: EntryId,
    /// The work of the step.
    pub progress: Progress,
    /// The head of the partition, as the last look has seen it.
    pub seen_head: i64,
    /// Whether the stream has offered records since the last look.
    pub is_offered: bool,
}

impl Part {
    pub fn new(name: &str, partition: Partition, is_cut: bool) -> Self {
        Self {
            key: CheckpointKey { name: name.to_owned(), partition },
            label: is_cut.then(|| partition.number()),
            loaded: None,
            counts: Counts::default(),
            rejected_to: EntryId { offset: 0, copy: 0 },
            progress: Progress::default(),
            seen_head: 0,
            is_offered: false,
        }
    }

    /// The state in memory is not the committed one any more. Entries that were counted and not committed will be met, and
    /// counted, again.
    pub fn forget(&mut self) {
        self.loaded = None;
        self.counts = Counts::default();
    }

    /// The last commit.
    ///
    /// # Panics
    /// Between two steps it may not be loaded.
    pub fn loaded(&self) -> &Loaded {
        self.loaded.as_ref().expect("every part is loaded before a step begins")
    }

    /// Where the consumer is in this partition.
    pub fn place(&self) -> LogPlace {
        LogPlace { partition: self.key.partition, checkpoint: self.loaded().last_offset() }
    }
}

/// The index of the fold of a part. One fold may serve all.
pub(super) fn fold_of(index: usize, fold_count: usize) -> usize {
    index.min(fold_count - 1)
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
        ensure!(!registration.is_elsewhere, Interruption::KeptElsewhere { whose: whose.clone() });
        match claim(whose, registration.fold.as_ref(), fold) {
            Ok(Claim::Own) => {}
            Ok(Claim::Unclaimed) => checkpoint::note_fold(&tx, fold.id(), &part.key).await?,
            Err(other) => return Err(Interruption::OtherFold(other).into()),
        }
        loaded.push(Loaded::restore_or_advise(fold, registration, whose)?);
    }
    tx.commit().await.context("committing the registration")?;
    parts.iter_mut().zip(loaded).for_each(|(part, loaded)| part.loaded = Some(loaded));
    Ok(())
}
