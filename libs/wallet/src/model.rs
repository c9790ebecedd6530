//! The read model: the [documents](crate::documents) of all wallets in Redis, under `wallet.<ksuid>`. Postgres has the truth, and
//! Redis may lose anything at any time. A reader that finds no document reads Postgres.
//!
//! The api writes a document after each commit. The consumer with the fold `wallets` makes documents certain: it moves the
//! [`Mark`] to an offset of a partition after the documents reflect all its records up to there. All of them write by one script, so
//! each write is atomic.
//!
//! # Why no reader is shown a wrong document for long
//!
//! - **A late writer with an old version** (it read Postgres, and then was stopped): the script keeps the newer document (W6).
//!   If the newer document was deleted meanwhile, the old one is written, and stays until the scrubber compares it.
//! - **A late writer from before Postgres was put back**: it presents the [`Epoch`] that it knew *before* its transaction or
//!   its read began. After Postgres was put back, the projector begins a new epoch, and the script refuses any other. Documents
//!   of other epochs are not there for readers.
//! - **Two events of one wallet with the same version**: one of them is of a timeline that is gone. The script deletes the mark.
//!   Readers find nothing, and the projector begins a new epoch.
//! - **FLUSHALL, eviction**: without a mark no document is believed or written. A missing document is read from Postgres.
//! - **A restart of Redis**, which may lose the newest writes: an epoch is of one [`Run`] of Redis. Each reader asks for the run
//!   when it connects, and believes no document of another. The projector begins a new epoch.
//! - **A lost tail** by another cause (a key that was put back): the mark is below the projector's checkpoint, so the script
//!   refuses to move it, and the projector begins a new epoch. A reader that has seen a later mark of this epoch believes nothing.
//! - **Memory is full**: the script deletes the document that it cannot replace.
//! - **Redis is away**: a writer remembers the documents that it could not write, and deletes them when Redis is back.

mod doubt;
mod json;
mod link;
mod mark;
mod script;

use std::sync::Arc;
use std::time::Duration;

use monitor::declare_gauge;
use pglog::Partition;
use redis::Client;
use stream::resp::{Commands, Element, Elements};

use crate::WalletId;
use crate::documents::{Change, Document, Head};

pub use doubt::{Doubt, find_doubt};
use json::HEAD_LEN_MAX;
pub use json::read_document;
use link::Link;
pub use mark::{Epoch, Foreign, Mark, Marked, Run};
use script::{Move, Piece};
pub use script::{Outcome, Written};

/// How long a request of the api waits for Redis. Then it reads Postgres, or leaves the document to the projector. Much less
/// would make a busy machine busier: reads that give Redis up open sessions with Postgres.
pub const API_WAIT: Duration = Duration::from_millis(100);

const UP: &str = "rocket_rides_wallet_model_up";

/// Redis is away, refuses, or did not reply in time. Whether it did what it was asked for is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the wallets' read model is away")]
pub struct Away;

/// The read model. Clones share one connection.
#[derive(Clone)]
pub struct Model {
    link: Link,
    mark_key: Arc<str>,
}

impl Model {
    /// The read model of the log `stream_name` on the server `client`. It connects in the background, now and after every
    /// failure. A request waits up to `wait`.
    pub fn start(client: Client, stream_name: &str, wait: Duration) -> Self {
        declare_gauge(UP, "1 while documents of the wallets' read model can be believed", &[]);
        script::declare();
        let mark_key = mark_key(stream_name);
        Self { link: Link::start(client, mark_key.clone(), wait), mark_key: mark_key.into() }
    }

    /// The epoch of the newest reply. Take it before a transaction or a read of Postgres begins, and present it when its
    /// documents are written.
    pub fn epoch(&self) -> Option<Epoch> {
        self.link.mark().map(|mark| mark.epoch)
    }

    /// The run of Redis that replied last. Its epochs are [for this run](Epoch::in_runs).
    pub fn run(&self) -> Run {
        self.link.run()
    }

