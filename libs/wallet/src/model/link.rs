//! The connection to Redis. All requests that wait are sent together, and a request waits for Redis a bounded time.
//!
//! ```text
//! up   --a command fails, or has no reply in time--> down: each request is refused at once
//! down --every second: Redis replies and takes writes--> up
//! ```
//!
//! Documents that should have been written, and were not, are remembered. They are deleted before any document is read again: a
//! reader that finds none reads Postgres.

use std::borrow::Cow;
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use common::tasks::after_all_other_tasks;
use monitor::gauge;
use redis::Client;
use stream::resp::{Commands, Element, Elements};
use stream::wire::Wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Away, Epoch, Mark, Run, UP};
use crate::WalletId;
use crate::args::WANTS_OWN_SERVER;

/// Requests that may wait. Further ones are refused.
const QUEUE_LEN_MAX: usize = 4096;

/// Requests that are sent together at most.
const GROUP_LEN_MAX: usize = 512;

/// The pause between two attempts to connect.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// After this time without a request the mark is asked for: it may be another one by now, or Redis may be gone.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// A connection is given up after this time without a reply. Requests wait for less: a Redis that is slow for a moment stays
/// connected.
const REPLY_WAIT_MIN: Duration = Duration::from_millis(250);

/// Documents that are remembered for deletion at most. The projector mends the others.
const OUTDATED_COUNT_MAX: usize = 100_000;

/// Documents that are deleted by one command. It takes Redis some 8 ms, in which Redis does nothing else.
const DELETION_LEN_MAX: usize = 1000;

/// A request that waits.
struct Waiting {
    commands: Commands,
    /// The wallets whose documents are outdated if Redis does not get the commands.
    outdated: Vec<WalletId>,
    reply: oneshot::Sender<Reply>,
}

/// The reply to one request.
pub(super) struct Reply {
    /// The mark just before the commands.
    pub mark: Option<Mark>,
    /// Only documents of this epoch are to be believed.
    pub epoch: Option<Epoch>,
    /// The replies to its commands.
    pub bytes: Vec<u8>,
}

/// The sending end. Clones share the connection, which is closed after the last one is dropped.
#[derive(Clone)]
pub(super) struct Link {
    waiting: mpsc::Sender<Waiting>,
    wait: Duration,
    seen: Seen,
    outdated: Outdated,
}

/// The wallets whose documents may be outdated, because a request did not reach Redis.
#[derive(Clone, Default)]
struct Outdated(Arc<Mutex<HashSet<WalletId>>>);

impl Outdated {
    fn add(&self, wallets: Vec<WalletId>) {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = OUTDATED_COUNT_MAX.saturating_sub(set.len());
        set.extend(wallets.into_iter().take(room));
    }

    /// Takes some of them out.
    fn take(&self) -> Vec<WalletId> {
        let mut set = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wallets: Vec<WalletId> = set.iter().take(DELETION_LEN_MAX).copied().collect();
        for wallet in &wallets {
            set.remove(wallet);
        }
        wallets
    }
}

/// The newest mark of this connection and of those before it, and the run of Redis.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(Option<Mark>, Run)>>);

impl Seen {
    fn get(&self) -> (Option<Mark>, Run) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection to this run begins.
    fn begin(&self, run: Run) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = run;
    }

    /// Notes a mark. Returns the epoch whose documents are to be believed. A mark of another run is none: Redis was restarted.
    /// Within an epoch a mark never goes back, except if Redis has lost its newest writes: then none is believed.
    fn note(&self, mark: Option<Mark>) -> Option<Epoch> {
        let (seen, run) = self.get();
        let mark = mark.filter(|mark| mark.epoch.is_for(run));
        if let (Some(mark), Some(seen)) = (&mark, &seen)
            && mark.is_behind(seen)
        {
            return None;
        }
        let epoch = mark.as_ref().map(|mark| mark.epoch);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = mark;
        epoch
    }
}

