//! A connection that reads some streams, page by page.
//!
//! A page can be asked for before the last one is committed. Redis then gathers it while Postgres commits.

use std::ops::Range;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use common::backoff::Backoff;
use stream::Servers;
use stream::codec::{DecodeError, EntryId};
use stream::refusal::moved_to;
use stream::resp::Commands;
use stream::wire::Wire;
use tokio::time::{sleep_until, timeout_at};

/// Records per page.
pub(crate) const PAGE_LEN_MAX: usize = 1000;

/// Entries per read, in all streams of a connection together. Their pages are committed by one statement: a commit of several
/// checkpoints costs more than one of one.
const READ_LEN_MAX: usize = 4 * PAGE_LEN_MAX;

/// The size of a reply, in bytes, after which the next read is no longer than a page: its records are large.
const LARGE_REPLY: usize = 4_000_000;

/// The longest wait between two attempts while Redis is away. When a node of a cluster has died, another one soon takes its place.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long Redis may keep silent beyond the time that a read blocks: a server that writes its log to a slow disk, and a node of a
/// cluster, which another one replaces when it hangs.
const SILENCE_WAIT: Duration = Duration::from_secs(5);
const NODE_SILENCE_WAIT: Duration = Duration::from_secs(2);

/// A connection that does nothing but read.
pub(crate) struct Tail {
    /// The streams that it reads, by their index.
    pub streams: Range<usize>,
    link: Link,
    /// The read that was sent and not answered yet.
    asked: Option<Asked>,
    /// A command is being written. If that was cut short, the connection is of no more use.
    is_writing: bool,
    /// Entries per read, in all streams.
    read_len: usize,
    backoff: Backoff,
    /// When to try Redis again after a failure.
    retry_at: Option<Instant>,
    is_readable: bool,
    /// The last reply said that another node has the stream.
    was_moved: bool,
}

enum Link {
    Closed,
    Opening(Pin<Box<dyn Future<Output = Result<Wire>> + Send + Sync>>),
    Open(Wire),
}

/// A read: the position in each stream, and when its reply is overdue.
struct Asked {
    positions: Vec<EntryId>,
    until: Instant,
}

/// What a tail has heard.
pub(crate) enum Reply {
    /// For [`decode_xreads`](stream::codec::decode_xreads).
    Page(Bytes),
    /// The server is a node of a Redis Cluster, and one read cannot have streams of several slots.
    IsCluster,
}

impl Tail {
    /// A tail that reads these streams, and connects when it is first used.
    pub fn new(streams: Range<usize>) -> Self {
        Self {
            streams,
            link: Link::Closed,
            asked: None,
            is_writing: false,
            read_len: READ_LEN_MAX,
            backoff: Backoff::up_to(RETRY_WAIT_MAX),
            retry_at: None,
            is_readable: true,
            was_moved: false,
        }
    }

    /// Whether its streams could be read when it was last tried.
    pub fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// Whether Redis is given time to come back.
    pub fn is_pausing(&self) -> bool {
        self.retry_at.is_some_and(|retry_at| Instant::now() < retry_at)
    }

    /// Entries of one stream per page.
    pub fn len_max(&self) -> usize {
        self.read_len.div_ceil(self.streams.len()).min(PAGE_LEN_MAX)
    }

    /// The page after these positions. It waits while Redis is given time to come back, connects if needed, asks unless that page
    /// was asked for already, and waits for entries up to `block`. If the future is dropped, the next call goes on.
    ///
    /// # Errors
    /// Redis is away. Call [`note_failure`](Self::note_failure).
    pub async fn page(
        &mut self,
        servers: &Servers,
        keys: &[String],
        positions: &[EntryId],
        block: Option<Duration>,
    ) -> Result<Reply> {
        let (keys, positions) = (&keys[self.streams.clone()], &positions[self.streams.clone()]);
        // Another page was asked for, and would come first.
        if self.is_writing || self.asked.as_ref().is_some_and(|asked| asked.positions != positions) {
            self.disconnect();
        }
        if let Some(retry_at) = self.retry_at {
            sleep_until(retry_at.into()).await;
            self.retry_at = None;
        }
        if !matches!(self.link, Link::Open(_)) {
            self.connect(servers, &keys[0], block).await?;
        }
        let Link::Open(wire) = &self.link else { unreachable!("it was just opened") };
        if wire.is_cluster() && self.streams.len() > 1 {
            return Ok(Reply::IsCluster);
        }
        if self.asked.is_none() {
            self.ask(keys, positions, block).await?;
        }
        let (Link::Open(wire), Some(asked)) = (&mut self.link, &self.asked) else {
            unreachable!("a page was asked for")
        };
        let page = timeout_at(asked.until.into(), wire.read(1)).await;
        let page = page.context("redis does not answer")?.context("reading the stream")?;
        self.asked = None;
        self.read_len = if page.len() > LARGE_REPLY { PAGE_LEN_MAX } else { READ_LEN_MAX };
        Ok(Reply::Page(page))
    }

