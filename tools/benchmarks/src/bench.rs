//! The private servers of a run. They are emptied between two measurements.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::shutdown::CancellationToken;
use launcher::{PostgresBinaries, PostgresServer, RedisServer, Register};
use nix::fcntl::Flock;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use redis::aio::MultiplexedConnection;
use tokio_postgres::{Client, NoTls};

use crate::config::Config;
use crate::process::{Running, Spec};
use crate::progress::Progress;

/// The database of the run.
const DATABASE: &str = "bench";

/// The default key of the stream.
pub(crate) const STREAM: &str = "rocket-rides-log";

/// How long Redis may take to forget ten million entries.
const REDIS_WAIT: Duration = Duration::from_secs(120);

/// Settings of the Redis with the wallets' read model. No reader believes a document from before a restart, so a file on disk
/// would be of no use.
const UNSAVED: [&str; 2] = ["--appendonly", "no"];

/// The servers and settings of all cases.
pub(crate) struct Bench {
    /// The settings of the run.
    pub config: Config,
    /// The folder of logs and scripts, as an absolute path.
    pub folder: PathBuf,
    /// The progress of the run.
    pub progress: Progress,
    /// The installation that is measured.
    pub binaries: PostgresBinaries,
    /// The Redis that is measured.
    pub redis_binary: PathBuf,
    postgres: PostgresServer,
    redis: RedisServer,
    documents: RedisServer,
    register: Register,
    _lock: Flock<File>,
    database_url: String,
    /// A connection without time limits.
    pub client: Client,
}

impl Bench {
    /// Starts both servers on an empty folder.
    pub async fn start(config: Config, shutdown: &CancellationToken) -> Result<Self> {
        raise_open_files();
        let parent = config.data.parent().context("the data folder needs a parent")?;
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        // Two runs at once would stop each other's servers and disturb each other's figures.
        let lock = launcher::lock(&config.data.with_extension("lock"))?
            .with_context(|| format!("another run uses {}: wait for it, or give --data", config.data.display()))?;
        let mut register = Register::open(config.data.with_extension("processes")).await?;
        remove(&config.data)?;
        std::fs::create_dir_all(&config.data).with_context(|| format!("creating {}", config.data.display()))?;
        let folder = config.data.canonicalize().context("finding the data folder")?;
        let binaries = launcher::find_postgres().map_err(anyhow::Error::msg)?;
        let redis_binary = launcher::find_redis().map_err(anyhow::Error::msg)?;
        // Default settings.
        let postgres = PostgresServer::start(&binaries, &folder.join("pg"), &[]).await?;
        register.add(postgres.pid(), Signal::SIGINT);
        let redis = RedisServer::start(&redis_binary, &folder.join("redis"), &[]).await?;
        register.add(redis.pid(), Signal::SIGTERM);
        let documents = RedisServer::start(&redis_binary, &folder.join("documents"), &UNSAVED).await?;
        register.add(documents.pid(), Signal::SIGTERM);
        ensure!(!shutdown.is_cancelled(), "interrupted");
        postgres.create_database(DATABASE).await?;
        let database_url = postgres.url(DATABASE);
        let client = connect(&database_url).await?;
        launcher::apply_schema(&client).await.context("applying the schema")?;
        let progress = Progress::new();
        Ok(Self {
            config,
            folder,
            progress,
            binaries,
            redis_binary,
            postgres,
            redis,
            documents,
            register,
            _lock: lock,
            database_url,
            client,
        })
    }

    /// Stops both servers, and removes the data if `remove_data` is set.
    pub async fn stop(mut self, remove_data: bool) -> Result<()> {
        self.progress.end();
        drop(self.client);
        let stopped = [self.redis.stop().await, self.documents.stop().await];
        self.postgres.stop().await?;
        stopped.into_iter().collect::<Result<()>>()?;
        self.register.clear()?;
        if remove_data {
            remove(&self.folder)?;
        }
        Ok(())
    }

    /// Makes another database. Returns its URL, and a connection without time limits.
    pub async fn make_database(&self, name: &str) -> Result<(String, Client)> {
        self.postgres.create_database(name).await?;
        let url = self.postgres.url(name);
        let client = connect(&url).await?;
        Ok((url, client))
    }

    /// Opens another connection without time limits, which closes when it is dropped.
    pub async fn connect(&self) -> Result<Client> {
        connect(&self.database_url).await
    }

    /// A connection to Redis with a long time limit.
    pub async fn connect_redis(&self) -> Result<MultiplexedConnection> {
        let client = stream::redis::client(&self.redis.url()).context("reading the URL of Redis")?;
        stream::redis::connect_patiently(&client, REDIS_WAIT).await
    }

    /// A connection to the Redis of the wallets' read model.
    pub async fn connect_documents(&self) -> Result<MultiplexedConnection> {
        let client = stream::redis::client(&self.documents.url()).context("reading the URL of Redis")?;
        stream::redis::connect_patiently(&client, REDIS_WAIT).await
    }

