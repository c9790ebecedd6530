//! The container: one HTTP request for several destinations. All that want it store it, or none does.
//!
//! ```text
//! POST ─▶ incoming ─▶ spool: the body, synced ─▶ units: one row, leased ─▶ fan_out ─▶ destinations side by side
//!                       ▲                            ▲                       └─▶ the verdict, or the way back
//!                       └── sweep: files without a   └── hand: units that are due
//!                           unit are taken up
//! forget: rows of units that were settled long ago       rebuild: the board, when Redis has forgotten
//! ```
//!
//! | invariant | kept by |
//! | --- | --- |
//! | C1 an accepted unit is never forgotten | `spool`, `begin`, `units::accept`, `hand`, `sweep`; `forget` |
//! | C2 an attempt has one verdict, and all parts obey it | `units::commit`, `units::settle`: the lease is compared |
//! | C3 at rest no destination keeps a part of a unit that was not committed | `fan_out` |
//! | C4 store and undo may be repeated and overtake each other | the registers of `files`, `board`, `notices` |
//! | C5 a destination that is away holds back only units that need it | `units::breakers`, `fan_out` |

mod begin;
pub mod board;
mod config;
pub mod contract;
mod current;
pub mod declaration;
pub mod destination;
mod document;
mod envelope;
mod fan_out;
pub mod files;
mod forget;
mod hand;
mod incoming;
mod mark;
mod metrics;
pub mod notices;
mod openapi;
mod opening;
mod operate;
mod outage;
mod places;
mod points;
mod readiness;
mod rebuild;
mod server;
pub mod spool;
mod sweep;
pub mod units;
pub mod webhook;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use board::Board;
use common::shutdown::{CancellationToken, stop_at_last};
use common::stay_down::StayDown;
use futures_util::future::try_join_all;
use monitor::Health;
use process::{BAD_SETTING, Until};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tracing::info;
use web::{Limits, Server};

pub use config::{Command, Config};
use declaration::{Declaration, OwnKind, environment};
use fan_out::FanOut;
use forget::Forgetting;
use hand::{Driving, Hand};
use opening::Opening;
pub use points::{At, Point};
use rebuild::Rebuilding;
use sweep::Sweeping;

/// Connections with Postgres: those of requests and of units.
const POOL_LEN: usize = 16;

/// The container is not ready if it has not looked for units for this long. A round may take as long as the work on a unit,
/// because destinations may be slow. Meanwhile other units are accepted and driven.
const AGE_MAX: Duration = units::WORK_WAIT.saturating_add(Duration::from_secs(10));

/// How long a request may take in all, its body included.
const REQUEST_WAIT: Duration = Duration::from_secs(120);

/// Serves until `shutdown`; with `--check` it only reads the declaration.
///
/// # Errors
/// The declaration has a fault, the spool is another one, a destination has moved, or the port is taken.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    run_with(config, &[], shutdown).await
}

/// As [`run`], with kinds of destinations that the program adds to those of the container. The file declares them as it declares
/// the others.
///
/// # Errors
/// As [`run`].
pub async fn run_with(config: Config, kinds: &[OwnKind], shutdown: CancellationToken) -> Result<()> {
    match config.command {
        Some(Command::Notices(config)) => return notices::run(config, shutdown).await,
        Some(Command::Units(config)) => return operate::run(*config).await,
        None => {}
    }
    let path = config.config.context("give the file that declares the resources: --config").map_err(StayDown)?;
    let declaration = Declaration::read(&path, kinds, &environment);
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
    points::arm(config.die_at, config.stop_at);
    let database_url = config.database_url.context("need DATABASE_URL: set it in the environment").map_err(StayDown)?;
    let listener = TcpListener::bind((config.container_bind, config.container_port)).await;
    let port = config.container_port;
    let listener = listener.with_context(|| format!("listening on port {port}: set CONTAINER_PORT to another"))?;
    let health = monitor::start(&config.process.monitor).await?;
    let pool = connect::postgres::pool(&database_url, "container", POOL_LEN)?;
    let orders = health.orders_at(declaration.storing().map(str::to_owned));
    let mut opening = Opening::new(&config.container_spool, &declaration, &pool, &orders);
    process::repeat(&mut opening, Until::Idle, &health.pulse("start", Duration::MAX), &shutdown).await?;
    let Some((spool, places)) = opening.opened else { return Ok(()) };
    readiness::watch(&health, &database_url, &spool, &declaration, &shutdown);
    let (accepts, verdicts) = units::start_queues(&database_url, &health)?;
    let fan_out = Arc::new(FanOut::new(places.all, pool.clone(), verdicts));
    let hand = Hand { spool, fan_out, accepts, pool, driving: TaskTracker::new() };

    let app = server::App { declaration: Arc::clone(&declaration), hand: hand.clone(), reply_wait: config.reply_wait };
    let limits = Limits { request_wait: REQUEST_WAIT, ..Limits::default() }.within_open_files(0);
    let hosts = config.process.monitor.http_hosts.unwrap_or_default();
    info!(address = %listener.local_addr().context("reading the socket's address")?, "container started");
    process::ready();
    let serving = Server::new(limits).with_request_ids().with_hosts(hosts);
    let serving = serving.serve(listener, server::router(app), shutdown.clone());
    let driving = health.pulse("units", AGE_MAX);
    let mut due = Driving { hand: hand.clone(), stop: shutdown.clone() };
    let ended = tokio::select! {
        ended = async {
            tokio::join!(
                serving,
                process::repeat(&mut due, Until::Stopped, &driving, &shutdown),
                keep(&hand, &declaration, places.boards, config.keep_units, (&health, &shutdown)),
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

/// The work that no client waits for: the spool is swept, old units are forgotten, and each board is built again when Redis
/// forgets.
async fn keep(
    hand: &Hand,
    declaration: &Arc<Declaration>,
    boards: Vec<(String, Arc<Board>)>,
    keep_units: Duration,
    (health, shutdown): (&Health, &CancellationToken),
) -> Result<()> {
    let (sweeps, old) = (health.pulse("sweeps", Duration::MAX), health.pulse("old_units", Duration::MAX));
    // The process is ready without Redis: it holds back only the units that need it.
    let board = Health::default().pulse("board", Duration::MAX);
    let mut sweep = Sweeping::new(hand.clone(), Arc::clone(declaration));
    let mut forget = Forgetting::new(hand.clone(), keep_units);
    let boards = boards.into_iter().map(async |(name, place)| {
        let mut rebuild = Rebuilding::new(hand.clone(), declaration, name, place);
        process::repeat(&mut rebuild, Until::Stopped, &board, shutdown).await
    });
    let ended = tokio::join!(
        process::repeat(&mut sweep, Until::Stopped, &sweeps, shutdown),
        process::repeat(&mut forget, Until::Stopped, &old, shutdown),
        try_join_all(boards),
    );
    ended.0.and(ended.1).and(ended.2.map(drop))
}
