//! Connections to Postgres. Users: every process but the simulator.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime,
};
use tokio_postgres::Config;
use tokio_postgres::config::TargetSessionAttrs;

use crate::opener::Opener;
use crate::session;
use crate::tls::{self, TlsArgs};
use crate::url::parse_url;

pub use crate::opener::leave_if_read_only;
pub use crate::session::shared_session;

/// Where Postgres is.
#[derive(Clone, Args)]
pub struct PostgresArgs {
    /// The database, for example postgres://localhost/rocket-rides-log; ?sslmode=verify-full encrypts and verifies
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_parser = parse_url)]
    pub database_url: tokio_postgres::Config,

    /// The authorities that are trusted, for Postgres and Redis.
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl std::fmt::Debug for PostgresArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // tokio-postgres prints its Config without the password.
        write!(f, "{:?}", self.database_url)
    }
}

/// A standby that may be read.
#[derive(Clone, Args)]
pub struct StandbyArgs {
    /// A hot standby of the database: what is only read is read there, as far as it has got. Without it, from the database itself
    #[arg(long, env = "STANDBY_DATABASE_URL", hide_env_values = true, value_parser = parse_url)]
    pub standby_database_url: Option<tokio_postgres::Config>,
}

impl std::fmt::Debug for StandbyArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.standby_database_url)
    }
}

/// How long connecting to one host may take, and how long a caller waits for a connection of the pool.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// Bounds inside the server, in ms. They are needed because a query goes on when its caller drops the future. A transaction
/// that waits for a lock must then see what the holder has committed, whatever the default of the server is.
///
/// The server also ends the session of a process that is gone or stopped. Keepalives find a machine that is gone, within
/// 25 s; on a unix socket they do nothing. A session that says nothing is ended after five minutes, unless the operator has
/// set another limit. [`POOL_IDLE_MAX`] is shorter.
const SESSION_LIMITS: &str = "-- connect::limit_session
     SET statement_timeout = 30000; SET lock_timeout = 10000;
     SET idle_in_transaction_session_timeout = 60000; SET default_transaction_isolation = 'read committed';
     SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
     SET tcp_user_timeout = '25s'; SELECT set_config('idle_session_timeout', '5min', false)
     WHERE current_setting('idle_session_timeout') = '0'";

/// A pool closes a connection that was not used for so long, before the server does.
const POOL_IDLE_MAX: Duration = Duration::from_secs(60);

/// If there are several hosts, the primary is taken; after a failover this is not the old one.
const PRIMARY: TargetSessionAttrs = TargetSessionAttrs::ReadWrite;

/// `config` with the settings of every connection: bounded waits, and keepalives that notice a dead peer.
fn tuned(config: &Config, process: &str, servers: TargetSessionAttrs) -> Config {
    let mut config = config.clone();
    config.application_name(process);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_WAIT);
    }
    config.target_session_attrs(servers);
    config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(30));
    config
}

/// How long connecting may take in all: each host is tried in turn, and then the first statement is sent.
fn connect_wait(config: &Config) -> Duration {
    let per_host = config.get_connect_timeout().copied().unwrap_or(CONNECT_WAIT);
    per_host * config.get_hosts().len().max(1) as u32 + CONNECT_WAIT
}

/// A pool of at most `size` connections for `process`. Connects when first used.
///
/// # Errors
/// The pool cannot be built. It has not connected to anything yet.
pub fn pool(config: &Config, process: &str, size: usize) -> Result<Pool> {
    pool_of(config, process, size, PRIMARY)
}

/// As [`pool`], of connections to any server, also one that takes no writes: a hot standby.
///
/// # Errors
/// As [`pool`].
pub fn pool_of_standby(config: &Config, process: &str, size: usize) -> Result<Pool> {
    pool_of(config, process, size, TargetSessionAttrs::Any)
}

fn pool_of(config: &Config, process: &str, size: usize, servers: TargetSessionAttrs) -> Result<Pool> {
    let (tuned, recycling) =
        (tuned(config, process, servers), ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let opener = Opener::new(&tuned)?;
    let manager = Manager::from_connect(tuned.clone(), opener.clone(), recycling);
    let opening = Arc::new((opener, tuned));
    let pool = Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT_WAIT))
        .create_timeout(Some(connect_wait(config)))
        .recycle_timeout(Some(CONNECT_WAIT))
        .post_create(Hook::async_fn(move |client, _| {
            let opening = Arc::clone(&opening);
            Box::pin(async move {
                let begun = session::begin(client, &opening.0, &opening.1, SESSION_LIMITS).await;
                begun.map_err(|error| HookError::message(format!("{error:#}")))
            })
        }))
        // For a process that was stopped: the server has closed the connection, and the process has not read that yet.
        .pre_recycle(Hook::sync_fn(|_, metrics| {
            if metrics.last_used() < POOL_IDLE_MAX { Ok(()) } else { Err(HookError::message("idle for too long")) }
        }))
        .build()
        .context("building the connection pool")?;
    let weak = pool.weak();
    tokio::spawn(async move {
        while let Some(pool) = weak.upgrade() {
            pool.retain(|_, metrics| metrics.last_used() < POOL_IDLE_MAX);
            drop(pool);
            tokio::time::sleep(POOL_IDLE_MAX / 4).await;
        }
    });
    Ok(pool)
}

/// A connection of the pool. The wait is measured.
///
/// # Errors
/// Postgres is away or refuses, or other callers have all the connections.
pub async fn take(pool: &Pool) -> Result<deadpool_postgres::Client> {
    let waited = Waited(Instant::now());
    let taken = pool.get().await;
    drop(waited);
    let taken = taken.map_err(|error| match error {
        // The pool's own text leaves out the cause.
        PoolError::Backend(error) => anyhow::Error::new(error).context("connecting to Postgres"),
        error => error.into(),
    });
    taken.map_err(tls::explain)
}

/// Measures a wait when it is dropped, so that a caller that gives up is measured too.
struct Waited(Instant);

impl Drop for Waited {
    fn drop(&mut self) {
        metrics::histogram!("rocket_rides_pool_wait_seconds").record(self.0.elapsed());
    }
}

/// A connection outside of any pool, for a process that works alone on it. It keeps the statements that it has prepared.
/// Calls `on_notice` when a notification arrives.
///
/// # Errors
/// Postgres is away or refuses: back off and try again.
pub async fn connect(
    config: &Config,
    process: &str,
    on_notice: impl FnMut() + Send + 'static,
) -> Result<ClientWrapper> {
    connect_to(tuned(config, process, PRIMARY), on_notice).await
}

/// As [`connect`], to any server, also one that takes no writes: a hot standby. It takes no LISTEN.
///
/// # Errors
/// As [`connect`].
pub async fn connect_to_standby(config: &Config, process: &str) -> Result<ClientWrapper> {
    connect_to(tuned(config, process, TargetSessionAttrs::Any), || {}).await
}

async fn connect_to(tuned: Config, on_notice: impl FnMut() + Send + 'static) -> Result<ClientWrapper> {
    let opener = Opener::new(&tuned)?;
    let prepared = async {
        let (client, driving) = opener
            .open(&tuned, on_notice)
            .await
            .map_err(|error| tls::explain(anyhow::Error::new(error).context("connecting to Postgres")))?;
        session::begin(&client, &opener, &tuned, SESSION_LIMITS).await?;
        Ok(ClientWrapper::new(client, driving))
    };
    tokio::time::timeout(connect_wait(&tuned), prepared).await.context("connecting to Postgres took too long")?
}
