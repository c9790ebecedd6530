//! Keeping the model certain: the documents of a page, the mark, and new epochs.
//!
//! Every read of Postgres is for an epoch that was known before it. The script in Redis refuses all documents of another epoch. So
//! a slow writer cannot put a document that was read before Postgres was put back into a newer build.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Session};
use tracing::warn;
use wallet::WalletId;
use wallet::documents::{Document, docs};
use wallet::model::{Doubt, Epoch, Mark, Marked, Model, Outcome, Run, find_doubt};

use super::scrubber::{Scrubber, Walked};
use super::{Changed, WalletsFold, metrics};
use crate::checkpoint::has_fold;
use crate::fold::{LogPlace, ModelFold, PageEnd};
use crate::outcome::Interruption;

/// How often the mark is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Attempts to settle a page: the first finds that the mark is another, the second follows the check.
const ATTEMPT_COUNT_MAX: usize = 2;

/// Documents per request to Redis: about half a megabyte, which takes it a few milliseconds.
const REQUEST_LEN_MAX: usize = 200;

/// The model, and what is known about it.
pub(super) struct Projector {
    model: Model,
    /// The epoch that the last check confirmed. `None`: the mark must be checked.
    epoch: Option<Epoch>,
    checked_at: Instant,
    /// The process id of the Postgres session in which the mark was checked.
    session: Option<i32>,
    scrubber: Scrubber,
    postgres: tokio_postgres::Config,
    /// A second session, while many wallets are compared at full speed: Postgres then gathers two pages at the same time.
    second: Option<Client>,
    /// No second session was tried in this round.
    wants_second: bool,
    /// Where the consumer is in each of its partitions. Each checkpoint is a lower bound of the mark's offset.
    places: Vec<LogPlace>,
}

impl Projector {
    pub fn new(model: Model, postgres: &PostgresArgs) -> Self {
        Self {
            model,
            epoch: None,
            checked_at: Instant::now(),
            session: None,
            scrubber: Scrubber::default(),
            postgres: postgres.database_url.clone(),
            second: None,
            wants_second: false,
            places: Vec::new(),
        }
    }

    /// Nothing is known any more about mark and epoch.
    pub fn doubt(&mut self) {
        self.epoch = None;
    }

    /// Brings the wallets of a page up to date, and moves the mark to its end.
    pub async fn settle(&mut self, client: &Client, changed: &Changed, page: PageEnd) -> Result<()> {
        self.note_place(page.from);
        for _ in 0..ATTEMPT_COUNT_MAX {
            let epoch = self.known_epoch(client).await?;
            let Some(outdated) = self.find_outdated(epoch, changed).await? else {
                self.begin_epoch(client, Some(epoch), Doubt::OtherDocument).await?;
                continue;
            };
            match self.write(client, epoch, &outdated, page).await? {
                Outcome::Done => return Ok(()),
                Outcome::Behind => self.begin_epoch(client, Some(epoch), Doubt::Behind).await?,
                Outcome::Refused | Outcome::Conflict => self.doubt(),
            }
        }
        bail!(
            "the mark in Redis changes again and again: does another projector of the same log work on another Postgres?"
        )
    }

    /// One unit of upkeep: the check of the mark if it is due, and the scrubber's next step if that is due.
    pub async fn tend(&mut self, client: &Client, places: &[LogPlace]) -> Result<Duration> {
        places.iter().for_each(|place| self.note_place(*place));
        if self.checked_at.elapsed() >= CHECK_INTERVAL {
            self.doubt();
        }
        let epoch = self.known_epoch(client).await?;
        if self.scrubber.pause().is_zero() {
            self.open_or_close_second(epoch).await;
            let clients: Vec<&Client> = [client].into_iter().chain(&self.second).collect();
            match self.scrubber.walk(&clients, &self.model, epoch).await? {
                Walked::Sound => {}
                Walked::Gone(wallet) => {
                    warn!(%wallet, "redis has an event of this wallet that postgres does not have");
                    self.begin_epoch(client, Some(epoch), Doubt::OtherDocument).await?;
                }
                Walked::Refused => self.doubt(),
            }
        }
        Ok(self.scrubber.pause().min(CHECK_INTERVAL.saturating_sub(self.checked_at.elapsed())))
    }

    /// The epoch, after a check of the mark if it is in doubt.
    async fn known_epoch(&mut self, client: &Client) -> Result<Epoch> {
        for _ in 0..ATTEMPT_COUNT_MAX {
            if let Some(epoch) = self.epoch {
                return Ok(epoch);
            }
            self.check(client).await?;
        }
        self.epoch.context("another projector has just begun a new epoch")
    }

    /// The consumer has come to a place in one of its partitions.
    fn note_place(&mut self, place: LogPlace) {
        match self.places.iter_mut().find(|known| known.partition == place.partition) {
            Some(known) => *known = place,
            None => self.places.push(place),
        }
    }

    /// Compares the mark with the log, in each partition of the consumer. Takes its epoch over, or begins a new one.
    async fn check(&mut self, client: &Client) -> Result<()> {
        let mark = self.model.mark().await?;
        let (session, postgres) = session(client).await?;
        let checkpoints: Vec<_> = self.places.iter().map(|place| (place.partition, place.checkpoint)).collect();
        let runs = (self.model.run(), Some(postgres));
        let doubt =
            find_doubt(client, mark.as_ref(), runs, &checkpoints).await.context("comparing the mark with the log")?;
        match (mark, doubt) {
            (Some(mark), None) => {
                self.epoch = Some(mark.epoch);
                // A session that ended may be the sign of a fault, so all wallets are compared soon.
                if self.session != Some(session) || !self.scrubber.is_of(mark.epoch) {
                    self.begin_round(mark.epoch, session);
                }
            }
            (mark, doubt) => {
                let expected = mark.map(|mark| mark.epoch);
                self.begin_epoch(client, expected, doubt.unwrap_or(Doubt::NoMark)).await?;
            }
        }
        self.checked_at = Instant::now();
        Ok(())
    }

