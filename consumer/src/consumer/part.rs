//! One partition in the memory of a consumer.

use pglog::Partition;
use stream::codec::EntryId;

use super::loaded::Loaded;
use crate::checkpoint::Counts;
use crate::fold::{CheckpointKey, LogPlace};
use crate::outcome::Progress;

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
