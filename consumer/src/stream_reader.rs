//! The streams as a consumer reads them: page after page, with pauses while Redis is away.
//!
//! One Redis server is asked for all streams by one read, over one connection. In a Redis Cluster a read can have streams of one
//! hash slot only. There each stream has a connection of its own, which is opened in the background: a node that is away holds back
//! its own streams, and no others.
//!
//! The stream is only the fast way to the records. If it cannot be read, the consumer reads Postgres meanwhile (I6).

use std::future::pending;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use common::shutdown::CancellationToken;
use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use stream::Servers;
use stream::codec::EntryId;
use stream::resp::{Element, Elements};
use tokio::time::sleep_until;

use crate::tail::{Reply, Tail};

/// Reads streams.
pub(crate) struct StreamReader {
    /// `None`: there is nothing to read.
    servers: Option<Servers>,
    /// The keys of the streams.
    keys: Vec<String>,
    tails: Vec<Tail>,
}

/// A tail has answered.
pub(crate) struct Heard {
    /// The index of the tail.
    pub tail: usize,
    /// For [`decode_xreads`](stream::codec::decode_xreads).
    pub page: Result<Bytes>,
}

impl Heard {
    /// Whether the streams have nothing new.
    pub fn is_nil(&self) -> bool {
        self.page.as_ref().is_ok_and(|page| Elements::of(page).next() == Some(Element::Nil))
    }
}

impl StreamReader {
    /// A reader of no stream yet.
    pub fn new(servers: Option<&Servers>) -> Self {
        Self { servers: servers.cloned(), keys: Vec::new(), tails: Vec::new() }
    }

    /// Reads the streams under these keys from now on.
    pub fn read_keys(&mut self, keys: Vec<String>) {
        if self.keys != keys {
            self.keys = keys;
            let is_cluster = self.servers.as_ref().is_some_and(Servers::is_cluster);
            self.tails = if is_cluster { self.tail_per_stream() } else { vec![Tail::new(0..self.keys.len())] };
        }
    }

    fn tail_per_stream(&self) -> Vec<Tail> {
        (0..self.keys.len()).map(|index| Tail::new(index..index + 1)).collect()
    }

    /// Whether all streams could be read when they were last tried.
    pub fn is_readable(&self) -> bool {
        self.tails.iter().all(Tail::is_readable)
    }

    /// Whether this stream could be read when it was last tried.
    pub fn reads(&self, stream: usize) -> bool {
        self.tails.iter().any(|tail| tail.streams.contains(&stream) && tail.is_readable())
    }

    /// The index of the stream with this key, among those of a tail.
    pub fn stream_of(&self, tail: usize, key: &[u8]) -> Option<usize> {
        self.streams_of(tail).find(|index| self.keys[*index].as_bytes() == key)
    }

    /// The streams that a tail reads.
    pub fn streams_of(&self, tail: usize) -> Range<usize> {
        self.tails[tail].streams.clone()
    }

    /// The most entries of one stream in a page of a tail.
    pub fn len_max(&self, tail: usize) -> usize {
        self.tails[tail].len_max()
    }

    /// Pages after these positions, of which there is one per stream. With `block` it waits for entries, until the time `until` or
    /// until the shutdown begins, and returns what has arrived by then. If there is one stream, the wait ends after `block`, too.
    /// Without `block` it waits for the answer of each tail that is not away.
    pub async fn pages(
        &mut self,
        positions: &[EntryId],
        block: Option<Duration>,
        until: Option<Instant>,
        shutdown: &CancellationToken,
    ) -> Vec<Heard> {
        loop {
            let replies = self.replies(positions, block, until, shutdown).await;
            if replies.iter().any(|(_, reply)| matches!(reply, Ok(Reply::IsCluster))) {
                self.tails = self.tail_per_stream();
                continue;
            }
            let heard = replies.into_iter().filter_map(|(tail, reply)| match reply {
                Ok(Reply::Page(page)) => Some(Heard { tail, page: Ok(page) }),
                Ok(Reply::IsCluster) => None,
                Err(error) => Some(Heard { tail, page: Err(error) }),
            });
            let heard: Vec<Heard> = heard.collect();
            // Postgres is asked on a clock of its own, whether the streams are silent or not.
            let is_silent = !heard.is_empty() && heard.iter().all(Heard::is_nil);
            if is_silent && block.is_some() && self.keys.len() > 1 {
                for Heard { tail, .. } in &heard {
                    self.tails[*tail].note_success();
                }
                continue;
            }
            return heard;
        }
    }

    async fn replies(
        &mut self,
        positions: &[EntryId],
        block: Option<Duration>,
        until: Option<Instant>,
        shutdown: &CancellationToken,
    ) -> Vec<(usize, Result<Reply>)> {
        let Some(servers) = &self.servers else { return Vec::new() };
        let keys = &self.keys;
        let tails = self.tails.iter_mut().enumerate().filter(|(_, tail)| block.is_some() || !tail.is_pausing());
        let mut reading: FuturesUnordered<_> = tails
            .map(|(index, tail)| async move { (index, tail.page(servers, keys, positions, block).await) })
            .collect();
        if block.is_none() {
            return tokio::select! {
                replies = reading.collect::<Vec<_>>() => replies,
                () = shutdown.cancelled() => Vec::new(),
            };
        }
        tokio::select! {
            biased;
            Some(first) = reading.next() => {
                let mut replies = vec![first];
                while let Some(Some(next)) = reading.next().now_or_never() {
                    replies.push(next);
                }
                replies
            }
            () = wait_until(until) => Vec::new(),
            () = shutdown.cancelled() => Vec::new(),
        }
    }

    /// Asks for the next page of a tail: see [`Tail::read_ahead`]. The page in hand is `full` if more entries are there for certain.
    pub async fn read_ahead(&mut self, tail: usize, positions: &[EntryId], is_full: bool, block: Option<Duration>) {
        // A read that does not wait must not be answered before it is wanted, unless more entries are there for certain.
        if block.is_some() || is_full {
            self.tails[tail].read_ahead(&self.keys, positions, block).await;
        }
    }

    /// As [`Tail::note_success`].
    pub fn note_success(&mut self, tail: usize) {
        self.tails[tail].note_success();
    }

    /// As [`Tail::note_failure`].
    pub fn note_failure(&mut self, tail: usize, error: &anyhow::Error) -> Option<Duration> {
        self.tails[tail].note_failure(error)
    }

    /// Closes all connections.
    pub fn disconnect(&mut self) {
        self.tails.iter_mut().for_each(Tail::disconnect);
    }
}

async fn wait_until(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => pending().await,
    }
}
