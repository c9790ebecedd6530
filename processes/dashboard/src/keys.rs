//! The streams of the shown partitions, and their keys in Redis. Postgres tells them: how many partitions the log has, and its id.

use std::sync::{Arc, Mutex, PoisonError};

use pglog::{Identity, Partition, UnknownPartition};
use stream::StreamArgs;

/// A shown partition, and the key of its stream.
pub(crate) type Key = (Partition, String);

/// The keys, as far as they are known. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    args: StreamArgs,
    known: Arc<Mutex<Vec<Key>>>,
}

impl Keys {
    /// Unknown until Postgres has answered.
    pub fn new(args: &StreamArgs) -> Self {
        Self { args: args.clone(), known: Arc::default() }
    }

    /// Learns the keys from what Postgres tells of the log. Returns the shown partitions.
    ///
    /// # Errors
    /// The log lacks one of them.
    pub fn learn(&self, log: &Identity) -> Result<Vec<Partition>, UnknownPartition> {
        let partitions = self.args.partitions.of(log.partitions)?;
        let stream = self.args.stream(log);
        let keys = partitions.iter().map(|partition| (*partition, stream.key(*partition))).collect();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(partitions)
    }

    /// One for each shown partition, in the order of their numbers; none before Postgres has answered.
    pub fn all(&self) -> Vec<Key> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
