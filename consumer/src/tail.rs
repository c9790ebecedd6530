//! A connection that reads one stream, page by page.
//!
//! A page can be asked for before the last one is committed. Redis then gathers it while Postgres commits.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use stream::codec::EntryId;
use stream::resp::Commands;
use stream::wire::Wire;

/// Entries per page.
pub(crate) const PAGE_LEN_MAX: usize = 1000;

/// A connection that does nothing but read one stream.
pub(crate) struct Tail {
    wire: Wire,
    key: String,
    /// The position of the read that was sent and not answered yet.
    asked_after: Option<EntryId>,
}

impl Tail {
    /// Connects, for reads that block up to `block`.
    ///
    /// # Errors
    /// Redis is away, or refuses: back off and try again.
    pub async fn connect(redis: &redis::Client, key: &str, block: Option<Duration>) -> Result<Self> {
        let wire = Wire::connect(redis, block.unwrap_or_default()).await?;
        Ok(Self { wire, key: key.to_owned(), asked_after: None })
    }

    /// Whether it can read on after `position`. It cannot if another page was asked for, because that page will come first.
    pub fn is_ready_for(&self, position: EntryId) -> bool {
        self.asked_after.is_none_or(|after| after == position)
    }

    /// Asks for the entries after `position`, unless they were asked for already. Must be
    /// [ready for](Self::is_ready_for) this position.
    ///
    /// # Errors
    /// Redis is away. The connection is of no more use.
    pub async fn ask(&mut self, position: EntryId, block: Option<Duration>) -> Result<()> {
        assert!(self.is_ready_for(position), "one page is asked for at a time");
        if self.asked_after.is_some() {
            return Ok(());
        }
        let (count, position_text) = (PAGE_LEN_MAX.to_string(), position.to_string());
        let mut read = Commands::default();
        match block.map(|block| block.as_millis().to_string()) {
            Some(block) => read.add(&["XREAD", "COUNT", &count, "BLOCK", &block, "STREAMS", &self.key, &position_text]),
            None => read.add(&["XREAD", "COUNT", &count, "STREAMS", &self.key, &position_text]),
        };
        self.wire.send(&read).await.context("reading the stream")?;
        self.asked_after = Some(position);
        Ok(())
    }

    /// Waits for the page that was asked for, for [`decode_xread`](stream::codec::decode_xread). If the future is dropped,
    /// nothing is lost: the next call gets the page.
    ///
    /// # Errors
    /// Redis is away. The connection is of no more use.
    pub async fn page(&mut self) -> Result<Bytes> {
        let page = self.wire.read(1).await.context("reading the stream")?;
        self.asked_after = None;
        Ok(page)
    }
}