impl Link {
    /// Connects to `client` in the background. A request waits up to `wait`.
    pub fn start(client: Client, mark_key: String, wait: Duration) -> Self {
        let (waiting, receiver) = mpsc::channel(QUEUE_LEN_MAX);
        let (seen, outdated) = (Seen::default(), Outdated::default());
        let reply_wait = wait.max(REPLY_WAIT_MIN);
        let redis = Redis { client, mark_key, reply_wait, seen: seen.clone(), outdated: outdated.clone() };
        tokio::spawn(serve(receiver, redis));
        Self { waiting, wait, seen, outdated }
    }

    /// The newest mark.
    pub fn mark(&self) -> Option<Mark> {
        self.seen.get().0
    }

    /// The run of Redis.
    pub fn run(&self) -> Run {
        self.seen.get().1
    }

    /// Sends commands, with all others that wait, and returns their replies. `outdated` are the wallets whose documents the
    /// commands are to replace.
    ///
    /// # Errors
    /// Redis is away, or it does not reply in time: whether it got the commands is unknown.
    pub async fn ask(&self, commands: Commands, outdated: Vec<WalletId>) -> Result<Reply, Away> {
        let (reply, replied) = oneshot::channel();
        if let Err(refused) = self.waiting.try_send(Waiting { commands, outdated, reply }) {
            self.outdated.add(refused.into_inner().outdated);
            return Err(Away);
        }
        timeout(self.wait, replied).await.map_err(|_| Away)?.map_err(|_| Away)
    }
}

async fn serve(mut waiting: mpsc::Receiver<Waiting>, redis: Redis) {
    let mut pause = Duration::ZERO;
    loop {
        gauge!(UP).set(0.0);
        let Some(wire) = redis.connect(&mut waiting, pause).await else { return };
        info!("the wallets' read model is there");
        let Some(error) = redis.exchange(wire, &mut waiting).await else { return };
        warn!(error = format!("{error:#}"), "the wallets' read model is away: wallets are read from Postgres");
        pause = RETRY_WAIT;
    }
}

/// Where the read model is.
struct Redis {
    client: Client,
    mark_key: String,
    reply_wait: Duration,
    seen: Seen,
    outdated: Outdated,
}

impl Redis {
    /// Connects, and refuses requests meanwhile; before the first attempt has failed, they wait. `None`: there will be no more
    /// requests.
    async fn connect(&self, waiting: &mut mpsc::Receiver<Waiting>, mut pause: Duration) -> Option<Wire> {
        loop {
            let mut attempt: Pin<Box<dyn Future<Output = Result<Wire>> + Send>> = Box::pin(async {
                sleep(pause).await;
                self.open().await
            });
            let opened = loop {
                tokio::select! {
                    biased;
                    opened = &mut attempt => break opened,
                    refused = waiting.recv(), if !pause.is_zero() => self.outdated.add(refused?.outdated),
                }
            };
            drop(attempt);
            match opened {
                Ok(wire) => return Some(wire),
                Err(error) => warn!(error = format!("{error:#}"), "the wallets' read model is away"),
            }
            pause = RETRY_WAIT;
        }
    }

    /// A connection to a server that takes writes, and whose mark is known.
    async fn open(&self) -> Result<Wire> {
        let mut wire = Wire::connect(&self.client, Duration::ZERO).await?;
        // Mark and documents lie in different hash slots, and one script writes them.
        ensure!(!wire.is_cluster(), "this Redis is a node of a Redis Cluster: {WANTS_OWN_SERVER}");
        let mut question = Commands::default();
        question.add(&["INFO", "server", "replication"]);
        wire.send(&question).await?;
        let reply = wire.read(1).await?;
        let info = match Elements::of(&reply).next() {
            Some(Element::Bulk(info)) => String::from_utf8_lossy(info),
            Some(Element::Error(line)) => bail!("redis refuses: {}", String::from_utf8_lossy(line)),
            _ => Cow::default(),
        };
        ensure!(info.contains("role:master"), "this Redis is a replica and takes no writes: name the primary");
        self.seen.begin(Run::of_info(&info).context("Redis does not tell its run_id")?);
        self.ask(&mut wire, &[]).await?;
        Ok(wire)
    }