    /// The servers' URLs and `RUST_LOG`, for the processes.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("DATABASE_URL", self.database_url.clone()),
            ("REDIS_URL", self.redis.url()),
            ("WALLETS_REDIS_URL", self.documents.url()),
            ("RUST_LOG", "warn".to_owned()),
        ]
    }

    /// Host, user and database for programs that use libpq.
    pub fn libpq_environment(&self) -> Result<[(&'static str, String); 3]> {
        let config: tokio_postgres::Config = self.database_url.parse().context("parsing the server's URL")?;
        let [tokio_postgres::config::Host::Unix(folder)] = config.get_hosts() else {
            anyhow::bail!("the private server has no socket");
        };
        let user = config.get_user().context("the server's URL names no user")?;
        Ok([("PGHOST", folder.display().to_string()), ("PGUSER", user.to_owned()), ("PGDATABASE", DATABASE.to_owned())])
    }

    /// The socket of Redis.
    pub fn redis_socket(&self) -> &Path {
        self.redis.socket()
    }

    /// The process ids of Postgres and Redis.
    pub fn server_pids(&self) -> Result<(u32, u32)> {
        Ok((self.postgres.pid().context("postgres has ended")?, self.redis.pid().context("redis has ended")?))
    }

    /// Empties the tables, and writes everything to disk.
    pub async fn fresh_tables(&self) -> Result<()> {
        self.client
            .batch_execute(
                "-- benchmarks::fresh_tables
                 BEGIN;
                 -- Without triggers: two of them refuse to empty the wallets.
                 SET LOCAL session_replication_role = replica;
                 TRUNCATE rides, staged_log_records, log_batches, checkpoints, dead_letters, history,
                          tracked_operations, bookings, audit_records, completions, receipts,
                          wallet_locks, wallet_events,
                          spools, units, unit_parts, unit_reports, destinations, manifests RESTART IDENTITY;
                 COMMIT",
            )
            .await
            .context("emptying the tables")?;
        self.checkpoint().await
    }

    /// Removes all batches and checkpoints, so that the staged rows can be published again.
    pub async fn forget_batches(&self) -> Result<()> {
        self.client
            .batch_execute("TRUNCATE log_batches, checkpoints, dead_letters")
            .await
            .context("emptying the tables of the log")?;
        self.checkpoint().await
    }

    /// Writes everything to disk, so that Postgres does not do it during a measurement.
    pub async fn checkpoint(&self) -> Result<()> {
        self.client.batch_execute("CHECKPOINT").await.context("writing everything to disk")
    }

    /// Empties both Redis, and the append-only file, so that every measurement has the same number of rewrites.
    pub async fn fresh_redis(&self) -> Result<()> {
        redis::cmd("FLUSHALL").exec_async(&mut self.connect_documents().await?).await.context("emptying Redis")?;
        let mut redis = self.connect_redis().await?;
        redis::cmd("FLUSHALL").exec_async(&mut redis).await.context("emptying Redis")?;
        // Redis refuses it during another rewrite, which may have begun before FLUSHALL.
        while redis::cmd("BGREWRITEAOF").exec_async(&mut redis).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        loop {
            let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut redis).await?;
            if info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sets whether Redis rewrites its append-only file when the file has doubled, which is the default.
    pub async fn rewrite_aof(&self, rewrites: bool) -> Result<()> {
        let mut redis = self.connect_redis().await?;
        let percentage = if rewrites { 100 } else { 0 };
        let setting = ("SET", "auto-aof-rewrite-percentage", percentage);
        redis::cmd("CONFIG").arg(setting).exec_async(&mut redis).await.context("setting when Redis rewrites its file")
    }

    /// The number of entries in the stream.
    pub async fn stream_len(&self) -> Result<i64> {
        let mut redis = self.connect_redis().await?;
        redis::cmd("XLEN").arg(STREAM).query_async(&mut redis).await.context("measuring the stream")
    }

    /// The result of a query that returns one number.
    pub async fn number(&self, query: &str) -> Result<i64> {
        let row = self.client.query_one(query, &[]).await.with_context(|| format!("asking {query}"))?;
        Ok(row.get(0))
    }

    /// Starts a binary of this workspace.
    pub fn start_process(&self, program: &'static str, args: &[&str]) -> Result<Running> {
        Running::start(&Spec::of_workspace(program, args), &self.environment(), &self.folder)
    }

    /// Starts a consumer with its own log file.
    pub fn start_consumer(&self, name: &str, args: &[&str]) -> Result<Running> {
        let args = [&[name], args].concat();
        let spec = Spec { name: name.to_owned(), ..Spec::of_workspace("consumer", &args) };
        Running::start(&spec, &self.environment(), &self.folder)
    }

    /// Starts this program again with other arguments.
    pub fn start_myself(&self, name: &str, args: &[&str]) -> Result<Running> {
        let spec = Spec { name: name.to_owned(), ..Spec::of_workspace("benchmarks", args) };
        Running::start(&spec, &self.environment(), &self.folder)
    }
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connecting to Postgres")?;
    // If the connection ends, the next query fails.
    tokio::spawn(connection);
    Ok(client)
}

/// Raises the limit of open files, because one process opens thousands of connections.
fn raise_open_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // If the limit cannot be raised, a case with too few connections fails with a message.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard);
    }
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("emptying {}", folder.display()))
        }
        _ => Ok(()),
    }
}
