//! Takes rides over HTTP. A ride and the log record that tells of it are written in one Postgres transaction: both are
//! there, or neither (I1). Requests that arrive together are committed together.

mod body;
mod bookings;
mod compression;
mod connection;
mod cors;
mod database;
mod description;
mod distance;
mod docs;
mod error;
mod hint;
mod limits;
mod metrics;
mod request_id;
mod rides;
mod serve;
mod totals;
mod trace;
mod writer;

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::{Request, State};
use axum::middleware::from_fn;
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use booking::{BookingArgs, Desk, DiePoint};
use clap::Parser;
use common::shutdown::{CancellationToken, stop_at_last};
use connect::PostgresArgs;
use deadpool_postgres::Pool;
use monitor::Health;
use process::ProcessArgs;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tracing::info;
use utoipa::ToSchema;

pub use cors::Origins;
use database::Database;
use description::ReadErrors;
pub use distance::parse_distance;
pub use error::Error;
pub use limits::Limits;
use request_id::RequestId;
pub use rides::Ride;
pub use totals::{ConsumerTotal, Sum, Totals};
use writer::Writer;

/// Connections for booked rides. A booking has one in hand but for the time in which the processor charges.
const DESK_LEN: usize = 16;

/// An api that has waited so long for a commit, or for any answer of Postgres, is not ready.
const AGE_MAX: Duration = Duration::from_secs(5);

/// Takes rides over HTTP and stages their log records.
#[derive(Debug, Clone, Parser)]
#[command(name = "api", version)]
pub struct Config {
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

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

    /// Booked rides. Without a key of the payment processor only guests are taken.
    #[command(flatten)]
    pub booking: BookingArgs,

    /// For chaos and tests: die by SIGKILL in the first booking that reaches this point.
    #[arg(long, hide = true)]
    pub die_at: Option<DiePoint>,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// What handlers use.
#[derive(Clone)]
struct App {
    database: Database,
    writer: Writer,
    /// `None`: no payment processor is set up.
    desk: Option<Desk>,
    /// `None`: no other origin's pages may use this api.
    origins: Option<Arc<Origins>>,
    body_wait: Duration,
    /// Whether anybody looks at what is counted.
    is_watched: bool,
}

/// The runtime of the api. Half of the processors are left to Postgres, which does as much for each request. On two processors,
/// two threads spent more on a request than one, most of it on waking each other.
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
/// The port is taken. Postgres being away is no error: requests are answered with 503 until it is back.
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
    health.ask_postgres(postgres, health.pulse("postgres", AGE_MAX), monitor::anything);
    let limits = Limits::default().within_open_files();
    serve(postgres, desk, config.api_cors_origins, listener, limits, &health, shutdown).await
}

/// As [`run`], on a socket that is open already, and within the given limits. Rides are booked if there is a desk. `health`
/// learns whether rides can be written.
///
/// # Errors
/// As [`run`].
pub async fn serve(
    postgres: &tokio_postgres::Config,
    desk: Option<Desk>,
    origins: Option<Origins>,
    listener: TcpListener,
    limits: Limits,
    health: &Health,
    shutdown: CancellationToken,
) -> Result<()> {
    let database = Database::new(postgres, limits.answer_wait)?;
    let (writer, mut writing) = Writer::start(database.clone(), &limits, health.pulse("writes", AGE_MAX));
    let address = listener.local_addr().context("reading the socket's address")?;
    info!(address = %address, connection_count_max = limits.connection_count_max, "api started");
    process::ready();
    let origins = origins.map(Arc::new);
    let app = App { database, writer, desk, origins, body_wait: limits.body_wait, is_watched: health.is_served() };
    let mut serving = tokio::spawn(serve::serve_until(listener, app, limits, shutdown.clone()));
    let served = tokio::select! {
        served = &mut serving => served,
        // Without it every request would be refused: better to die, and be started again.
        // It ends by itself only when the server is gone.
        ended = &mut writing => {
            ended.context("the writing task died")?;
            serving.await
        }
        // From now on connections without a request are closed, and the others are answered first.
        () = stop_at_last(&shutdown) => {
            serving.abort();
            return Ok(());
        }
    };
    served.context("the server died")?;
    if !writing.is_finished() {
        writing.await.context("the writing task died")?;
    }
    info!("api stopped");
    Ok(())
}

/// The connections of an api's desk.
///
/// # Errors
/// They cannot be set up.
pub fn desk_pool(postgres: &tokio_postgres::Config) -> Result<Pool> {
    connect::postgres::pool(postgres, "api", DESK_LEN)
}

/// All but the way of `POST /rides`, which the server goes by itself: it is what nearly all requests are, and routing is
/// a part of its cost that can be felt.
fn router(app: App) -> Router {
    let described = described().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    described
        .merge(docs::router())
        .method_not_allowed_fallback(async || Error::WrongMethod)
        .fallback(async || Error::NoSuchPath)
        .layer(from_fn(compression::compress))
        .with_state(app)
}

/// The paths of which the description tells. The method of `POST /rides` is here all the same, for the `Allow` header.
fn described() -> [(&'static str, MethodRouter<App>); 4] {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let create = async move |State(app): State<App>, request: Request| {
        let (head, body) = request.into_parts();
        rides::create(&app, nobody, &RequestId::of(&head.headers), &head.headers, body).await
    };
    [
        ("/rides", get(rides::list).post(create)),
        ("/rides/{id}", get(rides::show)),
        ("/totals", get(totals::show)),
        ("/healthz", get(health)),
    ]
}

/// What `GET /healthz` answers.
#[derive(Serialize, ToSchema)]
struct Ready {
    /// `ok`.
    status: &'static str,
}

/// 200 when rides can be taken, 503 when they cannot.
#[utoipa::path(
    get, path = "/healthz", operation_id = "check_health", tag = "state",
    responses((status = 200, description = "Ready", body = Ready), ReadErrors)
)]
async fn health(State(app): State<App>) -> Result<Json<Ready>, Error> {
    app.database.read("-- api::health\nSELECT", vec![]).await?;
    Ok(Json(Ready { status: "ok" }))
}
