//! Accepts and verdicts in groups: a commit waits for the disk, and takes as long for a hundred units as for one.
//!
//! ```text
//! requests ─▶ a queue of new units ─▶ one transaction ─▶ each request is answered
//! workers  ─▶ a queue of verdicts  ─▶ one transaction ─▶ each worker goes on
//! ```
//!
//! The response comes after the commit. If Postgres refuses the data of one unit, the group is written by halves, and only this
//! unit fails. If the response to the COMMIT is lost, every member of the group is told that its outcome is unknown.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result, anyhow};
use deadpool_postgres::{Client, Object, Pool};
use group::{Destination, Limits, Queue, Refusal};
use monitor::Health;
use tokio::time::timeout;
use tokio_postgres::Config;
use tokio_postgres::error::DbError;
use tracing::warn;

use super::accept::accept_all;
use super::commit::commit_all;
use super::{Accepted, NewUnit, Verdict};

/// Units in one transaction at most.
const GROUP_LEN_MAX: usize = 100;

/// How long a group may take. If Postgres takes longer, the outcome is unknown.
const WRITE_WAIT: Duration = Duration::from_secs(10);

/// Requests that wait to be accepted. With more, clients are told to come back.
const NEW_LEN_MAX: usize = 2000;

/// Verdicts that wait. There are never so many: each has a request that waits for it, or is one of the few that are due.
const VERDICT_LEN_MAX: usize = 10_000;

/// The longest pause between two groups, for the readiness of the process: it covers a slow group.
const GROUP_AGE_MAX: Duration = Duration::from_secs(15);

/// The queue of requests that become units.
pub type Accepts = Queue<Groups<NewUnit>>;

/// The queue of verdicts that all destinations keep a unit.
pub type Verdicts = Queue<Groups<Verdict>>;

/// Starts both queues. Each has a connection of its own.
///
/// # Errors
/// The pool of a connection cannot be built.
pub fn start_queues(database_url: &Config, health: &Health) -> Result<(Accepts, Verdicts)> {
    let limits = |queue_len_max| Limits { queue_len_max, group_len_max: GROUP_LEN_MAX, write_wait: WRITE_WAIT };
    let (accepts, verdicts) = (Groups::open(database_url)?, Groups::open(database_url)?);
    let (accepts, _) = Queue::start(accepts, limits(NEW_LEN_MAX), health.pulse("new units", GROUP_AGE_MAX));
    let (verdicts, _) = Queue::start(verdicts, limits(VERDICT_LEN_MAX), health.pulse("verdicts", GROUP_AGE_MAX));
    Ok((accepts, verdicts))
}

/// Why a member of a group was not written, or may not have been.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unwritten {
    /// Too many wait. It was not written.
    #[error("too many units are waiting")]
    Overloaded,
    /// Postgres refuses its data. It was not written.
    #[error("postgres refuses the data: {0}")]
    Refused(Arc<str>),
    /// Whether it was written is unknown.
    #[error("whether it was written is unknown: {0}")]
    Unknown(Arc<str>),
}

impl Unwritten {
    /// Invalid data is of class 22, and a violated constraint of class 23.
    fn of(error: &Error) -> Self {
        match refusal(error) {
            Some(refusal) if ["22", "23"].contains(&class(refusal)) => Self::Refused(refusal.message().into()),
            _ => Self::Unknown(format!("{error:#}").into()),
        }
    }
}

/// The error that Postgres itself has given. Nothing was written then. `None`: the connection broke.
fn refusal(error: &Error) -> Option<&DbError> {
    error.downcast_ref::<tokio_postgres::Error>()?.as_db_error()
}

fn class(error: &DbError) -> &str {
    &error.code().code()[..2]
}

/// A member of a group.
pub trait Member: Sized + Send + Sync + 'static {
    /// Its outcome.
    type Response: Send + 'static;

    /// The settings of a session that writes them: whether its statements are planned anew for each group.
    const SETTINGS: &'static str;

    /// Writes the members in one transaction. The responses have their order.
    fn write_all(client: &Client, members: &[Self]) -> impl Future<Output = Result<Vec<Self::Response>>> + Send;
}

impl Member for NewUnit {
    type Response = Option<Accepted>;

    /// The statement reads no table, so that one plan serves all groups.
    const SETTINGS: &'static str = "-- container::plan_accepts
         SET plan_cache_mode = force_generic_plan";

    async fn write_all(client: &Client, units: &[Self]) -> Result<Vec<Option<Accepted>>> {
        accept_all(client, units).await
    }
}

impl Member for Verdict {
    type Response = bool;

    /// A plan that was made while the tables were small would read all of them later.
    const SETTINGS: &'static str = "-- container::plan_verdicts
         SET plan_cache_mode = force_custom_plan";

    async fn write_all(client: &Client, verdicts: &[Self]) -> Result<Vec<bool>> {
        commit_all(client, verdicts).await
    }
}

/// Writes groups of these members.
pub struct Groups<M> {
    pool: Pool,
    members: PhantomData<fn(M)>,
}

impl<M> Groups<M> {
    fn open(database_url: &Config) -> Result<Self> {
        Ok(Self { pool: connect::postgres::pool(database_url, "container", 1)?, members: PhantomData })
    }
}

impl<M: Member> Destination for Groups<M> {
    type Request = M;
    type Response = M::Response;
    type Error = Unwritten;
    type Connection = Client;
    type Failure = Error;

    async fn connect(&self) -> Result<Client, Unwritten> {
        let connecting = async {
            let client = connect::postgres::take(&self.pool).await?;
            let is_new = client.statement_cache.size() == 0;
            if is_new {
                client.batch_execute(M::SETTINGS).await?;
            }
            Ok(client)
        };
        let connected = timeout(WRITE_WAIT, connecting).await.map_err(Error::from).flatten();
        connected.map_err(|error| self.error_of(error))
    }

    async fn write(&self, client: &Client, members: &[M]) -> Result<Vec<M::Response>> {
        M::write_all(client, members).await
    }

    /// Not if Postgres or the connection is at fault. All else may be about one unit: its data, or the table of its last resource.
    fn concerns_one_request(&self, error: &Error) -> bool {
        refusal(error).is_some_and(|error| !["08", "25", "40", "53", "55", "57", "58"].contains(&class(error)))
    }

    fn error_of(&self, error: Error) -> Unwritten {
        warn!(error = format!("{error:#}"), "units are not written");
        Unwritten::of(&error)
    }

    fn error_of_refusal(refusal: Refusal) -> Unwritten {
        match refusal {
            Refusal::Overloaded => Unwritten::Overloaded,
            Refusal::Closed | Refusal::Lost => Unwritten::Unknown(refusal.to_string().into()),
        }
    }

    /// Closes the connection. The statement is not cancelled: Postgres would end its wait for a synchronous standby, and show what
    /// the standby does not have.
    fn abandon(&self, client: Client) -> Unwritten {
        drop(Object::take(client));
        self.error_of(anyhow!("postgres did not write a group in {WRITE_WAIT:?}"))
    }
}
