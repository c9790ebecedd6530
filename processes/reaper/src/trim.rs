//! Trimming the streams. A stream is a cache of its partition: trimmed entries can be read from Postgres.
//!
//! The servers of a Redis Cluster are trimmed side by side. If one is away, only its own streams stay as long as they are.

use anyhow::{Context, Error, Result, anyhow};
use futures_util::future::join_all;
use monitor::counter;
use pglog::Partition;
use redis::Client;
use redis::aio::MultiplexedConnection;
use stream::codec::EntryId;
use stream::placement::Placement;
use stream::{Servers, Stream};

/// Commands per cut. Each frees a hundred nodes of some hundred entries at most.
const TRIMS_LEN_MAX: usize = 1000;

/// The entries that one call removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trimmed {
    /// How many they are.
    pub count: u64,
    /// Whether it ended before everything was removed.
    pub is_more_left: bool,
}

/// The streams to trim.
pub(crate) struct Streams<'a> {
    /// Where they are.
    pub servers: &'a Servers,
    /// Their names.
    pub stream: &'a Stream,
    /// Each partition, with the first offset that is retained in Postgres.
    pub first_retained: Vec<(Partition, i64)>,
    /// The longest length of each, in entries.
    pub len_max: u64,
}

impl Streams<'_> {
    /// Trims all of them. Returns the sum, and the partitions whose streams could not be trimmed.
    pub async fn trim(&self) -> (Trimmed, Vec<(Partition, Error)>) {
        let partitions: Vec<Partition> = self.first_retained.iter().map(|(partition, _)| *partition).collect();
        let Placement { nodes, lost: mut failed } = Placement::find(self.servers, self.stream, &partitions).await;
        let mut sum = Trimmed::default();
        for (trimmed, failed_there) in join_all(nodes.iter().map(|(node, there)| self.trim_at(node, there))).await {
            sum.count += trimmed.count;
            sum.is_more_left |= trimmed.is_more_left;
            failed.extend(failed_there);
        }
        (sum, failed)
    }

    /// Trims the streams of these partitions, which are at one server.
    async fn trim_at(&self, node: &Client, there: &[Partition]) -> (Trimmed, Vec<(Partition, Error)>) {
        let (mut sum, mut failed) = (Trimmed::default(), Vec::new());
        let mut connected = stream::redis::connect(node).await;
        for (partition, first_retained) in self.first_retained.iter().filter(|(partition, _)| there.contains(partition))
        {
            let redis = match &mut connected {
                Ok(redis) => redis,
                Err(error) => {
                    failed.push((*partition, anyhow!("{error:#}")));
                    continue;
                }
            };
            match trim(redis, &self.stream.key(*partition), *first_retained, self.len_max).await {
                Ok(trimmed) => {
                    counter!("rocket_rides_entries_trimmed_total", "partition" => partition.to_string())
                        .increment(trimmed.count);
                    sum.count += trimmed.count;
                    sum.is_more_left |= trimmed.is_more_left;
                }
                Err(error) => {
                    failed.push((*partition, error));
                    // After an error the connection is of no more use.
                    connected = stream::redis::connect(node).await;
                }
            }
        }
        (sum, failed)
    }
}

/// Removes the entries before `first_retained`, and the oldest entries beyond `len_max`.
///
/// Both cuts are approximate (`~`): Redis frees whole nodes of some hundred entries, which is cheap. Each command frees a
/// hundred nodes at most, so that other clients do not wait for long. So the command is repeated until it removes nothing.
///
/// # Errors
/// Redis is away, or refuses.
async fn trim(redis: &mut MultiplexedConnection, key: &str, first_retained: i64, len_max: u64) -> Result<Trimmed> {
    let oldest = EntryId { offset: first_retained, copy: 0 }.to_string();
    let mut trimmed = Trimmed::default();
    for (strategy, threshold) in [("MINID", oldest), ("MAXLEN", len_max.to_string())] {
        let mut is_done = false;
        for _ in 0..TRIMS_LEN_MAX {
            let mut trim = redis::cmd("XTRIM");
            trim.arg(key).arg(strategy).arg("~").arg(&threshold);
            let count: u64 = trim.query_async(redis).await.context("trimming the stream")?;
            trimmed.count += count;
            is_done = count == 0;
            if is_done {
                break;
            }
        }
        trimmed.is_more_left |= !is_done;
    }
    Ok(trimmed)
}
