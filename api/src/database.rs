//! Connections to Postgres, with time limits in this process. Limits inside the server (`statement_timeout`) do not help
//! when the server or the network accepts a statement and never responds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use connect::postgres::leave_if_read_only;
use deadpool_postgres::{Client, Object, Pool};
use futures_util::join;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Row};
use tracing::{Instrument, error, warn};

use crate::error::Error;

/// Connections: one writes, one sends hints, the others read.
const POOL_LEN: usize = 8;
/// Connections that may read at one time. Readers never take the writer's connection, however many readers wait.
const READER_COUNT_MAX: usize = POOL_LEN - 2;

/// How long to wait for a connection in total. The pool limits waiting and connecting, but not the first statement on a new
/// connection.
const CLIENT_WAIT: Duration = Duration::from_secs(3);

/// How long a standby that failed is left alone, and how long it may take to connect to it and to say anything: there is the primary.
const STANDBY_RETRY_WAIT: Duration = Duration::from_secs(30);
const STANDBY_WAIT: Duration = Duration::from_secs(1);

/// A parameter of a statement.
pub(crate) type Param = Box<dyn ToSql + Sync + Send>;

/// Why Postgres returned no result.
#[derive(Debug)]
pub(crate) enum QueryFailure {
    /// Postgres refused, or the connection broke.
    Postgres(tokio_postgres::Error),
    /// Postgres did not respond in time. Whether it ran the statement is unknown. Call [`Database::discard`].
    Late,
}

/// Waits for Postgres until `deadline`.
///
/// # Errors
/// See [`QueryFailure`].
pub(crate) async fn until<T>(
    deadline: Instant,
    result: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, QueryFailure> {
    timeout_at(deadline, result).await.map_err(|_| QueryFailure::Late)?.map_err(QueryFailure::Postgres)
}

/// The connections of this process.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
    standby: Option<Arc<Standby>>,
    readers: Arc<Semaphore>,
    answer_wait: Duration,
}

/// A hot standby, for statements whose result may be a little old.
struct Standby {
    pool: Pool,
    /// It has failed, and is left alone until then.
    failed_until: Mutex<Option<Instant>>,
}

impl Standby {
    /// Whether it is worth a try.
    fn is_sound(&self) -> bool {
        self.failed_until.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|until| until <= Instant::now())
    }

    /// Leaves it alone for a while. Its other connections have probably failed too, and each would cost another wait to find out.
    fn leave(&self, error: &str) {
        warn!(error, wait_s = STANDBY_RETRY_WAIT.as_secs(), "the standby cannot be read: reading from the primary");
        self.pool.retain(|_, _| false);
        *self.failed_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + STANDBY_RETRY_WAIT);
    }
}

impl Database {
    /// Connects when first used.
    ///
    /// # Errors
    /// The pool cannot be built.
    pub fn new(config: &tokio_postgres::Config, answer_wait: Duration) -> Result<Self> {
        let pool = connect::postgres::pool(config, "api", POOL_LEN)?;
        Ok(Self { pool, standby: None, readers: Arc::new(Semaphore::new(READER_COUNT_MAX)), answer_wait })
    }

