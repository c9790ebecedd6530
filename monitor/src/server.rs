//! The three paths.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics::{describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::info;

use crate::MonitorArgs;
use crate::health::Health;

/// The buckets of everything that is measured in seconds: from a quick commit to a client's patience.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0];

/// The buckets of everything that is counted in batches.
const SIZES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// How often measurements are put into their buckets, so that they do not pile up while nobody asks.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Records metrics from now on, and serves them and the process's health, if a port is asked for.
///
/// # Errors
/// The port is taken.
pub async fn start(args: &MonitorArgs) -> Result<Health> {
    let Some(address) = args.address() else { return Ok(Health::default()) };
    let health = Health::served();
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listening on {address}: set MONITOR_PORT to another"))?;
    let address = listener.local_addr().context("reading the socket's address")?;
    let app = App { metrics: record()?, health: health.clone() };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .with_state(app);
    info!(%address, "monitor started");
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(health)
}

#[derive(Clone)]
struct App {
    metrics: PrometheusHandle,
    health: Health,
}

/// There is one recorder in a process.
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
    let is_ready = app.health.pulses().iter().all(|pulse| pulse.is_fresh());
    gauge!("rocket_rides_ready").set(f64::from(u8::from(is_ready)));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.render())
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
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
    (status, Json(Readiness { ready, parts }))
}
