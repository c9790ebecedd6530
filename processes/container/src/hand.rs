//! The units that this process drives: those that it has just accepted, and those that are due.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::shutdown::CancellationToken;
use deadpool_postgres::{Client, Pool};
use futures_util::TryStreamExt;
use lease::{Leases, Round, Settled};
use process::{Failure, Turn, Work};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use uuid::Uuid;

use crate::destination::Unit;
use crate::fan_out::{End, FanOut};
use crate::incoming::Incoming;
use crate::spool::Spool;
use crate::units::{self, LEASE, NewUnit, State, Taken};

/// Units that are due and driven side by side.
const SIDE_BY_SIDE_MAX: usize = 32;

/// How often to look for units that are due.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A file without a unit is taken up after this time: until then its request may still be accepted.
const FILE_AGE_MIN: Duration = Duration::from_secs(60);

/// Files and rows that are looked at together.
const PAGE_LEN: usize = 500;

/// What a process needs to drive units. Clones share it.
#[derive(Clone)]
pub(crate) struct Hand {
    pub spool: Spool,
    pub fan_out: Arc<FanOut>,
    pub pool: Pool,
    /// The units that are driven for a client. They end before the process does.
    pub driving: TaskTracker,
}

impl Hand {
    pub async fn client(&self) -> Result<Client> {
        connect::postgres::take(&self.pool).await
    }

    /// Drives a unit that this process has just accepted, also if its client leaves. The result is how its attempt ends.
    pub fn start(&self, unit: NewUnit, incoming: Incoming, uow: i64, lease: i64) -> oneshot::Receiver<End> {
        let (sender, ended) = oneshot::channel();
        let hand = self.clone();
        self.driving.spawn(async move {
            let taken = Taken {
                uow,
                key: unit.key,
                resource: unit.resource,
                subject: unit.subject,
                state: State::FannedOut,
                attempt: 1,
                lease,
                take_count: 1,
                status: None,
                error: None,
                spool_name: unit.spool_name,
                destinations: unit.destinations,
                traceparent: unit.traceparent,
            };
            let driven = async {
                let unit = unit_of(&taken, incoming)?;
                hand.drive(&taken, &unit).await
            };
            match driven.await {
                // An error means that the client has left.
                Ok(end) => drop(sender.send(end)),
                Err(error) => warn!(uow, error = format!("{error:#}"), "a unit is taken up again later"),
            }
        });
        ended
    }

    async fn drive(&self, taken: &Taken, unit: &Unit) -> Result<End> {
        let end = self.fan_out.drive(taken, unit).await?;
        if self.fan_out.is_any_open(&taken.destinations) {
            units::release_canary(&*self.client().await?, taken.uow).await?;
        }
        let is_final = match &end {
            End::Committed => true,
            End::Failed(ending) => ending.state.is_final(),
            End::RollingBack | End::Lost => false,
        };
        if is_final {
            self.discard(&taken.spool_name).await;
        }
        Ok(end)
    }

    /// Deletes a file that is not needed. That it is gone is noted later, for many files at once. Returns whether it is.
    pub async fn discard(&self, name: &str) -> bool {
        let gone = self.spool.delete(name).await;
        if let Err(error) = &gone {
            warn!(name, error = format!("{error:#}"), "a file is deleted later");
        }
        gone.is_ok()
    }

    /// Reads a unit that was taken out of the spool.
    async fn read(&self, taken: &Taken) -> Result<Unit> {
        let spooled = self.spool.open_file(&taken.spool_name).await?;
        let document = spooled.document().await?;
        unit_of(taken, Incoming { spooled, document, subject: taken.subject.clone() })
    }
}

fn unit_of(taken: &Taken, incoming: Incoming) -> Result<Unit> {
    Ok(Unit {
        uow: taken.uow,
        key: Uuid::parse_str(&taken.key).context("reading the unit's key")?,
        attempt: taken.attempt,
        resource: taken.resource.clone(),
        subject: taken.subject.clone(),
        document: incoming.document,
        attachments: Box::new(incoming.spooled),
    })
}

/// Units that are due.
struct Due<'a> {
    hand: &'a Hand,
}

impl Leases for Due<'_> {
    type Piece = Taken;
    type Done = End;
    type Failure = anyhow::Error;
    type Error = anyhow::Error;

    async fn take(&self, len_max: usize) -> Result<Vec<Taken>> {
        units::take(&*self.hand.client().await?, &self.hand.spool.id().to_string(), len_max).await
    }

    async fn work(&self, taken: &Taken) -> Result<End> {
        self.hand.drive(taken, &self.hand.read(taken).await?).await
    }

    /// The verdict is recorded by then: the row of the last resource is a part of it.
    async fn settle(&self, taken: Taken, end: Result<End>) -> Result<Settled> {
        match end {
            Ok(End::Lost) => Ok(Settled::Lost),
            Ok(_) => Ok(Settled::Ours),
            Err(error) => {
                warn!(uow = taken.uow, error = format!("{error:#}"), "a unit is taken up again later");
                Ok(Settled::Ours)
            }
        }
    }
}

