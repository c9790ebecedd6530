//! The scrubber: compares all wallets with Postgres, in the order of their ids, for ever. It mends documents that a late writer,
//! an eviction or a lost write left outdated. At full speed it is the rebuild.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use futures_util::future::try_join_all;
use pglog::Session;
use tracing::{info, warn};
use wallet::WalletId;
use wallet::documents::docs;
use wallet::model::{Epoch, Model, Outcome, Written};

use super::compare::{Finding, compare};
use super::metrics;

/// Wallets per page: half a megabyte of documents.
const PAGE_LEN: usize = 250;

/// Wallets per step of a fast round. Its pages are mended at the same time: while Postgres gathers one of them, others are
/// compared and written.
const FAST_STEP_LEN: i64 = 2000;

/// Wallets per step of a slow round.
const SLOW_STEP_LEN: i64 = 100;

/// A step of a slow round takes one part of the time, and the pause after it so many.
const PAUSE_PARTS: u32 = 19;

/// The shortest pause after a step of a slow round.
const PAUSE_MIN: Duration = Duration::from_millis(200);

/// The scrubber's place in its round.
#[derive(Default)]
pub(super) struct Scrubber {
    /// The epoch of the round. `None`: no round has begun.
    epoch: Option<Epoch>,
    /// The last wallet that was compared; empty at the beginning of a round.
    after: String,
    is_fast: bool,
    /// When the next step is due. `None`: at once.
    due_at: Option<Instant>,
    began_at: Option<Instant>,
    compared_count: u64,
    mended_count: u64,
    unstored_count: u64,
}

/// The result of one step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Walked {
    /// The documents of the step equal Postgres.
    Sound,
    /// This wallet has an event in Redis that Postgres does not have.
    Gone(WalletId),
    /// The mark is of another epoch, or is gone.
    Refused,
}

impl Scrubber {
    /// Begins a round at full speed.
    pub fn begin(&mut self, epoch: Epoch) {
        *self = Self { epoch: Some(epoch), is_fast: true, began_at: Some(Instant::now()), ..Self::default() };
        metrics::set_round(true, 0);
    }

    /// Whether its round is of this epoch.
    pub fn is_of(&self, epoch: Epoch) -> bool {
        self.epoch == Some(epoch)
    }

    /// Whether it compares more wallets at full speed than one step takes.
    pub fn is_long(&self) -> bool {
        self.is_fast && self.compared_count > 0
    }

    /// The time until the next step is due.
    pub fn pause(&self) -> Duration {
        self.due_at.map_or(Duration::ZERO, |due_at| due_at.saturating_duration_since(Instant::now()))
    }

    /// One bounded step, over one or more sessions.
    pub async fn walk(&mut self, clients: &[&Client], model: &Model, epoch: Epoch) -> Result<Walked> {
        let began_at = Instant::now();
        let step_len = if self.is_fast { FAST_STEP_LEN } else { SLOW_STEP_LEN };
        let wallets = wallets_after(clients[0], &self.after, step_len).await?;
        let pages = wallets.chunks(PAGE_LEN).zip(clients.iter().cycle());
        let pages = pages.map(|(wallets, client)| mend(client, model, epoch, wallets));
        for mended in try_join_all(pages).await? {
            match mended {
                Mended::Gone(wallet) => return Ok(Walked::Gone(wallet)),
                Mended::Written(written) if written.outcome != Outcome::Done => return Ok(Walked::Refused),
                Mended::Written(written) => self.note(&written),
            }
        }
        match wallets.last() {
            Some(last) => self.pass(last, wallets.len()),
            None => self.end_round(),
        }
        self.due_at = (!self.is_fast).then(|| Instant::now() + (began_at.elapsed() * PAUSE_PARTS).max(PAUSE_MIN));
        Ok(Walked::Sound)
    }

    fn note(&mut self, written: &Written) {
        self.mended_count += written.written_count as u64;
        self.unstored_count += written.deleted_count as u64;
        metrics::count_mended(written.written_count as u64);
    }

    fn pass(&mut self, last: &WalletId, compared_count: usize) {
        self.after = last.to_string();
        self.compared_count += compared_count as u64;
        metrics::set_round(self.is_fast, self.compared_count);
    }

    /// All wallets are compared: begins a slow round.
    fn end_round(&mut self) {
        let (compared_count, mended_count) = (self.compared_count, self.mended_count);
        let took_ms = self.began_at.map_or(0, |began_at| began_at.elapsed().as_millis() as u64);
        if self.is_fast || mended_count > 0 {
            info!(compared_count, mended_count, took_ms, "the documents of all wallets are compared with Postgres");
        }
        if self.unstored_count > 0 {
            warn!(unstored_count = self.unstored_count, "redis has no memory for the documents of some wallets");
        }
        let (epoch, began_at) = (self.epoch, Some(Instant::now()));
        *self = Self { epoch, began_at, ..Self::default() };
        metrics::set_round(false, compared_count);
    }
}

/// One page, mended.
enum Mended {
    /// Its outdated documents were written.
    Written(Written),
    /// This wallet has an event in Redis that Postgres does not have.
    Gone(WalletId),
}

/// Reads some wallets from both places, Redis first: every event that Redis has, Postgres had before. Then it writes the
/// documents that are outdated.
async fn mend(client: &Client, model: &Model, epoch: Epoch, wallets: &[WalletId]) -> Result<Mended> {
    let (_, heads) = model.heads(wallets).await?;
    let mut documents = docs(client, wallets).await.context("reading wallets")?;
    documents.sort_by_key(|document| document.wallet);
    let mut outdated = HashSet::new();
    for (wallet, head) in wallets.iter().zip(heads) {
        let head = head.filter(|(of, _)| *of == epoch).map(|(_, head)| head);
        let place = documents.binary_search_by_key(wallet, |document| document.wallet);
        match compare(head, place.ok().map(|place| &documents[place])) {
            Finding::Sound => {}
            Finding::Outdated => drop(outdated.insert(*wallet)),
            Finding::Gone => return Ok(Mended::Gone(*wallet)),
        }
    }
    documents.retain(|document| outdated.contains(&document.wallet));
    Ok(Mended::Written(model.put(Some(epoch), &documents).await?))
}

/// The ids of wallets that follow `after`, in order.
async fn wallets_after(client: &Client, after: &str, len: i64) -> Result<Vec<WalletId>> {
    let rows = client
        .query(
            "-- consumer::wallets::wallets_after
             SELECT wallet_id::text FROM wallet_locks WHERE wallet_id > $1::text COLLATE \"C\" ORDER BY wallet_id LIMIT $2",
            &[&after, &len],
        )
        .await
        .context("listing wallets")?;
    let ids = rows.iter().map(|row| row.get::<_, &str>(0).parse::<WalletId>());
    ids.collect::<Result<_, _>>().context("reading the id of a wallet")
}
