//! A live page: the head of the log, each consumer's progress and total, and whether the totals equal SQL's own sum. The page
//! only reads.
//!
//! ```text
//! Postgres, Redis, /metrics of each process ──twice a second──▶ sampler ──▶ samples ──server-sent events──▶ browsers
//! rides, wallets ──counted again, with pauses──▶ recount ──┘
//! ```
//!
//! A sample is taken once for all viewers. "Converged" does not rely on a consumer's own figures: it is shown when all
//! checkpoints are at the head, and a recount of the rides at that head gives each consumer's total (I9).

mod assets;
mod container;
mod counting;
mod database;
mod differences;
mod faults;
mod incidents;
mod keys;
mod memory;
mod processes;
mod rate;
mod recount;
mod sample;
mod sampler;
mod server;
mod stream_end;
mod verdict;
mod wallets;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use common::shutdown::{CancellationToken, stop_at_last};
use common::stay_down::StayDown;
use connect::PostgresArgs;
use process::ProcessArgs;
use stream::StreamArgs;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;
use wallet::WalletsArgs;
use wallet::model::Model;
use web::{Limits, Server};

use crate::container::Containers;
use crate::counting::Counts;
use crate::database::Database;
use crate::faults::FaultDesk;
use crate::keys::Keys;
use crate::memory::SharedMemory;
pub use crate::processes::Target;
use crate::processes::Watch;
use crate::recount::Rides;
use crate::sampler::{ANSWER_WAIT, Pulses, Sampler};
use crate::server::App;
use crate::stream_end::Streams;
use crate::wallets::{Reader, Watchers};

/// The process is not ready if a server has not answered for this long.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Serves a live page of how the consumers converge. Reads only.
#[derive(Debug, Clone, Parser)]
#[command(name = "dashboard", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// Where the wallets' read model is.
    #[command(flatten)]
    pub wallets: WalletsArgs,

    /// The port of the page; 0 takes a free one.
    #[arg(long, env = "DASHBOARD_PORT", default_value_t = 5007)]
    pub dashboard_port: u16,

    /// The address to listen on. 0.0.0.0 listens to the whole network; the page has no password.
    #[arg(long, env = "DASHBOARD_BIND", default_value = "127.0.0.1")]
    pub dashboard_bind: IpAddr,

    /// Processes to show, by the addresses of their monitors: consumer0=127.0.0.1:5014,streamer=127.0.0.1:5013
    #[arg(long, env = "DASHBOARD_WATCH", value_delimiter = ',', value_name = "NAME=HOST:PORT")]
    pub watch: Vec<Target>,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Serves until `shutdown`.
///
/// # Errors
/// The port is taken, other machines could inject faults, or the log lacks a partition that is to be shown. A server that does not answer is no error: the page says so.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    if config.process.monitor.fault_orders && !config.dashboard_bind.is_loopback() {
        let why = "other machines could press the buttons: set FAULT_ORDERS=false, or take away DASHBOARD_BIND";
        return Err(StayDown(anyhow!(why)).into());
    }
    let (bind, port) = (config.dashboard_bind, config.dashboard_port);
    let listener = TcpListener::bind((bind, port)).await;
    let listener = listener.with_context(|| format!("listening on {bind}:{port}: set DASHBOARD_PORT to another"))?;
    let address = listener.local_addr().context("reading the socket's address")?;
    let health = monitor::start(&config.process.monitor).await?;
    let pulses = Pulses { postgres: health.pulse("postgres", AGE_MAX), redis: health.pulse("redis", AGE_MAX) };

    let (postgres, servers) = (&config.postgres.database_url, &config.stream.redis_url);
    let keys = Keys::new(&config.stream);
    let watch = Watch::new(&config.watch);
    let desk = config.process.monitor.fault_orders.then(|| FaultDesk::new(watch.clone(), servers, keys.clone()));
    let watchers = Watchers::default();
    let redis = config.wallets.wallets_redis_url.as_ref().unwrap_or(servers.first());
    let model = Model::start(redis.clone(), &config.stream.stream_name, wallets::REDIS_WAIT);
    let sampler = Sampler {
        database: Database::new(postgres, keys.clone()),
        streams: Streams::new(servers, keys, ANSWER_WAIT),
        watch,
        recounts: Counts::start(postgres, Rides),
        wallets: Reader::new(postgres, model, watchers.clone()),
        containers: Containers::default(),
    };
    let (sender, samples) = watch::channel(None);
    let memory = SharedMemory::default();
    let mut sampling = tokio::spawn(sampler.run(sender, memory.clone(), pulses, shutdown.clone()));

    info!(%address, stream = ?config.stream, faults = desk.is_some(), "dashboard started");
    process::ready();
    let app = App { samples, memory, desk, watchers, shutdown: shutdown.clone() };
    let server = Server::new(Limits::default().within_open_files(0))
        .with_hosts(config.process.monitor.http_hosts.clone().unwrap_or_default());
    let serving = server.serve(listener, server::router(app), shutdown.clone());
    tokio::select! {
        () = serving => {}
        // Without the sampler the page would show old figures for ever, so the process ends, and a supervisor starts it again.
        sampled = &mut sampling => sampled.context("the sampler died")??,
        () = stop_at_last(&shutdown) => {}
    }
    info!("dashboard stopped");
    Ok(())
}