    async fn connect(&mut self, servers: &Servers, key: &str, block: Option<Duration>) -> Result<()> {
        if matches!(self.link, Link::Closed) {
            let (servers, key) = (servers.clone(), key.to_owned());
            self.link = Link::Opening(Box::pin(async move { servers.wire(&key, block.unwrap_or_default()).await }));
        }
        if let Link::Opening(opening) = &mut self.link {
            let wire = opening.await;
            // A future that has ended must not be polled again.
            self.link = Link::Closed;
            self.link = Link::Open(wire?);
        }
        Ok(())
    }

    /// Asks for the page after these positions, of which there is one per stream.
    async fn ask(&mut self, keys: &[String], positions: &[EntryId], block: Option<Duration>) -> Result<()> {
        let count = self.len_max() as i64;
        let Link::Open(wire) = &mut self.link else { return Ok(()) };
        let mut read = Commands::default();
        read.begin(4 + if block.is_some() { 2 } else { 0 } + 2 * keys.len());
        read.arg("XREAD").arg("COUNT").number(count);
        if let Some(block) = block {
            read.arg("BLOCK").number(block.as_millis() as i64);
        }
        read.arg("STREAMS");
        keys.iter().for_each(|key| {
            read.arg(key);
        });
        positions.iter().for_each(|position| {
            read.arg(position.to_string());
        });
        let silence_wait = if wire.is_cluster() { NODE_SILENCE_WAIT } else { SILENCE_WAIT };
        self.is_writing = true;
        wire.send(&read).await.context("reading the stream")?;
        self.is_writing = false;
        let until = Instant::now() + block.unwrap_or_default() + silence_wait;
        self.asked = Some(Asked { positions: positions.to_vec(), until });
        Ok(())
    }

    /// Asks for the page after these positions, where reading goes on if the page in hand can be committed. Redis gathers it
    /// meanwhile. Does nothing if a page was asked for already.
    pub async fn read_ahead(&mut self, keys: &[String], positions: &[EntryId], block: Option<Duration>) {
        if self.asked.is_some() || self.is_writing {
            return;
        }
        let (keys, positions) = (&keys[self.streams.clone()], &positions[self.streams.clone()]);
        if self.ask(keys, positions, block).await.is_err() {
            // The next read connects anew, and reports the error if it lasts.
            self.disconnect();
        }
    }

    /// The page was one of ours: the wait after the next failure is short again.
    pub fn note_success(&mut self) {
        self.backoff.reset();
        (self.is_readable, self.was_moved) = (true, false);
    }

    /// The page could not be read or decoded. Gives Redis time to come back, and returns how much. `None`: another node has the
    /// stream, and is asked at once.
    pub fn note_failure(&mut self, error: &anyhow::Error) -> Option<Duration> {
        self.disconnect();
        let is_moved = matches!(error.downcast_ref(), Some(DecodeError::Refused(line)) if moved_to(line).is_some());
        if is_moved && !std::mem::replace(&mut self.was_moved, true) {
            return None;
        }
        let wait = self.backoff.next_wait();
        (self.is_readable, self.retry_at) = (false, Some(Instant::now() + wait));
        Some(wait)
    }

    /// Closes the connection. After a failed or overdue reply it is of no more use.
    pub fn disconnect(&mut self) {
        (self.link, self.asked, self.is_writing) = (Link::Closed, None, false);
    }
}