    /// Gives all documents up, and begins to build them anew. The heads of all partitions are read first: each document that is read
    /// from now on reflects all records up to them. If another projector was faster, the mark is in doubt again.
    ///
    /// After `--unregister` there is no mark, and a projector that still runs sets none.
    async fn begin_epoch(&mut self, client: &Client, expected: Option<Epoch>, doubt: Doubt) -> Result<()> {
        let partitions = partitions(client).await?;
        let heads = pglog::marked_heads(client, &partitions).await.context("asking for the heads")?;
        let (session, postgres) = session(client).await?;
        ensure!(has_fold(client, WalletsFold::ID).await?, Interruption::Unregistered);
        let epoch = Epoch::in_runs(self.model.run(), postgres);
        let mark = Mark::new(epoch, heads.into_iter().map(|(offset, token)| Marked { offset, token }));
        self.epoch = None;
        if self.model.begin(expected, &mark).await? {
            warn!(%epoch, offset = mark.offset(), "{doubt}: the documents of all wallets are built anew from Postgres");
            metrics::count_epoch();
            self.epoch = Some(epoch);
            self.begin_round(epoch, session);
        }
        Ok(())
    }

    fn begin_round(&mut self, epoch: Epoch, session: i32) {
        self.session = Some(session);
        self.scrubber.begin(epoch);
        (self.second, self.wants_second) = (None, true);
    }

    /// Without a second session the round goes on, more slowly.
    async fn open_or_close_second(&mut self, epoch: Epoch) {
        if !self.scrubber.is_long() || self.second.as_ref().is_some_and(|second| second.is_closed()) {
            self.second = None;
        }
        if self.scrubber.is_long() && std::mem::take(&mut self.wants_second) {
            match open_second(&self.postgres, epoch).await {
                Ok(second) => self.second = Some(second),
                Err(error) => warn!(error = format!("{error:#}"), "wallets are read over one session"),
            }
        }
    }

    /// The wallets of a page whose documents are missing, or older than the records say. `None`: a document contradicts a record.
    async fn find_outdated(&self, epoch: Epoch, changed: &Changed) -> Result<Option<Vec<WalletId>>> {
        let wallets: Vec<WalletId> = changed.keys().copied().collect();
        let mut outdated = Vec::new();
        for wallets in wallets.chunks(REQUEST_LEN_MAX) {
            let (_, heads) = self.model.heads(wallets).await?;
            for (wallet, head) in wallets.iter().zip(heads) {
                let newest = changed[wallet];
                match head.filter(|(of, _)| *of == epoch).map(|(_, head)| head) {
                    Some(head) if head.version == newest.version && head.event_id != newest.event_id => {
                        return Ok(None);
                    }
                    Some(head) if head.version >= newest.version => {}
                    _ => outdated.push(*wallet),
                }
            }
        }
        Ok(Some(outdated))
    }

    /// Writes the documents of wallets, and with the last ones moves the mark.
    async fn write(&self, client: &Client, epoch: Epoch, outdated: &[WalletId], page: PageEnd) -> Result<Outcome> {
        let (early, late) = outdated.split_at(outdated.len() / REQUEST_LEN_MAX * REQUEST_LEN_MAX);
        for wallets in early.chunks(REQUEST_LEN_MAX) {
            let documents = read(client, wallets).await?;
            let written = self.model.put(Some(epoch), &documents).await?;
            if written.outcome != Outcome::Done {
                return Ok(written.outcome);
            }
        }
        let documents = read(client, late).await?;
        let bound = (page.from.partition, page.from.checkpoint);
        let place = Marked { offset: page.offset, token: page.token };
        Ok(self.model.advance(epoch, &documents, bound, place).await?.outcome)
    }
}

/// The documents of wallets, out of Postgres.
async fn read(client: &Client, wallets: &[WalletId]) -> Result<Vec<Document>> {
    if wallets.is_empty() {
        return Ok(Vec::new());
    }
    docs(client, wallets).await.context("reading wallets")
}

/// A session in the run of Postgres that the epoch is from.
async fn open_second(config: &tokio_postgres::Config, epoch: Epoch) -> Result<Client> {
    let client = connect::postgres::connect(config, "consumer: second session for wallets", || {}).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    let (_, postgres) = session(&client).await?;
    ensure!(epoch.is_from(postgres), "it is in another Postgres");
    Ok(client)
}

/// All partitions of the log, also those that this process does not fold.
async fn partitions(client: &Client) -> Result<Vec<Partition>> {
    let sql = "-- consumer::wallets::partitions\nSELECT generate_series(0, log_partitions() - 1)";
    let rows = client.query(sql, &[]).await.context("asking for the partitions")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The number of the session in Postgres, and the run of Postgres.
async fn session(client: &Client) -> Result<(i32, Run)> {
    let sql = "-- consumer::wallets::session
         SELECT pg_backend_pid(), (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";
    let row = client.query_one(sql, &[]).await.context("asking for the session")?;
    Ok((row.get(0), Run::of_start(row.get(1))))
}
