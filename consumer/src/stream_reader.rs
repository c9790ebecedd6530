//! The stream as a consumer reads it: page after page, with pauses while Redis is away.
//!
//! The stream is only the fast way to the records. If it cannot be read, the consumer reads Postgres meanwhile (I6).

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use stream::StreamArgs;
use stream::codec::EntryId;

use crate::tail::{PAGE_LEN_MAX, Tail};

/// The longest wait between two attempts while Redis is away.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(2);

/// How often Postgres is asked for more while Redis is given time to come back.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Reads one stream.
pub(crate) struct StreamReader {
    redis: redis::Client,
    key: String,
    tail: Option<Tail>,
    backoff: Backoff,
    /// Redis is away: when to try it again.
    retry_at: Option<Instant>,
}

impl StreamReader {
    /// Connects when first used.
    pub fn new(args: &StreamArgs) -> Self {
        Self {
            redis: args.redis_url.first().clone(),
            key: args.key(),
            tail: None,
            backoff: Backoff::up_to(RETRY_WAIT_MAX),
            retry_at: None,
        }
    }

    /// Whether the stream could be read when it was last tried.
    pub fn is_readable(&self) -> bool {
        self.retry_at.is_none()
    }

    /// The page after `position`, for [`decode_xread`](stream::codec::decode_xread); waits for entries up to `block`. `None`
    /// while Redis is given time to come back, and when the shutdown begins.
    ///
    /// # Errors
    /// Redis is away. Call [`note_failure`](Self::note_failure).
    pub async fn read(
        &mut self,
        position: EntryId,
        block: Option<Duration>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Bytes>> {
        if self.retry_at.is_some_and(|retry_at| Instant::now() < retry_at) {
            if block.is_some() {
                sleep_or_stop(POLL_INTERVAL, shutdown).await;
            }
            return Ok(None);
        }
        self.retry_at = None;
        let tail = match self.tail.take().filter(|tail| tail.is_ready_for(position)) {
            Some(tail) => tail,
            None => Tail::connect(&self.redis, &self.key, block).await?,
        };
        let tail = self.tail.insert(tail);
        tail.ask(position, block).await?;
        tokio::select! {
            page = tail.page() => page.map(Some),
            () = shutdown.cancelled() => Ok(None),
        }
    }

    /// Asks for the page after `position`, where reading goes on if the page in hand, of `page_len` entries, can be
    /// committed. Redis gathers it meanwhile. Does nothing if the page was asked for already.
    pub async fn read_ahead(&mut self, position: EntryId, page_len: usize, block: Option<Duration>) {
        // A read that does not wait must not be answered before it is wanted, unless more entries are there for certain.
        if block.is_none() && page_len < PAGE_LEN_MAX {
            return;
        }
        if let Some(tail) = &mut self.tail
            && tail.ask(position, block).await.is_err()
        {
            // The next read connects anew, and reports the error if it lasts.
            self.tail = None;
        }
    }

    /// The page was one of ours: the wait after the next failure is short again.
    pub fn note_success(&mut self) {
        self.backoff.reset();
    }

    /// The page could not be read or decoded. Gives Redis time to come back, and returns how much.
    pub fn note_failure(&mut self) -> Duration {
        self.disconnect();
        let wait = self.backoff.next_wait();
        self.retry_at = Some(Instant::now() + wait);
        wait
    }

    /// Closes the connection. After a failed or overdue reply it is of no more use.
    pub fn disconnect(&mut self) {
        self.tail = None;
    }
}
