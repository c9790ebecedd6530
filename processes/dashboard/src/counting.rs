//! Counts that read whole tables. Each is made on a connection of its own, and again when the page wants a newer one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use common::paced::{Paced, Source};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tracing::{debug, warn};

use crate::database;

/// How long Postgres may count. It keeps every version of a row that the snapshot sees meanwhile, so this has a limit.
const COUNT_LIMIT: &str = "1min";

/// How long one count may take in all. It matters only on a lost connection.
const COUNT_WAIT: Duration = Duration::from_secs(70);

/// How something is counted.
pub(crate) trait Count: Send + Sync + 'static {
    /// The result.
    type Counted: Clone + Send + Sync + 'static;

    /// The things that are counted, for the log: `the rides`.
    const THINGS: &'static str;

    /// Counts once.
    ///
    /// # Errors
    /// Postgres is away, or refuses.
    fn count(&self, client: &mut Client) -> impl Future<Output = Result<Self::Counted>> + Send;
}

/// A snapshot in which whole tables are read. A sequential scan is best for that. The session turns it off for the log's own
/// queries.
pub(crate) async fn snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    let tx = database::snapshot(client).await?;
    let limit = format!("SET LOCAL enable_seqscan = on; SET LOCAL statement_timeout = '{COUNT_LIMIT}'");
    tx.batch_execute(&limit).await.context("setting up the session")?;
    Ok(tx)
}

/// Whether Postgres has ended a count because it took too long.
pub(crate) fn took_too_long(error: &Error) -> bool {
    error.downcast_ref().and_then(tokio_postgres::Error::code) == Some(&SqlState::QUERY_CANCELED)
}

/// Why there is no count.
type Problem = Arc<Error>;

/// The latest count, and a way to ask for the next one.
#[derive(Clone)]
pub(crate) struct Counts<T> {
    paced: Paced<Result<T, Problem>, Problem>,
    /// The latest that has succeeded.
    last: Option<T>,
    /// Why the latest has failed.
    problem: Option<Problem>,
}

impl<T: Clone + Send + Sync + 'static> Counts<T> {
    /// Starts counting, on a connection of its own.
    pub fn start(config: &tokio_postgres::Config, count: impl Count<Counted = T>) -> Self {
        let paced = Paced::start(Counting { config: config.clone(), count, client: None });
        Self { paced, last: None, problem: None }
    }

    /// A new count if it is there soon, else the latest one.
    pub async fn fresh(&mut self) -> Option<T> {
        match self.paced.latest().await.map(|figure| figure.result.flatten()) {
            Some(Ok(counted)) => (self.last, self.problem) = (Some(counted), None),
            Some(Err(problem)) => self.problem = Some(problem),
            None => {}
        }
        self.last.clone()
    }

    /// Why the latest count has failed. `None`: it has not.
    pub fn problem(&self) -> Option<&Error> {
        self.problem.as_deref()
    }
}

struct Counting<C> {
    config: tokio_postgres::Config,
    count: C,
    /// `None` after an error, because the connection may be the cause.
    client: Option<Client>,
}

impl<C: Count> Source for Counting<C> {
    /// A count that took too long is a figure, too: it has cost as much, and the next one waits as long.
    type Value = Result<C::Counted, Problem>;
    type Error = Problem;

    async fn work_out(&mut self) -> Result<Self::Value, Problem> {
        let counting = async {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => database::connect(&self.config).await?,
            };
            let counted = self.count.count(&mut client).await?;
            self.client = Some(client);
            anyhow::Ok(counted)
        };
        let counted = timeout(COUNT_WAIT, counting).await;
        match counted.with_context(|| format!("counting {} took too long", C::THINGS)).flatten() {
            Ok(counted) => Ok(Ok(counted)),
            Err(error) if took_too_long(&error) => {
                warn!(limit = COUNT_LIMIT, "{} cannot be counted in time", C::THINGS);
                Ok(Err(Arc::new(error)))
            }
            Err(error) => {
                debug!(error = format!("{error:#}"), "{} cannot be counted", C::THINGS);
                Err(Arc::new(error))
            }
        }
    }
}
