//! The paths of the monitor.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use common::shutdown::CancellationToken;
use common::stay_down::StayDown;
use metrics::{Unit, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tracing::info;
use web::{Limits, Server};

use crate::MonitorArgs;
use crate::declare::declare_counter;
use crate::health::Health;
use crate::orders::is_order;

/// The buckets of every metric in seconds: from a quick commit to the longest wait of a client.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0];

/// The buckets of every metric that is the size of a batch.
const SIZES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// How often measurements are put into their buckets. Without this they would pile up until the next scrape.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Connections to the monitor: scrapers, probes and the dashboard.
const CONNECTION_COUNT_MAX: usize = 256;

/// If a port is set: records metrics from now on, and serves them and the process's health.
///
/// # Errors
/// The port is taken.
pub async fn start(args: &MonitorArgs) -> Result<Health> {
    let Some(address) = args.address() else { return Ok(Health::default()) };
    if args.fault_orders && !address.ip().is_loopback() {
        let why = "faults could be ordered from other machines: set FAULT_ORDERS=false, or take away MONITOR_BIND";
        return Err(StayDown(anyhow!(why)).into());
    }
    let health = Health::served(args.fault_orders);
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listening on {address}: set MONITOR_PORT to another"))?;
    let address = listener.local_addr().context("reading the socket's address")?;
    let app = App { metrics: record()?, health: health.clone() };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .route("/fault", post(order))
        .with_state(app);
    info!(%address, "monitor started");
    let limits = Limits { connection_count_max: CONNECTION_COUNT_MAX, ..Limits::default() };
    let server = Server::new(limits).with_hosts(args.http_hosts.clone().unwrap_or_default());
    // This token is never cancelled: the monitor responds until the process ends.
    tokio::spawn(server.serve(listener, router, CancellationToken::new()));
    Ok(health)
}

#[derive(Clone)]
struct App {
    metrics: PrometheusHandle,
    health: Health,
}

/// Installs the recorder. A process has at most one.
fn record() -> Result<PrometheusHandle> {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = RECORDER.get() {
        return Ok(handle.clone());
    }
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZES));
    let handle = builder.context("choosing buckets")?.install_recorder().context("installing the recorder")?;
    describe_gauge!("rocket_rides_ready", "1 while every loop of the process makes progress, else 0");
    declare_counter("rocket_rides_retries_total", "What failed and was tried again, after a pause", &[]);
    describe_histogram!(
        "rocket_rides_pool_wait_seconds",
        Unit::Seconds,
        "How long was waited for a connection of the pool to Postgres"
    );
    describe_gauge!("rocket_rides_start_time_seconds", Unit::Seconds, "When the process started, since 1970");
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    gauge!("rocket_rides_start_time_seconds").set(since_1970.as_secs_f64());
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            upkeep.run_upkeep();
        }
    });
    Ok(RECORDER.get_or_init(|| handle).clone())
}

async fn metrics(State(app): State<App>) -> impl IntoResponse {
    gauge!("rocket_rides_ready").set(f64::from(u8::from(app.health.is_ready())));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render())
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    /// The process's id, for an operator who wants to stop or kill it.
    pid: u32,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: &'static str,
    ready: bool,
    /// Seconds since the last success; null: there was none yet.
    age_s: Option<f64>,
}

async fn ready(State(app): State<App>) -> impl IntoResponse {
    let part = |pulse: &crate::Pulse| Part {
        name: pulse.name(),
        ready: pulse.is_fresh(),
        age_s: pulse.age().map(|age| age.as_secs_f64()),
    };
    let parts: Vec<Part> = app.health.pulses().iter().map(part).collect();
    let ready = parts.iter().all(|part| part.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Readiness { ready, pid: std::process::id(), parts }))
}

#[derive(Deserialize)]
struct Place {
    /// The name of the place that the fault strikes. Empty: the process has one place only.
    #[serde(default)]
    at: String,
}

/// Accepts an order to inject a fault: into the next batch, or at a named place.
async fn order(State(app): State<App>, Query(place): Query<Place>, headers: HeaderMap) -> (StatusCode, String) {
    let Some(book) = app.health.order_book() else {
        return (StatusCode::NOT_FOUND, "no orders are taken here: FAULT_ORDERS is not set\n".to_owned());
    };
    if !is_order(&headers) {
        return (StatusCode::FORBIDDEN, "give the header x-fault-order, and ask for localhost\n".to_owned());
    }
    let Some(orders) = book.get(&place.at) else {
        let names: Vec<&str> = book.keys().map(String::as_str).filter(|name| !name.is_empty()).collect();
        let text = match names[..] {
            [] => "no places are told apart here: leave out ?at=\n".to_owned(),
            _ => format!("give ?at= with one of {}\n", names.join(", ")),
        };
        return (StatusCode::UNPROCESSABLE_ENTITY, text);
    };
    if orders.place() {
        (StatusCode::ACCEPTED, "the next batch will suffer\n".to_owned())
    } else {
        (StatusCode::TOO_MANY_REQUESTS, "too many orders are open: wait for the next batches\n".to_owned())
    }
}
