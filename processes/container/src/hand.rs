//! The units that this process drives: those that it has just accepted, and those that are due.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use common::shutdown::CancellationToken;
use deadpool_postgres::{Client, Pool};
use lease::{Leases, Round, Settled};
use process::{Failure, Turn, Work};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::warn;
use uuid::Uuid;

use crate::destination::{Attachment, Attachments, Refusal, Unit};
use crate::fan_out::{End, FanOut};
use crate::incoming::Incoming;
use crate::metrics;
use crate::points::{Point, pass};
use crate::spool::{Spool, SpoolError};
use crate::units::{self, Accepts, Held, NewUnit, State, Taken, WORK_WAIT};

/// Units that are due and driven side by side.
const SIDE_BY_SIDE_MAX: usize = 32;

/// How often to look for units that are due.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long a unit rests whose work has ended with an error of ours.
const ERROR_PAUSE_S: f64 = 5.0;

/// Units of one round.
const ROUND_LEN: usize = 500;

/// The parts of a process that drive units. Clones share them.
#[derive(Clone)]
pub(crate) struct Hand {
    pub spool: Spool,
    pub fan_out: Arc<FanOut>,
    pub accepts: Accepts,
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
            let taken = Taken::accepted(unit, uow, lease);
            let driven = async {
                let unit = unit_of(&taken, incoming.document, Box::new(incoming.spooled))?;
                hand.drive(&taken, &unit, None).await
            };
            match timeout(WORK_WAIT, driven).await.context("the work took too long").flatten() {
                // An error means that the client has left.
                Ok(end) => drop(sender.send(end)),
                Err(error) => warn!(uow, error = format!("{error:#}"), "a unit is taken up again later"),
            }
        });
        ended
    }

    async fn drive(&self, taken: &Taken, unit: &Unit, unreadable: Option<Refusal>) -> Result<End> {
        let began_at = Instant::now();
        let end = match self.fan_out.drive(taken, unit, unreadable).await {
            Ok(end) => end,
            Err(error) => {
                // The work has ended. Without this, the unit would wait for the end of its lease. If Postgres is away, it does.
                let client = self.client().await?;
                units::put_off(&client, Held::from(taken), ERROR_PAUSE_S).await.ok();
                return Err(error);
            }
        };
        metrics::driven(taken, began_at.elapsed(), end.verdict());
        if self.fan_out.is_any_open(&taken.destinations) {
            units::release_canary(&*self.client().await?, taken.uow).await?;
        }
        if end.verdict().is_some_and(State::is_final) {
            self.discard(&taken.spool_name).await;
            pass(Point::FileDeleted, &taken.subject);
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

    /// Reads a unit that was taken out of the spool. If its file is damaged or gone, the attempt fails with the refusal: after its
    /// last one the unit is left to a person, who may put the file back. A rollback needs no file.
    async fn read(&self, taken: &Taken) -> Result<(Unit, Option<Refusal>)> {
        let nothing = || unit_of(taken, Bytes::new(), Box::new(NoAttachments));
        if taken.state == State::RollingBack {
            return Ok((nothing()?, None));
        }
        match self.spool.read(&taken.spool_name).await {
            Ok((spooled, document)) => Ok((unit_of(taken, document, Box::new(spooled))?, None)),
            Err(fault @ (SpoolError::Damaged { .. } | SpoolError::Unknown)) => {
                Ok((nothing()?, Some(Refusal::new(500, fault.to_string()))))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The attachments of a unit whose file is not read.
struct NoAttachments;

impl Attachments for NoAttachments {
    fn find(&self, _: &str) -> Option<Attachment> {
        None
    }
}

fn unit_of(taken: &Taken, document: Bytes, attachments: Box<dyn Attachments>) -> Result<Unit> {
    Ok(Unit {
        uow: taken.uow,
        key: Uuid::parse_str(&taken.key).context("reading the unit's key")?,
        attempt: taken.attempt,
        resource: taken.resource.clone(),
        subject: taken.subject.clone(),
        document,
        attachments,
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
        pass(Point::Taken, &taken.subject);
        let (unit, unreadable) = self.hand.read(taken).await?;
        self.hand.drive(taken, &unit, unreadable).await
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

    const STOP_WAIT: Duration = WORK_WAIT;

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let client = self.hand.client().await?;
        units::choose_canaries(&client, &self.hand.spool.id().to_string()).await?;
        self.hand.fan_out.know(units::read_breakers(&client).await?);
        drop(client);
        let round = Round {
            piece_count_max: ROUND_LEN,
            side_by_side_max: SIDE_BY_SIDE_MAX,
            look_interval: LOOK_INTERVAL,
            wait: WORK_WAIT,
        };
        lease::run_round(&Due { hand: &self.hand }, &round, &self.stop).await?;
        Ok(Turn::done().pausing(LOOK_INTERVAL))
    }
}
