//! Takes rides and commands for wallets over HTTP. A ride or an event of a wallet and its log record are written in one Postgres
//! transaction: both exist, or neither (I1). Requests that arrive together are committed together.
//!
//! ```text
//! web::Server ─▶ routes ─┬─▶ rides ─┬─ a guest's ride ──▶ writer ─▶ database
//!                        │          └─ a booked ride ───▶ bookings ─▶ booking::Desk
//!                        ├─▶ wallets ┬─ a command ──────▶ wallet_writer ─▶ wallet_commands ─▶ database
//!                        │           └─ a read ─────────▶ wallet_model ─▶ Redis, or database
//!                        └─▶ totals, history, health, docs ▶ database
//! ```
//!
//! Files import each other in one direction: `routes` the handlers, handlers `app` (the state that they share), and `app` the
//! writer and the database. `paths`, `error` and `ride` are at the bottom.

mod app;
mod body;
mod bookings;
mod client_trace;
mod database;
mod description;
mod distance;
mod docs;
mod error;
mod health;
mod held_places;
mod held_wallets;
mod hint;
mod history;
mod history_page;
mod history_stream;
mod key;
mod limits;
mod metrics;
mod parameters;
mod paths;
mod query;
mod reading;
mod responses;
mod ride;
mod rides;
mod routes;
mod totals;
mod wallet_commands;
mod wallet_model;
mod wallet_writer;
mod wallets;
mod writer;

use std::net::IpAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use booking::{BookingArgs, Desk, DiePoint};
use clap::Parser;
use common::paced::Paced;
use common::shutdown::{CancellationToken, stop_at_last};
use connect::{PostgresArgs, StandbyArgs};
use deadpool_postgres::Pool;
use monitor::Health;
use process::ProcessArgs;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinError;
use tracing::info;
use wallet::ModelArgs;
use wallet::model::{API_WAIT, Model};
use web::{Cors, Server};

use app::App;
use database::Database;
pub use distance::parse_distance;
pub use error::Error;
pub use limits::Limits;
use reading::Reader;
pub use reading::{ConsumerTotal, PartitionHead, Sum, Totals};
pub use ride::Ride;
use routes::Site;
use wallet_model::WalletModel;
use wallet_writer::WalletWriter;
pub use web::{Hosts, Origins, Proxies};
use writer::Writer;

/// The connections for booked rides. A booking holds a connection, except while the payment processor charges.
const DESK_LEN: usize = 16;

/// The api is not ready if a commit, or any response of Postgres, takes longer than this.
const AGE_MAX: Duration = Duration::from_secs(5);

/// The methods and headers that a page of another origin may send, and the headers that it may read.
const CORS_METHODS: &str = "GET, HEAD, POST";
const CORS_REQUEST_HEADERS: &str =
    "authorization, content-type, idempotency-key, last-event-id, traceparent, x-request-id";
const CORS_RESPONSE_HEADERS: &str = "age, idempotent-replayed, location, read-from, retry-after, x-request-id";

/// Takes rides over HTTP and stages their log records.
#[derive(Debug, Clone, Parser)]
#[command(name = "api", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// A standby, for the totals and the history.
    #[command(flatten)]
    pub standby: StandbyArgs,

    /// The port to listen on; 0 takes a free one.
    #[arg(long, env = "API_PORT", default_value_t = 5005)]
    pub api_port: u16,

    /// The address to listen on. 0.0.0.0 listens to the whole network.
    #[arg(long, env = "API_BIND", default_value = "127.0.0.1")]
    pub api_bind: IpAddr,

    /// Pages of which origins may use the api from a browser: * or a list such as https://a.example,https://b.example.
    /// Without it, none.
    #[arg(long, visible_alias = "cors-origins", env = "API_CORS_ORIGINS")]
    pub api_cors_origins: Option<Origins>,

    /// Reverse proxies that are trusted to tell a client's address, in X-Forwarded-For or Forwarded: a list of addresses and
    /// networks such as 10.0.0.0/8,::1. Without it, none.
    #[arg(long, env = "TRUSTED_PROXIES")]
    pub trusted_proxies: Option<Proxies>,

    /// Booked rides. Without a key of the payment processor only guests are taken.
    #[command(flatten)]
    pub booking: BookingArgs,

    /// Where the wallets' read model is. Without it wallets are read from Postgres.
    #[command(flatten)]
    pub model: ModelArgs,

    /// For chaos and tests: die by SIGKILL in the first booking that reaches this point.
    #[arg(long, hide = true)]
    pub die_at: Option<DiePoint>,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// The servers beside Postgres that the api uses.
#[derive(Clone, Default)]
pub struct Backends {
    /// Books rides, with a payment processor. `None`: only guests' rides are taken.
    pub desk: Option<Desk>,
    /// The wallets' read model, in Redis. `None`: wallets are read from Postgres alone.
    pub model: Option<Model>,
    /// A hot standby of Postgres. `None`: everything is read from the primary.
    pub standby: Option<tokio_postgres::Config>,
}

/// Who may reach the api, and how. By default pages of no other origin, only local names, and no proxy that is believed.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The origins whose pages may use the api; `None`: no other.
    pub origins: Option<Origins>,
    /// The names of the api.
    pub hosts: Hosts,
    /// The proxies that are believed.
    pub proxies: Proxies,
}

