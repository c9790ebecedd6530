//! A connected streamer, and its one bounded step: fix the order of staged records in Postgres, then append to the stream
//! the records that it lacks.
//!
//! The lifetimes are nested. The [`LeaderSession`] with Postgres survives errors of Redis, and with it the lock. The
//! [`Appender`] lives within it and survives no error.

use std::sync::Arc;

use anyhow::Result;
use common::fault::die;
use pglog::{Cut, Cutter, Reader};
use tokio::sync::Notify;
use tracing::debug;

use crate::appender::{Appender, StreamAddress};
use crate::fault::Fault;
use crate::hints::Hints;
use crate::leadership::{LeaderSession, LockPolicy};
use crate::publish::Published;

/// A batch of at most so many records is read by the statement that cuts it, which saves a round trip. At moderate rates
/// nearly all batches are this small.
const SMALL_LEN_MAX: i64 = 100;

/// The result of [`Streamer::run_once`](crate::Streamer::run_once).
#[derive(Debug)]
pub enum Step {
    /// It published records. There may be more.
    Published(Published),
    /// It has come closer to the next records: it counts a huge batch, or looks for a place in it. The next step goes on.
    Searching,
    /// Everything staged is published.
    Idle,
    /// Another streamer leads.
    StandingBy,
}

/// The result of looking for staged records.
enum Assigned {
    Nothing,
    Batch,
    Counting,
}

/// A streamer that is connected to Postgres. It leads while its session holds the lock; otherwise it stands by.
pub(crate) struct Leader {
    session: LeaderSession,
    cutter: Cutter,
    address: StreamAddress,
    hints: Hints,
    /// `None` until Redis is needed, and after every error.
    appender: Option<Appender>,
}

impl Leader {
    /// Connects to Postgres. While it leads, a hint that records were staged is passed on to `hint`.
    ///
    /// # Errors
    /// Postgres is away, or the tables are of another version.
    pub async fn connect(
        postgres: &tokio_postgres::Config,
        address: &StreamAddress,
        hint: Arc<Notify>,
        policy: LockPolicy,
    ) -> Result<Self> {
        let session = LeaderSession::connect(postgres, policy).await?;
        Ok(Self {
            session,
            cutter: Cutter::new(address.partition),
            address: address.clone(),
            hints: Hints::new(postgres, hint),
            appender: None,
        })
    }

    /// Whether the session holds the lock.
    pub fn leads(&self) -> bool {
        self.session.is_leading()
    }

    /// Forgets the stream: its connection, and where publishing goes on.
    pub fn forget_stream(&mut self) {
        self.appender = None;
    }

    /// Whether records are known that the stream does not have.
    pub fn is_behind_head(&self) -> bool {
        self.appender.as_ref().is_some_and(Appender::is_behind_head)
    }

    /// Publishes one page. If none is known to be missing, gives offsets to the records staged since and looks at the
    /// stream's end first. `page_start` is where the last page began: see [`Streamer`](crate::Streamer).
    ///
    /// # Errors
    /// A server is away, or refuses.
    pub async fn step(&mut self, fault: Fault, page_start: &mut Option<Reader>) -> Result<Step> {
        if !self.session.leads(self.address.partition).await? {
            if let Some(appender) = &mut self.appender {
                appender.forget_cursor();
            }
            return Ok(Step::StandingBy);
        }
        self.hints.listen();
        let client = &self.session.client;
        if let Some(appender) = &mut self.appender
            && let Some(ready) = appender.next_page(client, page_start).await?
        {
            return appender.publish(client, ready, page_start, fault).await.map(Step::Published);
        }
        // Before the stream is asked for anything: consumers can read an assigned batch from Postgres, even while Redis is
        // away.
        match self.assign().await? {
            Assigned::Batch if fault == Fault::DieAfterAssign => die(),
            Assigned::Nothing | Assigned::Batch => {}
            // The count would be lost with the leader if a Redis that is away failed this step.
            Assigned::Counting => return Ok(Step::Searching),
        }
        let client = &self.session.client;
        let appender = open(&mut self.appender, &self.address).await?;
        appender.check_end(client).await?;
        // A true leader cuts alone. If another process cut a batch all the same, the check has found it.
        match appender.next_page(client, page_start).await? {
            Some(ready) => appender.publish(client, ready, page_start, fault).await.map(Step::Published),
            None if appender.is_searching() => Ok(Step::Searching),
            None => Ok(Step::Idle),
        }
    }

    /// Gives offsets to the records that were staged since the last batch.
    async fn assign(&mut self) -> Result<Assigned> {
        // Not negative, so that it reads the same in every language.
        let token = rand::random::<i64>() & i64::MAX;
        let (batch, page) = match self.cutter.cut(&self.session.client, token, SMALL_LEN_MAX).await? {
            Cut::Nothing => return Ok(Assigned::Nothing),
            Cut::Counting => return Ok(Assigned::Counting),
            Cut::Batch(batch, page) => (batch, page),
        };
        debug!(first_offset = batch.first_offset, record_count = batch.record_count, "batch cut");
        if let Some(cursor) = self.appender.as_mut().and_then(Appender::cursor) {
            cursor.add_batch(batch, page);
        }
        Ok(Assigned::Batch)
    }

    /// Whether a streamer that stands by sees anything that is not published yet.
    ///
    /// # Errors
    /// A server is away, or Redis refuses.
    pub async fn is_anything_left(&mut self) -> Result<bool> {
        let last_offset = open(&mut self.appender, &self.address).await?.last_offset().await?;
        let (client, partition) = (&self.session.client, self.address.partition);
        let head = pglog::head(client, partition).await?;
        // Records that every consumer has passed are not published again when the stream loses them.
        let passed = pglog::lowest_checkpoint(client, partition).await?.unwrap_or(0);
        Ok(last_offset.max(passed) < head || pglog::is_anything_staged(client, partition).await?)
    }
}

/// The appender, connected if it was not.
async fn open<'a>(appender: &'a mut Option<Appender>, address: &StreamAddress) -> Result<&'a mut Appender> {
    let opened = match appender.take() {
        Some(opened) => opened,
        None => Appender::connect(address).await?,
    };
    Ok(appender.insert(opened))
}
