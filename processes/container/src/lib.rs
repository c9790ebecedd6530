//! The container: one HTTP request for several destinations. All that want it store it, or none does.
//!
//! ```text
//! POST ─▶ incoming ─▶ spool: the body, synced ─▶ units: one row, leased ─▶ fan_out ─▶ destinations side by side
//!                       ▲                            ▲                       └─▶ the verdict, or the way back
//!                       └── sweeping: files without  └── driving: units that are due
//!                           a unit are taken up
//! ```
//!
//! | invariant | kept by |
//! | --- | --- |
//! | C1 an accepted unit is never forgotten | `spool`, `units::accept`, `hand` |
//! | C2 an attempt has one verdict, and all parts obey it | `units::settle`: the lease is compared |
//! | C3 at rest no destination keeps a part of a unit that was not committed | `fan_out` |
//! | C4 store and undo may be repeated and overtake each other | the registers of `files`, `board`, `notices` |
//! | C5 a destination that is away holds back only units that need it | `units::breakers`, `fan_out` |

pub mod board;
mod config;
mod current;
pub mod declaration;
pub mod destination;
mod envelope;
mod fan_out;
pub mod files;
mod hand;
mod incoming;
pub mod notices;
mod operate;
mod places;
mod server;
pub mod spool;
pub mod units;
pub mod webhook;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::shutdown::{CancellationToken, stop_at_last};
use common::stay_down::StayDown;
use process::{BAD_SETTING, Until};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tracing::info;
use web::{Limits, Server};

pub use config::{Command, Config};
use declaration::{Declaration, environment};
use fan_out::FanOut;
use hand::{Driving, Hand, Sweeping};
use spool::{Spool, SpoolPlace};

/// Connections with Postgres: those of requests and of units.
const POOL_LEN: usize = 16;

/// The container is not ready if it has not looked for units for this long.
const AGE_MAX: Duration = Duration::from_secs(10);

/// How long a request may take in all, its body included.
const REQUEST_WAIT: Duration = Duration::from_secs(120);

/// Serves until `shutdown`; with `--check` it only reads the declaration.
///
/// # Errors
/// The declaration has a fault, the spool is another one, a destination has moved, or the port is taken.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    match config.command {
        Some(Command::Notices(config)) => return notices::run(config, shutdown).await,
        Some(Command::Units(config)) => return operate::run(*config).await,
        None => {}
    }
    let path = config.config.context("give the file that declares the resources: --config").map_err(StayDown)?;
    let declaration = Declaration::read(&path, &environment);
    if config.check {
        match declaration {
            Ok(declaration) => println!("{declaration}"),
            Err(complaint) => {
                complaint.lines().iter().for_each(|line| eprintln!("{line}"));
                std::process::exit(BAD_SETTING.into())
            }
        }
        return Ok(());
    }
    let declaration = Arc::new(declaration.map_err(|complaint| StayDown(complaint.into()))?);
    let listener = TcpListener::bind((config.container_bind, config.container_port)).await;
    let port = config.container_port;
    let listener = listener.with_context(|| format!("listening on port {port}: set CONTAINER_PORT to another"))?;
    let health = monitor::start(&config.process.monitor).await?;
    let pool = connect::postgres::pool(&config.postgres.database_url, "container", POOL_LEN)?;
    let spool = open_spool(&config.container_spool, &pool).await?;
    let places = places::open(&declaration).await.map_err(StayDown)?;
    register(&declaration, &pool).await?;
    let hand = Hand { spool, fan_out: Arc::new(FanOut::new(places, pool.clone())), pool, driving: TaskTracker::new() };

    let app = server::App { declaration: Arc::clone(&declaration), hand: hand.clone(), reply_wait: config.reply_wait };
    let limits = Limits { request_wait: REQUEST_WAIT, ..Limits::default() }.within_open_files(0);
    let hosts = config.process.monitor.http_hosts.unwrap_or_default();
    info!(address = %listener.local_addr().context("reading the socket's address")?, "container started");
    process::ready();
    let serving = Server::new(limits).with_request_ids().with_hosts(hosts);
    let serving = serving.serve(listener, server::router(app), shutdown.clone());
    let (driving, sweeping) = (health.pulse("units", AGE_MAX), health.pulse("spool", Duration::MAX));
    let mut due = Driving { hand: hand.clone(), stop: shutdown.clone() };
    let mut sweep = Sweeping { hand: hand.clone(), declaration };
    let ended = tokio::select! {
        ended = async {
            tokio::join!(
                serving,
                process::repeat(&mut due, Until::Stopped, &driving, &shutdown),
                process::repeat(&mut sweep, Until::Stopped, &sweeping, &shutdown),
            )
        } => ended.1.and(ended.2),
        () = stop_at_last(&shutdown) => Ok(()),
    };
    hand.driving.close();
    tokio::select! {
        () = hand.driving.wait() => {}
        () = stop_at_last(&shutdown) => {}
    }
    info!("container stopped");
    ended
}

/// Opens the spool and compares it with the units: a folder that is not mounted looks like a new one.
async fn open_spool(place: &SpoolPlace, pool: &deadpool_postgres::Pool) -> Result<Spool> {
    let spool = Spool::open(place).await.map_err(StayDown)?;
    let client = connect::postgres::take(pool).await?;
    let mut open = units::open_spools_at(&client, &spool.place()).await?;
    open.retain(|id| *id != spool.id().to_string());
    if !open.is_empty() {
        let text = format!(
            "units wait for files in another spool that was at {} ({}): mount its folder, or put its files back",
            spool.place(),
            open.join(", ")
        );
        return Err(StayDown(anyhow::anyhow!(text)).into());
    }
    units::register_spool(&client, &spool.id().to_string(), &spool.place()).await?;
    Ok(spool)
}

async fn register(declaration: &Declaration, pool: &deadpool_postgres::Pool) -> Result<()> {
    let client = connect::postgres::take(pool).await?;
    let destinations = declaration.destinations.values();
    let destinations: Vec<_> = destinations.map(|one| (one.name.clone(), one.fingerprint().to_vec())).collect();
    units::register(&client, &destinations).await.map_err(StayDown)?;
    for name in units::open_destinations(&client).await? {
        if !declaration.destinations.contains_key(&name) {
            let text = "units are open that have parts there: declare it with retired = true until they are settled";
            bail!(StayDown(anyhow::anyhow!("the destination {name} is not declared, and {text}")));
        }
    }
    Ok(())
}