    /// The state of a wallet. `None`: Redis does not have it.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn head(&self, wallet: WalletId) -> Result<Option<Head>, Away> {
        self.read(wallet, Some(HEAD_LEN_MAX), json::read_head).await
    }

    /// The document of a wallet. `None`: Redis does not have it.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn document(&self, wallet: WalletId) -> Result<Option<Document>, Away> {
        self.read(wallet, None, json::read_document).await
    }

    /// The states of wallets in the order of `wallets`, of whatever epoch they are, and the mark. They are read in one round
    /// trip, the mark first.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn heads(&self, wallets: &[WalletId]) -> Result<(Option<Mark>, Vec<Option<(Epoch, Head)>>), Away> {
        let mut commands = Commands::with_capacity(96 * wallets.len());
        wallets.iter().for_each(|wallet| ask_for(&mut commands, *wallet, Some(HEAD_LEN_MAX)));
        let reply = self.link.ask(commands, vec![]).await?;
        let mut elements = Elements::of(&reply.bytes);
        let heads = wallets.iter().map(|_| match elements.next() {
            Some(Element::Bulk(text)) => json::read_head(text),
            _ => None,
        });
        Ok((reply.mark, heads.collect()))
    }

    /// The mark.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn mark(&self) -> Result<Option<Mark>, Away> {
        Ok(self.heads(&[]).await?.0)
    }

    /// Writes documents that were read from Postgres. `epoch` was known before they were read.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn put(&self, epoch: Option<Epoch>, documents: &[Document]) -> Result<Written, Away> {
        self.write(epoch, documents.iter().map(Piece::Document), None, vec![]).await
    }

    /// Writes the effects of a transaction that has committed. `epoch` was known before it began. A document that the model
    /// lacks stays missing.
    ///
    /// # Errors
    /// [`Away`]: the documents are deleted before any other is read through this connection.
    pub async fn put_changes(&self, epoch: Option<Epoch>, changes: &[Change]) -> Result<Written, Away> {
        let wallets = changes.iter().map(|change| change.wallet).collect();
        self.write(epoch, changes.iter().map(Piece::Change), None, wallets).await
    }

    /// Writes documents, and moves the mark in one partition to a place: with them, the model reflects all its records up to there.
    /// `bound` is the offset that the model was known to reflect, out of Postgres.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn advance(
        &self,
        epoch: Epoch,
        documents: &[Document],
        (partition, bound): (Partition, i64),
        place: Marked,
    ) -> Result<Written, Away> {
        let moved = Some(Move { partition, bound, place });
        self.write(Some(epoch), documents.iter().map(Piece::Document), moved, vec![]).await
    }

    /// Sets the mark, if it still is of the epoch `expected`, or if there still is none. Returns whether it was set. With a new
    /// epoch, no document is there until it is written again.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn begin(&self, expected: Option<Epoch>, mark: &Mark) -> Result<bool, Away> {
        self.replace_mark(expected, Some(mark)).await
    }

    /// Deletes the mark if it is of `epoch`: a document was newer than Postgres, so its timeline is gone.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn end(&self, epoch: Epoch) -> Result<bool, Away> {
        self.replace_mark(Some(epoch), None).await
    }

    /// Deletes documents.
    ///
    /// # Errors
    /// [`Away`].
    pub async fn forget(&self, wallets: &[WalletId]) -> Result<(), Away> {
        self.link.ask(deletion(wallets), wallets.to_vec()).await?;
        Ok(())
    }

    async fn write<'a>(
        &self,
        epoch: Option<Epoch>,
        pieces: impl ExactSizeIterator<Item = Piece<'a>>,
        moved: Option<Move>,
        outdated: Vec<WalletId>,
    ) -> Result<Written, Away> {
        let commands = script::write(&self.mark_key, epoch, pieces, moved);
        let reply = self.link.ask(commands, outdated).await?;
        let written = script::written(&reply.bytes).ok_or(Away)?;
        written.count();
        Ok(written)
    }

    async fn replace_mark(&self, expected: Option<Epoch>, mark: Option<&Mark>) -> Result<bool, Away> {
        let reply = self.link.ask(script::replace_mark(&self.mark_key, expected, mark), vec![]).await?;
        Ok(Elements::of(&reply.bytes).next() == Some(Element::Integer(1)))
    }

    /// Reads a value out of the beginning of a wallet's document, or all of it. It is believed if it is of the mark's epoch.
    async fn read<T>(
        &self,
        wallet: WalletId,
        len_max: Option<usize>,
        value: impl FnOnce(&[u8]) -> Option<(Epoch, T)>,
    ) -> Result<Option<T>, Away> {
        let mut commands = Commands::with_capacity(96);
        ask_for(&mut commands, wallet, len_max);
        let reply = self.link.ask(commands, vec![]).await?;
        let Some(Element::Bulk(text)) = Elements::of(&reply.bytes).next() else { return Ok(None) };
        Ok(value(text).filter(|(epoch, _)| Some(*epoch) == reply.epoch).map(|(_, value)| value))
    }
}

/// The key of the mark of this log.
pub fn mark_key(stream_name: &str) -> String {
    format!("{stream_name}:wallets")
}

/// Deletes documents.
fn deletion(wallets: &[WalletId]) -> Commands {
    let mut commands = Commands::with_capacity(64 * wallets.len());
    if !wallets.is_empty() {
        commands.begin(wallets.len() + 1).arg("DEL");
        wallets.iter().for_each(|wallet| {
            commands.arg(key_of(wallet));
        });
    }
    commands
}

fn ask_for(commands: &mut Commands, wallet: WalletId, len_max: Option<usize>) {
    match len_max {
        Some(len) => commands.begin(4).arg("GETRANGE").arg(key_of(&wallet)).number(0).number(len as i64 - 1),
        None => commands.begin(2).arg("GET").arg(key_of(&wallet)),
    };
}

/// The key of a wallet's document.
fn key_of(wallet: &WalletId) -> String {
    format!("wallet.{wallet}")
}