    /// Deletes the documents that are remembered, some at a time.
    async fn delete_outdated(&self, wire: &mut Wire) -> Result<()> {
        loop {
            let wallets = self.outdated.take();
            if wallets.is_empty() {
                return Ok(());
            }
            let deletion =
                Waiting { commands: super::deletion(&wallets), outdated: vec![], reply: oneshot::channel().0 };
            if let Err(error) = self.ask(wire, &[deletion]).await {
                self.outdated.add(wallets);
                return Err(error);
            }
        }
    }

    /// Serves requests in groups until one fails, and deletes what is remembered before each group. `None`: there will be no more
    /// requests.
    async fn exchange(&self, mut wire: Wire, waiting: &mut mpsc::Receiver<Waiting>) -> Option<anyhow::Error> {
        let mut group = Vec::with_capacity(GROUP_LEN_MAX);
        loop {
            if let Ok(request) = timeout(IDLE_WAIT, waiting.recv()).await {
                group.push(request?);
            }
            // Requests that already lie in sockets would otherwise miss this group by microseconds.
            after_all_other_tasks().await;
            while group.len() < GROUP_LEN_MAX
                && let Ok(next) = waiting.try_recv()
            {
                group.push(next);
            }
            let replied = async {
                self.delete_outdated(&mut wire).await?;
                self.ask(&mut wire, &group).await
            };
            match replied.await {
                Ok(replies) => {
                    for (Waiting { reply, .. }, sent) in group.drain(..).zip(replies) {
                        // An error means that the request waits no longer.
                        let _ = reply.send(sent);
                    }
                }
                Err(error) => {
                    group.drain(..).for_each(|request| self.outdated.add(request.outdated));
                    return Some(error);
                }
            }
        }
    }

    /// One round trip, in a bounded time: the mark, and then all commands of the group.
    async fn ask(&self, wire: &mut Wire, group: &[Waiting]) -> Result<Vec<Reply>> {
        timeout(self.reply_wait, self.round_trip(wire, group)).await.context("no reply in time")?
    }

    async fn round_trip(&self, wire: &mut Wire, group: &[Waiting]) -> Result<Vec<Reply>> {
        let len = group.iter().map(|request| request.commands.bytes().len()).sum::<usize>();
        let mut commands = Commands::with_capacity(len + 128);
        commands.add(&["GET", &self.mark_key]);
        group.iter().for_each(|request| commands.append(&request.commands));
        wire.send(&commands).await?;
        let bytes = wire.read(commands.count()).await?;
        let mut elements = Elements::of(&bytes);
        let mark = match elements.next() {
            Some(Element::Bulk(text)) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            Some(Element::Error(line)) => bail!("redis refuses: {}", String::from_utf8_lossy(line)),
            _ => None,
        };
        let epoch = self.seen.note(mark.clone());
        gauge!(UP).set(if epoch.is_some() { 1.0 } else { 0.0 });
        let mut replies = Vec::with_capacity(group.len());
        for request in group {
            let all = elements.rest();
            for _ in 0..request.commands.count() {
                refuse_errors(elements.clone().next())?;
                elements.skip_value();
            }
            replies.push(Reply { mark: mark.clone(), epoch, bytes: all[..all.len() - elements.rest().len()].to_vec() });
        }
        Ok(replies)
    }
}

/// Any error but that of a document's key which has another type of value: reading it finds no document, and writing
/// replaces it.
fn refuse_errors(reply: Option<Element<'_>>) -> Result<()> {
    match reply {
        Some(Element::Error(line)) if !line.starts_with(b"WRONGTYPE") => {
            bail!("redis refuses: {}", String::from_utf8_lossy(line))
        }
        _ => Ok(()),
    }
}
