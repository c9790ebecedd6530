//! The two servers of `bin/up`: private ones, or those that `--use` names.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::find::{find_postgres, find_redis, given};
use crate::leftovers::Register;
use crate::outside::Outside;
use crate::postgres_server::{self, PostgresServer};
use crate::redis_server::{self, RedisServer};
use crate::schema::{SEED, apply_schema};
use crate::screen::{say, tell};

/// The private database.
const DATABASE: &str = "rocket-rides-log";

/// A private server.
pub(crate) enum Server {
    Postgres(PostgresServer),
    Redis(RedisServer),
}

impl Server {
    /// The name before its lines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Redis(_) => "redis",
        }
    }

    /// The signal that stops it.
    pub fn stop_signal(&self) -> Signal {
        match self {
            Self::Postgres(_) => postgres_server::STOP_SIGNAL,
            Self::Redis(_) => redis_server::STOP_SIGNAL,
        }
    }

    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Postgres(server) => server.pid(),
            Self::Redis(server) => server.pid(),
        }
    }

    /// Waits until the server ends by itself. Returns its exit status.
    pub async fn ended(&mut self) -> String {
        match self {
            Self::Postgres(server) => server.ended().await,
            Self::Redis(server) => server.ended().await,
        }
    }

    /// Starts it on the same data and the same socket, after it has ended.
    pub async fn start_again(&self) -> Result<Self> {
        match self {
            Self::Postgres(server) => Ok(Self::Postgres(server.start_again().await?)),
            Self::Redis(server) => Ok(Self::Redis(server.start_again().await?)),
        }
    }

    pub async fn stop(self) -> Result<()> {
        match self {
            Self::Postgres(server) => server.stop().await,
            Self::Redis(server) => server.stop().await,
        }
    }
}

/// Both servers: their URLs, and those that were started.
pub(crate) struct Servers {
    pub database_url: String,
    pub redis_url: String,
    /// The socket of a private Redis, for `redis-cli -s`.
    pub redis_socket: Option<String>,
    /// In the order in which they were started.
    pub private: Vec<Server>,
}

impl Servers {
    /// Starts the servers that `outside` does not give, and prepares the database.
    ///
    /// # Errors
    /// A server is missing or does not start, or the schema cannot be applied. The servers that were started are stopped again.
    pub async fn start(data: &Path, outside: &Outside, register: &mut Register) -> Result<Self> {
        let (database_url, redis_url) = (outside.value("DATABASE_URL"), outside.value("REDIS_URL"));
        let mut servers = Self {
            database_url: database_url.unwrap_or_default(),
            redis_url: redis_url.unwrap_or_default(),
            redis_socket: None,
            private: Vec::new(),
        };
        match servers.start_private(data, register).await {
            Ok(()) => Ok(servers),
            Err(error) => {
                servers.stop().await;
                Err(error)
            }
        }
    }

    async fn start_private(&mut self, data: &Path, register: &mut Register) -> Result<()> {
        if self.database_url.is_empty() {
            let binaries = find_postgres().map_err(anyhow::Error::msg)?;
            let server = PostgresServer::start(&binaries, &data.join("pg"), &[]).await?;
            register.add(server.pid(), postgres_server::STOP_SIGNAL);
            self.database_url = server.url(DATABASE);
            self.private.push(Server::Postgres(server));
        }
        if self.redis_url.is_empty() {
            let binary = find_redis().map_err(anyhow::Error::msg)?;
            let server = RedisServer::start(&binary, &data.join("redis"), &[]).await?;
            register.add(server.pid(), redis_server::STOP_SIGNAL);
            self.redis_url = server.url();
            self.redis_socket = Some(server.socket().display().to_string());
            self.private.push(Server::Redis(server));
        }
        self.prepare().await
    }

    /// Creates the database and the users on a private server, and applies the schema.
    async fn prepare(&self) -> Result<()> {
        let private = self.private.iter().find_map(|server| match server {
            Server::Postgres(postgres) => Some(postgres),
            Server::Redis(_) => None,
        });
        if let Some(postgres) = private {
            postgres.create_database(DATABASE).await?;
        }
        let config = connect::parse_url(&self.database_url).map_err(anyhow::Error::msg).context("bad DATABASE_URL")?;
        let client = connect::postgres::connect(&config, "launcher", || {}).await?;
        apply_schema(&client).await.context("applying schema.sql")?;
        if private.is_some() {
            client.batch_execute(SEED).await.context("applying seed.sql")?;
        }
        Ok(())
    }

    /// Whether every server was started here.
    pub fn are_private(&self) -> bool {
        self.private.len() == 2
    }

    /// Says where both servers are, and whose they are.
    pub fn introduce(&self) {
        let is_private = |name| self.private.iter().any(|server| server.name() == name);
        let postgres = match connect::parse_url(&self.database_url) {
            _ if is_private("postgres") => format!("private: psql '{}'", self.database_url),
            Ok(config) => format!("YOURS: {}. Tables and simulated rides go into it", connect::describe(&config)),
            Err(_) => "YOURS".to_owned(),
        };
        say(&format!("  sql     {postgres}"));
        match &self.redis_socket {
            Some(socket) => {
                say(&format!("  stream  private: redis-cli -s '{socket}' XRANGE rocket-rides-log - + COUNT 3"))
            }
            None => say("  stream  YOURS, as REDIS_URL says: the stream goes into it"),
        }
    }

    /// A line for a shell, with which commands find this run. A URL that was given may have a password, and is not printed.
    pub fn exports(&self, api_port: u16, container_port: &str) -> String {
        let is_private = |name| self.private.iter().any(|server| server.name() == name);
        let mut line = format!("export API_PORT={api_port} CONTAINER_PORT={container_port}");
        let mut add = |name: &str, value: &str| {
            // A quote cannot stand between quotes.
            line.push_str(&format!(" {name}='{}'", value.replace('\'', "'\\''")));
        };
        if is_private("postgres") {
            add("DATABASE_URL", &self.database_url);
        }
        if let Some(socket) = &self.redis_socket {
            add("REDIS_URL", &self.redis_url);
            add("REDIS_SOCKET", socket);
        }
        for name in ["STREAM_NAME", "PARTITION"] {
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
