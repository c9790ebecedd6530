//! `bin/up`: the whole system, from nothing to a stop by Ctrl-C.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use common::shutdown::CancellationToken;
use nix::sys::signal::Signal;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::find::{find_postgres, find_redis, given};
use crate::leftovers::Register;
use crate::lock::lock;
use crate::postgres_server::PostgresServer;
use crate::procfile::parse_procfile;
use crate::redis_server::RedisServer;
use crate::schema::{SEED, apply_schema};
use crate::screen::Console;
use crate::supervise::keep_running;
use crate::watch::watch;

/// The private database.
const DATABASE: &str = "rocket-rides-log";

/// The port of the live page, if it is free.
const DASHBOARD_PORT: u16 = 5007;

/// The monitor port of the first process of the Procfile. The following processes get the following ports.
const FIRST_MONITOR_PORT: u16 = 5010;

/// Starts everything and shows how the consumers converge: by a board on a terminal, by a line every few seconds elsewhere.
#[derive(Debug, Clone, Args)]
pub struct UpConfig {
    /// The folder in which the private servers keep their data.
    #[arg(long, env = "DATA_DIR", default_value = ".data")]
    pub data: PathBuf,

    /// The file that lists the processes.
    #[arg(long, default_value = "Procfile")]
    pub procfile: PathBuf,

    /// The port of the api.
    #[arg(long, env = "API_PORT", default_value_t = 5005)]
    pub api_port: u16,

    /// Seconds between two looks at the totals. Without it: 2 on a terminal, and 5 elsewhere.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub summary_every: Option<u64>,
}

/// Runs the system until SIGINT or SIGTERM.
///
/// # Errors
/// Another launcher runs on the same data, the api's port is taken, a server is missing or does not start, the Procfile
/// cannot be read.
pub async fn up(config: UpConfig) -> Result<()> {
    let stop = process::on_signal()?;
    std::fs::create_dir_all(&config.data).with_context(|| format!("creating {}", config.data.display()))?;
    let data = config.data.canonicalize().context("finding the data folder")?;
    // The lock ends with the process, even by a kill. No other launcher uses the data while it is held.
    let _lock = lock(&data.join("lock"))?.with_context(|| {
        format!(
            "another bin/up is running on {}: stop it first (Ctrl-C there), or give this one other data and another \
             port: DATA_DIR=… API_PORT=… bin/up",
            data.display()
        )
    })?;
    let mut register = Register::open(data.join("processes")).await?;
    let text =
        std::fs::read_to_string(&config.procfile).with_context(|| format!("reading {}", config.procfile.display()))?;
    let entries = parse_procfile(&text)?;
    check_port(config.api_port).await?;

    let servers = Servers::start(&data, &mut register).await?;
    let outcome = match servers.prepare().await {
        Ok(()) => run_processes(&config, entries, &servers, &mut register, stop).await,
        Err(error) => Err(error),
    };
    servers.stop().await;
    register.clear()?;
    outcome
}

async fn run_processes(
    config: &UpConfig,
    entries: Vec<crate::procfile::Entry>,
    servers: &Servers,
    register: &mut Register,
    stop: CancellationToken,
) -> Result<()> {
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0).max("summary".len());
    let console = Console::new(width);
    let mut environment = servers.environment.clone();
    environment.push(("API_PORT".to_owned(), config.api_port.to_string()));
    environment.extend(payment_settings(&config.data).await?);
    if console.colours {
        environment.push(("FORCE_COLOR".to_owned(), "1".to_owned()));
    }
    let monitor_ports = free_ports(FIRST_MONITOR_PORT, entries.len()).await?;
    let page_port = match given("DASHBOARD_PORT") {
        Some(port) => port,
        None => free_ports(DASHBOARD_PORT, 1).await?[0].to_string(),
    };
    greet(config, servers, &page_port);
    let mut watched = Vec::new();
    for (entry, port) in entries.iter().zip(&monitor_ports) {
        println!("  health  http://127.0.0.1:{port}/readyz and /metrics: {}", entry.name);
        watched.push(format!("{}=127.0.0.1:{port}", entry.name));
    }
    environment.push(("DASHBOARD_PORT".to_owned(), page_port));
    environment.push(("DASHBOARD_WATCH".to_owned(), watched.join(",")));
    if given("FAULT_ORDERS").is_none() {
        environment.push(("FAULT_ORDERS".to_owned(), "true".to_owned()));
    }
    let (started, mut pids) = mpsc::unbounded_channel();
    let summary_index = entries.len();
    let mut running: Vec<_> = entries
        .into_iter()
        .enumerate()
        .zip(monitor_ports)
        .map(|((index, entry), monitor_port)| {
            let (mut environment, console) = (environment.clone(), console.clone());
            environment.push(("MONITOR_PORT".to_owned(), monitor_port.to_string()));
            tokio::spawn(keep_running(index, entry, environment, console, started.clone(), stop.clone()))
        })
        .collect();
    running.push(tokio::spawn(watch(config.api_port, config.summary_every, summary_index, console, stop.clone())));
    drop(started);
    // Ends when every process has ended, because all senders are dropped then.
    while let Some(pid) = pids.recv().await {
        register.add(Some(pid), Signal::SIGTERM)?;
    }
    for task in running {
        task.await.context("a watcher died")?;
    }
    println!("everything has stopped");
    Ok(())
}