/// Drives the units that are due, again and again.
pub(crate) struct Driving {
    pub hand: Hand,
    pub stop: CancellationToken,
}

impl Work for Driving {
    type Fault = ();

    const STOP_WAIT: Duration = LEASE;

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let client = self.hand.client().await?;
        units::choose_canaries(&client, &self.hand.spool.id().to_string()).await?;
        self.hand.fan_out.know(units::read_breakers(&client).await?);
        drop(client);
        let round = Round {
            piece_count_max: PAGE_LEN,
            side_by_side_max: SIDE_BY_SIDE_MAX,
            look_interval: LOOK_INTERVAL,
            wait: LEASE,
        };
        lease::run_round(&Due { hand: &self.hand }, &round, &self.stop).await?;
        Ok(Turn::done().pausing(LOOK_INTERVAL))
    }
}

/// Compares the spool with the units: files without a unit are taken up, and files of units that are final are deleted.
pub(crate) struct Sweeping {
    pub hand: Hand,
    pub declaration: Arc<crate::declaration::Declaration>,
}

impl Work for Sweeping {
    type Fault = ();

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let cleared_count = self.hand.spool.clear_unfinished(FILE_AGE_MIN).await.map_err(anyhow::Error::from)?;
        if cleared_count > 0 {
            info!(cleared_count, "files that were never complete are cleared");
        }
        while self.delete_final().await? == PAGE_LEN {}
        self.take_up().await?;
        Ok(Turn::done().pausing(FILE_AGE_MIN / 2))
    }
}

impl Sweeping {
    /// Deletes files of units that are final, and notes that they are gone. Returns their number.
    async fn delete_final(&self) -> Result<usize> {
        let client = self.hand.client().await?;
        let names = units::final_files(&client, &self.hand.spool.id().to_string(), PAGE_LEN as i64).await?;
        for name in &names {
            ensure!(self.hand.discard(name).await, "a file of a unit that is final cannot be deleted");
        }
        // A deletion is durable only then. After a crash the file would come back, and without a row it would be a new unit.
        self.hand.spool.sync().await?;
        units::note_gone(&client, &names).await?;
        Ok(names.len())
    }

    async fn take_up(&self) -> Result<()> {
        let listed = self.hand.spool.list().try_filter(|file| std::future::ready(file.age >= FILE_AGE_MIN));
        let mut pages = std::pin::pin!(futures_util::StreamExt::chunks(listed, PAGE_LEN));
        while let Some(page) = futures_util::StreamExt::next(&mut pages).await {
            let names: Vec<String> =
                page.into_iter().map(|file| Ok(file?.name)).collect::<Result<_>>().context("listing the spool")?;
            let client = self.hand.client().await?;
            let known = units::states_of_files(&client, &names).await?;
            for name in names {
                match known.get(&name) {
                    Some(state) if state.is_final() => {
                        self.hand.discard(&name).await;
                    }
                    Some(_) => {}
                    None => self.accept(&client, &name).await?,
                }
            }
        }
        Ok(())
    }

    /// Makes a unit of a file whose request was never answered, or whose row is lost because Postgres was put back.
    async fn accept(&self, client: &Client, name: &str) -> Result<()> {
        let read = async {
            let spooled = self.hand.spool.open_file(name).await?;
            let document = spooled.document().await?;
            Ok::<_, anyhow::Error>((spooled, document))
        };
        let (spooled, document) = match read.await {
            Ok(read) => read,
            Err(error) => {
                warn!(name, error = format!("{error:#}"), "a file cannot be taken up");
                return Ok(());
            }
        };
        let resource = self.declaration.resources.iter().find(|resource| resource.name == spooled.head.resource);
        let Some((resource, subject)) =
            resource.and_then(|resource| Some((resource, crate::incoming::subject_of(resource, &document).ok()?)))
        else {
            warn!(name, resource = spooled.head.resource, "a file is of a resource that is not declared");
            return Ok(());
        };
        let unit = NewUnit {
            key: Uuid::new_v4().to_string(),
            resource: resource.name.clone(),
            subject,
            destinations: resource.destinations.clone(),
            spool_id: self.hand.spool.id().to_string(),
            spool_name: name.to_owned(),
            idempotency_key: spooled.head.idempotency_key.clone(),
            content_hash: spooled.hash.to_vec(),
            traceparent: spooled.head.traceparent.clone(),
            waits: true,
        };
        let accepted = units::accept(client, &unit).await?;
        info!(name, ?accepted, "a file is taken up");
        Ok(())
    }
}
