//! The servers of `bin/up`: a private Postgres and a private Redis or Redis Cluster, or those that `--use` names.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use pglog::PartitionCount;

use crate::find::{find_postgres, find_redis, given};
use crate::leftovers::Register;
use crate::outside::Outside;
use crate::postgres_server::{self, PostgresServer};
use crate::redis_cluster::{RedisCluster, RedisNode};
use crate::redis_server::{self, RedisServer};
use crate::schema::{SEED, apply_schema_with};
use crate::screen::{say, tell};

/// The private database.
const DATABASE: &str = "rocket-rides-log";

/// The name of the stream, unless STREAM_NAME gives another.
const STREAM_NAME: &str = "rocket-rides-log";

/// A private server.
pub(crate) enum Server {
    Postgres(PostgresServer),
    Redis(RedisServer),
    Node(RedisNode),
}

/// The servers and the log that are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// The partitions of the log; `None`: those that it has, and 1 if it is made.
    pub partitions: Option<PartitionCount>,
    /// Whether the stream is in a private Redis Cluster.
    pub is_cluster: bool,
}

impl Server {
    /// The name before its lines.
    pub fn name(&self) -> String {
        match self {
            Self::Postgres(_) => "postgres".to_owned(),
            Self::Redis(_) => "redis".to_owned(),
            Self::Node(node) => format!("redis-{}", node.port()),
        }
    }

    /// The signal that stops it.
    pub fn stop_signal(&self) -> Signal {
        match self {
            Self::Postgres(_) => postgres_server::STOP_SIGNAL,
            Self::Redis(_) | Self::Node(_) => redis_server::STOP_SIGNAL,
        }
    }

    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Postgres(server) => server.pid(),
            Self::Redis(server) => server.pid(),
            Self::Node(node) => node.pid(),
        }
    }

    /// Waits until the server ends by itself. Returns its exit status.
    pub async fn ended(&mut self) -> String {
        match self {
            Self::Postgres(server) => server.ended().await,
            Self::Redis(server) => server.ended().await,
            Self::Node(node) => node.ended().await,
        }
    }

    /// Starts it on the same data and the same socket, after it has ended.
    pub async fn start_again(&self) -> Result<Self> {
        match self {
            Self::Postgres(server) => Ok(Self::Postgres(server.start_again().await?)),
            Self::Redis(server) => Ok(Self::Redis(server.start_again().await?)),
            Self::Node(node) => Ok(Self::Node(node.start_again().await?)),
        }
    }

    pub async fn stop(self) -> Result<()> {
        match self {
            Self::Postgres(server) => server.stop().await,
            Self::Redis(server) => server.stop().await,
            Self::Node(node) => node.stop().await,
        }
    }
}

/// All servers: their URLs, and those that were started.
pub(crate) struct Servers {
    pub database_url: String,
    /// The server of the stream, or the nodes of the cluster.
    pub redis_url: String,
    /// The private Redis beside a cluster, for what wants a server of its own: the wallets' read model, and the container's board.
    pub side_redis_url: Option<String>,
    /// The words for `redis-cli` that lead to the private Redis or cluster of the stream.
    redis_cli: Option<String>,
    /// The socket of a private Redis that is no cluster.
    redis_socket: Option<String>,
    /// The key of each partition's stream, as SQL computes it.
    stream_keys: Vec<String>,
    /// In the order in which they were started.
    pub private: Vec<Server>,
}

impl Servers {
    /// Starts the servers that `outside` does not give, and prepares the database.
    ///
    /// # Errors
    /// A server is missing or does not start, the schema cannot be applied, or the log has another number of partitions than the
    /// wanted one. The servers that were started are stopped again.
    pub async fn start(data: &Path, outside: &Outside, wanted: Wanted, register: &mut Register) -> Result<Self> {
        let (database_url, redis_url) = (outside.value("DATABASE_URL"), outside.value("REDIS_URL"));
        let mut servers = Self {
            database_url: database_url.unwrap_or_default(),
            redis_url: redis_url.unwrap_or_default(),
            side_redis_url: None,
            redis_cli: None,
            redis_socket: None,
            stream_keys: Vec::new(),
            private: Vec::new(),
        };
        match servers.start_private(data, wanted, register).await {
            Ok(()) => Ok(servers),
            Err(error) => {
                servers.stop().await;
                Err(error)
            }
        }
    }

    async fn start_private(&mut self, data: &Path, wanted: Wanted, register: &mut Register) -> Result<()> {
        if self.database_url.is_empty() {
            let binaries = find_postgres().map_err(anyhow::Error::msg)?;
            let server = PostgresServer::start(&binaries, &data.join("pg"), &[]).await?;
            self.database_url = server.url(DATABASE);
            self.keep(Server::Postgres(server), register);
        }
        if self.redis_url.is_empty() {
            let binary = find_redis().map_err(anyhow::Error::msg)?;
            let server = RedisServer::start(&binary, &data.join("redis"), &[]).await?;
            let (url, socket) = (server.url(), server.socket().display().to_string());
            self.keep(Server::Redis(server), register);
            if wanted.is_cluster {
                let cluster = RedisCluster::start(&binary, &data.join("redis-cluster"), &[]).await?;
                self.redis_url = cluster.url();
                self.redis_cli = cluster.nodes().first().map(|node| format!("-c -p {}", node.port()));
                self.side_redis_url = Some(url);
                cluster.into_nodes().into_iter().for_each(|node| self.keep(Server::Node(node), register));
            } else {
                self.redis_url = url;
                self.redis_cli = Some(format!("-s '{socket}'"));
                self.redis_socket = Some(socket);
            }
        }
        self.prepare(wanted.partitions).await
    }