fn greet(config: &UpConfig, servers: &Servers, page_port: &str) {
    let base_url = format!("http://127.0.0.1:{}", config.api_port);
    println!("Rocket Rides Log is starting. Ctrl-C stops all of it.");
    println!("  watch   http://127.0.0.1:{page_port}");
    println!("  api     {base_url}");
    println!("  ride    curl -d distance=123.0 {base_url}/rides");
    println!(
        "  book    curl {base_url}/rides -H 'Authorization: user@example.com' -H 'Idempotency-Key: any-20-characters-or-more' \\\n                \
         -d 'origin_lat=52.52&origin_lon=13.405&target_lat=48.8566&target_lon=2.3522'"
    );
    println!("  totals  curl {base_url}/totals");
    if let Some(postgres) = &servers.postgres {
        println!("  sql     psql '{}'", postgres.url(DATABASE));
    }
    if let Some(redis) = &servers.redis {
        println!("  stream  redis-cli -s {} XRANGE rocket-rides-log - + COUNT 3", redis.socket().display());
    }
}

/// Ports from `first` on, each replaced by another if it is in use.
async fn free_ports(first: u16, count: usize) -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    // The listeners are held until all ports are chosen, so that no port is chosen twice.
    let mut held = Vec::new();
    for wanted in (first..).take(count) {
        let listener = match TcpListener::bind(("127.0.0.1", wanted)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(("127.0.0.1", 0)).await.context("looking for a free port")?,
        };
        ports.push(listener.local_addr().context("reading a socket's address")?.port());
        held.push(listener);
    }
    Ok(ports)
}

async fn check_port(api_port: u16) -> Result<()> {
    match TcpListener::bind(("127.0.0.1", api_port)).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("port {api_port} cannot be used for the api ({error}): set API_PORT to another"),
    }
}

/// Settings for payments and receipts that are not given: a private payment server and a private folder.
async fn payment_settings(data: &Path) -> Result<Vec<(String, String)>> {
    let given = |name| given(name).is_some();
    let mut settings = Vec::new();
    let mut set = |name: &str, value: String| settings.push((name.to_owned(), value));
    if !given("RECEIPTS_DIR") && !given("RECEIPTS_SMTP_URL") {
        set("RECEIPTS_DIR", data.join("receipts").display().to_string());
    }
    if !given("PAYMENTS_DATA") {
        set("PAYMENTS_DATA", data.join("payments").display().to_string());
    }
    if !given("PAYMENTS_PORT") {
        // Any free port will do: only the processes of this launcher use it.
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.context("looking for a free port")?;
        let port = listener.local_addr().context("looking for a free port")?.port();
        set("PAYMENTS_PORT", port.to_string());
        if !given("STRIPE_API_KEY") {
            set("STRIPE_API_BASE", format!("http://127.0.0.1:{port}"));
            set("STRIPE_API_KEY", "sk_test_development".to_owned());
        }
    }
    Ok(settings)
}

/// The servers that were started, and the environment by which the processes find all servers.
struct Servers {
    postgres: Option<PostgresServer>,
    redis: Option<RedisServer>,
    environment: Vec<(String, String)>,
}

impl Servers {
    async fn start(data: &Path, register: &mut Register) -> Result<Self> {
        let mut servers = Self { postgres: None, redis: None, environment: Vec::new() };
        let outcome = async {
            let database_url = match given("DATABASE_URL") {
                Some(url) => url,
                None => {
                    let binaries = find_postgres().map_err(anyhow::Error::msg)?;
                    let server = PostgresServer::start(&binaries, &data.join("pg"), &[]).await?;
                    register.add(server.pid(), Signal::SIGINT)?;
                    servers.postgres.insert(server).url(DATABASE)
                }
            };
            let redis_url = match given("REDIS_URL") {
                Some(url) => url,
                None => {
                    let binary = find_redis().map_err(anyhow::Error::msg)?;
                    let server = RedisServer::start(&binary, &data.join("redis"), &[]).await?;
                    register.add(server.pid(), Signal::SIGTERM)?;
                    servers.redis.insert(server).url()
                }
            };
            servers.environment = vec![("DATABASE_URL".to_owned(), database_url), ("REDIS_URL".to_owned(), redis_url)];
            Ok(())
        };
        match outcome.await {
            Ok(()) => Ok(servers),
            Err(error) => {
                servers.stop().await;
                Err(error)
            }
        }
    }

    /// Creates the database on a private server, and applies the schema.
    async fn prepare(&self) -> Result<()> {
        if let Some(postgres) = &self.postgres {
            postgres.create_database(DATABASE).await?;
        }
        let config = self.environment[0]
            .1
            .parse()
            .map_err(|_| anyhow!("bad DATABASE_URL: give a URL such as postgres://localhost/rocket-rides-log"))?;
        let client = connect::postgres::connect(&config, "launcher", || {}).await?;
        apply_schema(&client).await.context("applying schema.sql")?;
        if self.postgres.is_some() {
            client.batch_execute(SEED).await.context("applying seed.sql")?;
        }
        Ok(())
    }

    async fn stop(self) {
        if let Some(redis) = self.redis
            && let Err(error) = redis.stop().await
        {
            eprintln!("{error:#}");
        }
        if let Some(postgres) = self.postgres
            && let Err(error) = postgres.stop().await
        {
            eprintln!("{error:#}");
        }
    }
}