    /// The same, with a hot standby that [`read_old`](Self::read_old) prefers.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_standby(self, config: Option<&tokio_postgres::Config>) -> Result<Self> {
        let pool = |config| connect::postgres::pool_of_standby(config, "api", READER_COUNT_MAX);
        let standby = config.map(pool).transpose()?;
        Ok(Self { standby: standby.map(|pool| Arc::new(Standby { pool, failed_until: Mutex::default() })), ..self })
    }

    /// A connection, within [`CLIENT_WAIT`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is none by then.
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

    /// Runs a statement that only reads.
    ///
    /// # Errors
    /// [`Error::Overloaded`] if too many requests read already; [`Error::Unavailable`] or [`Error::Internal`] if Postgres
    /// fails.
    pub async fn read(&self, statement: &'static str, parameters: Vec<Param>) -> Result<Vec<Row>, Error> {
        self.run(statement, parameters, Plan::Best).await
    }

    /// As [`read`](Self::read), from the standby if there is one and it can be read. It may lack what was committed last.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_old(&self, statement: &'static str, parameters: Vec<Param>) -> Result<Vec<Row>, Error> {
        self.run(statement, parameters, Plan::BestAnywhere).await
    }

    /// As [`read`](Self::read), for a few rows that an index finds.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn look_up(&self, statement: &'static str, parameters: Vec<Param>) -> Result<Vec<Row>, Error> {
        self.run(statement, parameters, Plan::ByIndex).await
    }

    async fn run(&self, statement: &'static str, parameters: Vec<Param>, plan: Plan) -> Result<Vec<Row>, Error> {
        let waited = timeout(CLIENT_WAIT, Arc::clone(&self.readers).acquire_owned()).await;
        let place = waited.map_err(|_| Error::Overloaded)?.map_err(|_| Error::Internal)?;
        let database = self.clone();
        // A separate task: if the client leaves, hyper drops the handler. The connection would return to the pool while
        // Postgres still runs the statement, and the next request would wait for it.
        let reading = async move {
            let _place = place;
            let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|parameter| &**parameter as _).collect();
            if let Plan::BestAnywhere = plan
                && let Some(rows) = database.read_standby(statement, &parameters).await
            {
                return Ok(rows);
            }
            let client = database.client().await?;
            let deadline = Instant::now() + database.answer_wait;
            until(deadline, query(&client, statement, &parameters, plan)).await.map_err(|failure| {
                let error = to_client_error(&failure);
                if matches!(failure, QueryFailure::Late) {
                    database.discard(client);
                }
                error
            })
        };
        tokio::spawn(reading.in_current_span()).await.unwrap_or(Err(Error::Internal))
    }

    /// The rows as the standby has them; `None` if there is none, or it cannot be read now.
    async fn read_standby(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Option<Vec<Row>> {
        let standby = self.standby.as_ref().filter(|standby| standby.is_sound())?;
        let reading = async {
            // It answers a statement that reads nothing; the one that counts all rides may take longer.
            let sound = async {
                let client = connect::postgres::take(&standby.pool).await?;
                client.batch_execute("").await?;
                anyhow::Ok(client)
            };
            let client = timeout(STANDBY_WAIT, sound).await??;
            let rows = timeout(self.answer_wait, query(&client, statement, parameters, Plan::Best)).await;
            if rows.is_err() {
                drop(Object::take(client));
            }
            anyhow::Ok(rows??)
        };
        reading.await.map_err(|error| standby.leave(&format!("{error:#}"))).ok()
    }

    /// Closes a connection on which Postgres did not respond in time, and all idle connections. The failure has probably
    /// struck the idle ones too, and each would cost another wait to find out.
    pub fn discard(&self, client: Client) {
        let cancel = client.cancel_token();
        self.close(client);
        // If Postgres is only slow, it should not finish a statement whose result is dropped. An error here changes nothing.
        tokio::spawn(async move { timeout(CLIENT_WAIT, cancel.cancel_query(NoTls)).await });
    }

    /// As [`discard`](Self::discard), for a COMMIT that was not answered. It is not cancelled: Postgres would end its wait for a
    /// synchronous standby, and show what the standby does not have.
    pub fn close(&self, client: Client) {
        self.pool.retain(|_, _| false);
        drop(Object::take(client));
    }
}

/// How Postgres plans a statement.
#[derive(Debug, Clone, Copy)]
enum Plan {
    /// As it finds best for these parameters.
    Best,
    /// The same, on the standby or on the primary.
    BestAnywhere,
    /// Once per connection, and by an index. A plan that was made while a table was empty would read all of it later.
    ByIndex,
}

async fn query(
    client: &Client,
    statement: &str,
    parameters: &[&(dyn ToSql + Sync)],
    plan: Plan,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let statement = client.prepare_cached(statement).await?;
    match plan {
        Plan::Best | Plan::BestAnywhere => client.query(&statement, parameters).await,
        Plan::ByIndex => {
            let begin = "-- api::look_up
                BEGIN READ ONLY; SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan";
            // They are sent in this order, in one round trip.
            let (begun, rows, ended) = join!(
                client.batch_execute(begin),
                client.query(&statement, parameters),
                client.batch_execute("COMMIT")
            );
            begun?;
            let rows = rows?;
            ended.map(|()| rows)
        }
    }
}

/// Logs a failure, and returns the error that the client receives.
pub(crate) fn to_client_error(failure: &QueryFailure) -> Error {
    match failure {
        QueryFailure::Postgres(error) => postgres_to_client_error(error),
        QueryFailure::Late => {
            warn!("postgres does not answer");
            Error::Unavailable
        }
    }
}

/// Whether Postgres refused one row of several: invalid data (class 22) and violated constraints (class 23). Any other failure
/// concerns all rows.
pub(crate) fn concerns_one_row(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| ["22", "23"].contains(&&state.code()[..2]))
}

/// As [`to_client_error`], for an error of Postgres or of the connection.
pub(crate) fn postgres_to_client_error(error: &tokio_postgres::Error) -> Error {
    leave_if_read_only(error);
    let is_passing = match error.code() {
        // There is no code if the connection broke.
        None => true,
        Some(state) => {
            let class = &state.code()[..2];
            // Connection, transaction rollback, resources, operator (shutdown, cancel), system.
            ["08", "40", "53", "57", "58"].contains(&class)
                || [SqlState::LOCK_NOT_AVAILABLE, SqlState::READ_ONLY_SQL_TRANSACTION].contains(state)
        }
    };
    let chain = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    if is_passing {
        warn!(error = format!("{error}{chain}"), "postgres is away");
        Error::Unavailable
    } else {
        error!(error = format!("{error}{chain}"), "postgres refuses a statement");
        Error::Internal
    }
}
