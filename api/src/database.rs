//! Postgres within bounds of our own. Those inside the server (`statement_timeout`) do not help when the server, or the
//! network to it, takes what is sent and never answers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use deadpool_postgres::{Client, Object, Pool};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};
use tracing::{Instrument, error, warn};

use crate::error::Error;

/// Connections: one writes, one hints at what others have staged, the others read.
const POOL_LEN: usize = 8;
/// Those that may read at one time. Readers take no connection from the writer, however many they are.
const READER_COUNT_MAX: usize = POOL_LEN - 2;

/// How long to wait for a connection, all in all. The pool bounds waiting and connecting, but not the first statement on
/// a new connection.
const CLIENT_WAIT: Duration = Duration::from_secs(3);

/// Why there is no answer from Postgres.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It said so, or the connection broke.
    Postgres(tokio_postgres::Error),
    /// It did not answer in time. Whether it did what was asked is unknown. Call [`Database::discard`].
    Late,
}

/// Waits for Postgres until `deadline`.
///
/// # Errors
/// See [`Failure`].
pub(crate) async fn until<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Failure> {
    timeout_at(deadline, answer).await.map_err(|_| Failure::Late)?.map_err(Failure::Postgres)
}

/// The connections of this process.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
    readers: Arc<Semaphore>,
    answer_wait: Duration,
}

impl Database {
    /// Connects when first used.
    ///
    /// # Errors
    /// The pool cannot be built.
    pub fn new(config: &tokio_postgres::Config, answer_wait: Duration) -> Result<Self> {
        let pool = connect::postgres::pool(config, "api", POOL_LEN)?;
        Ok(Self { pool, readers: Arc::new(Semaphore::new(READER_COUNT_MAX)), answer_wait })
    }

    /// When an answer to a question of now is late.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.answer_wait
    }

    /// A connection, soon or not at all.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn client(&self) -> Result<Client, Error> {
        match timeout(CLIENT_WAIT, connect::postgres::take(&self.pool)).await {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => {
                warn!(error = format!("{error:#}"), "no connection to postgres");
                Err(Error::Unavailable)
            }
            Err(_) => {
                warn!(waited_s = CLIENT_WAIT.as_secs(), "no connection to postgres in time");
                Err(Error::Unavailable)
            }
        }
    }

    /// Rows of a statement that only reads.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if too many read already, [`Error::Unavailable`] or [`Error::Internal`] for Postgres.
    pub async fn read(&self, statement: &'static str, parameters: Vec<i64>) -> Result<Vec<Row>, Error> {
        let waited = timeout(CLIENT_WAIT, Arc::clone(&self.readers).acquire_owned()).await;
        let place = waited.map_err(|_| Error::Overloaded)?.map_err(|_| Error::Internal)?;
        let database = self.clone();
        // A task of its own, for if the client leaves, hyper drops what answers it. The connection would go back into
        // the pool with the statement still running on it, and the next request would wait behind that.
        let reading = async move {
            let _place = place;
            let client = database.client().await?;
            let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|number| number as _).collect();
            let answer = until(database.deadline(), client.query(statement, &parameters)).await;
            answer.map_err(|failure| {
                let error = sort_out(&failure);
                if matches!(failure, Failure::Late) {
                    database.discard(client);
                }
                error
            })
        };
        tokio::spawn(reading.in_current_span()).await.unwrap_or(Err(Error::Internal))
    }

    /// Ends a connection on which an answer is late, and those that lie idle: what has cut off one has likely cut off
    /// them too, and each would cost another wait to find out.
    pub fn discard(&self, client: Client) {
        self.pool.retain(|_, _| false);
        let client = Object::take(client);
        let cancel = client.cancel_token();
        // If Postgres is only slow, it must not go on for nobody. An error changes nothing.
        tokio::spawn(async move { timeout(CLIENT_WAIT, cancel.cancel_query(NoTls)).await });
    }
}

/// What the client is told, and what the log is told.
pub(crate) fn sort_out(failure: &Failure) -> Error {
    let error = match failure {
        Failure::Postgres(error) => error,
        Failure::Late => {
            warn!("postgres does not answer");
            return Error::Unavailable;
        }
    };
    sort_out_postgres(error)
}

/// The same for what Postgres said.
pub(crate) fn sort_out_postgres(error: &tokio_postgres::Error) -> Error {
    let passes = match error.code() {
        // The connection broke.
        None => true,
        Some(state) => {
            let class = &state.code()[..2];
            // Connection, transaction rollback, resources, operator (shutdown, cancel), system.
            ["08", "40", "53", "57", "58"].contains(&class)
                || [SqlState::LOCK_NOT_AVAILABLE, SqlState::READ_ONLY_SQL_TRANSACTION].contains(state)
        }
    };
    let chain = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    if passes {
        warn!(error = format!("{error}{chain}"), "postgres is away");
        Error::Unavailable
    } else {
        error!(error = format!("{error}{chain}"), "postgres refuses a statement");
        Error::Internal
    }
}