    fn keep(&mut self, server: Server, register: &mut Register) {
        register.add(server.pid(), server.stop_signal());
        self.private.push(server);
    }

    /// Creates the database and the users on a private server, and applies the schema.
    async fn prepare(&mut self, partitions: Option<PartitionCount>) -> Result<()> {
        let private = self.private.iter().find_map(|server| match server {
            Server::Postgres(postgres) => Some(postgres),
            Server::Redis(_) | Server::Node(_) => None,
        });
        if let Some(postgres) = private {
            postgres.create_database(DATABASE).await?;
        }
        let config = connect::parse_url(&self.database_url).map_err(anyhow::Error::msg).context("bad DATABASE_URL")?;
        let client = connect::postgres::connect(&config, "launcher", || {}).await?;
        apply_schema_with(&client, partitions).await.map_err(explain).context("applying schema.sql")?;
        if private.is_some() {
            client.batch_execute(SEED).await.context("applying seed.sql")?;
        }
        let name = given("STREAM_NAME").unwrap_or_else(|| STREAM_NAME.to_owned());
        let sql = "-- launcher::stream_keys
                   SELECT stream_key(partition, $1) FROM generate_series(0, log_partitions() - 1) AS partition ORDER BY partition";
        let rows = client.query(sql, &[&name]).await.context("asking for the keys of the streams")?;
        self.stream_keys = rows.iter().map(|row| row.get(0)).collect();
        Ok(())
    }

    fn is_postgres_private(&self) -> bool {
        self.private.iter().any(|server| matches!(server, Server::Postgres(_)))
    }

    /// Whether every server was started here.
    pub fn are_private(&self) -> bool {
        self.is_postgres_private() && self.redis_cli.is_some()
    }

    /// Says where the servers are, and whose they are.
    pub fn introduce(&self) {
        let postgres = match connect::parse_url(&self.database_url) {
            _ if self.is_postgres_private() => format!("private: psql '{}'", self.database_url),
            Ok(config) => format!("YOURS: {}. Tables and simulated rides go into it", connect::describe(&config)),
            Err(_) => "YOURS".to_owned(),
        };
        say(&format!("  sql     {postgres}"));
        let first = self.stream_keys.first().map_or(STREAM_NAME, String::as_str);
        match &self.redis_cli {
            Some(words) => say(&format!("  stream  private: redis-cli {words} XRANGE {} - + COUNT 3", quoted(first))),
            None => say("  stream  YOURS, as REDIS_URL says: the stream goes into it"),
        }
        if self.stream_keys.len() > 1 {
            let (last, others) = self.stream_keys.split_last().map_or(("", 0), |(last, rest)| (last, rest.len()));
            say(&format!("          and a stream for each of {others} more partitions; the last is {}", quoted(last)));
        }
        if self.side_redis_url.is_some() {
            let nodes = self.private.iter().filter_map(|server| match server {
                Server::Node(node) => Some(format!("{} (pid {})", node.port(), node.pid().unwrap_or_default())),
                Server::Postgres(_) | Server::Redis(_) => None,
            });
            say(&format!(
                "  nodes   three masters and three replicas, on the ports {}",
                nodes.collect::<Vec<_>>().join(", ")
            ));
        }
    }

    /// A line for a shell, with which commands find this run. A URL that was given may have a password, and is not printed.
    pub fn exports(&self, api_port: u16, container_port: &str) -> String {
        let mut line = format!("export API_PORT={api_port} CONTAINER_PORT={container_port}");
        let mut add = |name: &str, value: &str| line.push_str(&format!(" {name}={}", quoted(value)));
        if self.is_postgres_private() {
            add("DATABASE_URL", &self.database_url);
        }
        if self.redis_cli.is_some() {
            add("REDIS_URL", &self.redis_url);
        }
        if let Some(url) = &self.side_redis_url {
            add("WALLETS_REDIS_URL", url);
        }
        if let Some(socket) = &self.redis_socket {
            add("REDIS_SOCKET", socket);
        }
        for name in ["STREAM_NAME", "PARTITIONS"] {
            if let Some(value) = given(name) {
                add(name, &value);
            }
        }
        line
    }

    /// Stops the private servers, the last one first.
    pub async fn stop(self) {
        for server in self.private.into_iter().rev() {
            if let Err(error) = server.stop().await {
                tell(&format!("{error:#}"));
            }
        }
    }
}

/// A word for a shell. A quote cannot stand between quotes.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What Postgres says, and what it advises.
fn explain(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(refusal) => match refusal.hint() {
            Some(hint) => anyhow!("{} ({hint})", refusal.message()),
            None => anyhow!("{}", refusal.message()),
        },
        None => error.into(),
    }
}