/// The runtime of the api. It uses half of the processors and leaves the others to Postgres, which does as much work per
/// request. On two processors, two threads spent more time on a request than one thread, mostly on waking each other.
///
/// # Errors
/// The system refuses the threads.
pub fn runtime() -> std::io::Result<Runtime> {
    let processor_count = std::thread::available_parallelism().map_or(1, NonZero::get);
    Builder::new_multi_thread().worker_threads((processor_count / 2).max(1)).enable_all().build()
}

/// Serves until `shutdown`; then requests in flight are finished.
///
/// # Errors
/// The port is taken. If Postgres is away, the api runs, and the response to each request is 503 until Postgres is back.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let address = (config.api_bind, config.api_port);
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("listening on {}:{}: set API_PORT or API_BIND to another", config.api_bind, config.api_port)
    })?;
    let desk = match config.booking.stripe.key() {
        Some(_) => Some(config.booking.desk(desk_pool(&config.postgres.database_url)?)?.dying_at(config.die_at)),
        None => None,
    };
    let health = monitor::start(&config.process.monitor).await?;
    metrics::describe();
    let postgres = &config.postgres.database_url;
    let takes_bookings = desk.is_some();
    health.ask_postgres(postgres, health.pulse("postgres", AGE_MAX), move |client| {
        Box::pin(async move {
            writer::write_no_ride(client).await?;
            monitor::try_statements(client, &[wallet::TRIAL]).await?;
            if takes_bookings { monitor::try_statements(client, &booking::TRIAL).await } else { Ok(()) }
        })
    });
    let booking_count_max = if desk.is_some() { booking::PLACE_COUNT } else { 0 };
    let limits = Limits { http: web::Limits::default().within_open_files(booking_count_max), ..Limits::default() };
    let access = Access {
        origins: config.api_cors_origins,
        hosts: config.process.monitor.http_hosts.unwrap_or_default(),
        proxies: config.trusted_proxies.unwrap_or_default(),
    };
    let model = config.model.start(API_WAIT);
    if model.is_none() {
        info!("wallets are read from Postgres alone: neither WALLETS_REDIS_URL nor REDIS_URL names a server for them");
    }
    serve(
        postgres,
        Backends { desk, model, standby: config.standby.standby_database_url },
        access,
        listener,
        limits,
        &health,
        shutdown,
    )
    .await
}

/// As [`run`], on a socket that is already open and within the given limits. The pulse
/// `writes` of `health` beats while rides can be written.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    postgres: &tokio_postgres::Config,
    backends: Backends,
    access: Access,
    listener: TcpListener,
    limits: Limits,
    health: &Health,
    shutdown: CancellationToken,
) -> Result<()> {
    let Backends { desk, model, standby } = backends;
    let database = Database::new(postgres, limits.answer_wait)?.with_standby(standby.as_ref())?;
    let (writer, rides) = Writer::start(database.clone(), &limits, health.pulse("writes", AGE_MAX));
    let model = WalletModel::new(model, database.clone());
    let pulse = health.pulse("wallet_writes", AGE_MAX);
    let (wallets, commands) = WalletWriter::start(postgres, model.clone(), &limits, pulse)?;
    let mut writing = tokio::spawn(async { tokio::try_join!(rides, commands).map(drop) });
    let address = listener.local_addr().context("reading the socket's address")?;
    info!(address = %address, connection_count_max = limits.http.connection_count_max, "api started");
    process::ready();
    let watchers = Arc::new(Semaphore::new(limits.watcher_count_max));
    let totals = Paced::start(Reader(database.clone()));
    let web::Limits { body_wait, request_wait, .. } = limits.http;
    let app = App {
        database,
        writer,
        wallets,
        desk,
        model,
        body_wait,
        request_wait,
        totals,
        watchers,
        shutdown: shutdown.clone(),
    };
    let server = server(&limits, access, health.is_served());
    let mut serving = tokio::spawn(server.serve(listener, Site::new(app), shutdown.clone()));
    let served = tokio::select! {
        served = &mut serving => served,
        // Without the writing task every ride would be refused, so the process ends, and a supervisor starts it again. The
        // task ends without an error only after the server.
        ended = &mut writing => {
            both_ended(ended)?;
            serving.await
        }
        // The server closes idle connections at once and the others after their response; `stop_at_last` bounds that.
        () = stop_at_last(&shutdown) => {
            serving.abort();
            return Ok(());
        }
    };
    served.context("the server died")?;
    if !writing.is_finished() {
        both_ended(writing.await)?;
    }
    info!("api stopped");
    Ok(())
}

/// Fails if a writing task died.
fn both_ended(ended: Result<Result<(), JoinError>, JoinError>) -> Result<()> {
    ended.and_then(|both| both).context("a writing task died")
}

/// The HTTP server: request ids on every response, and metrics if a monitor serves them.
fn server(limits: &Limits, access: Access, has_metrics: bool) -> Server {
    let cors = access.origins.map(|origins| Cors {
        origins,
        methods: CORS_METHODS,
        request_headers: CORS_REQUEST_HEADERS,
        response_headers: CORS_RESPONSE_HEADERS,
    });
    let server = Server::new(limits.http).with_request_ids().with_cors(cors);
    let server = server.with_hosts(access.hosts).with_proxies(access.proxies);
    if has_metrics { server.with_metrics(routes::route_of) } else { server }
}

/// The connections of an api's desk.
///
/// # Errors
/// They cannot be set up.
pub fn desk_pool(postgres: &tokio_postgres::Config) -> Result<Pool> {
    connect::postgres::pool(postgres, "api", DESK_LEN)
}
