//! The page over HTTP: its files, and what happens as server-sent events.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use common::shutdown::CancellationToken;
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tracing::info;

use crate::assets::ASSETS;
use crate::faults::{FaultDesk, Order};
use crate::sample::Sample;
use crate::sampler::History;

/// Whoever comes when so many watch already is told to come later.
const VIEWER_COUNT_MAX: usize = 100;

/// The header in which the page shows its token with an order.
const TOKEN_HEADER: &str = "x-fault-token";

/// Scripts, styles and connections from here only; no frame around it, no form to elsewhere. The plots set styles by script,
/// which needs no leave.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                                       connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What handlers use.
#[derive(Clone)]
pub(crate) struct App {
    pub samples: watch::Receiver<Option<Arc<Sample>>>,
    pub history: History,
    /// `None`: no faults are injected by buttons.
    pub desk: Option<FaultDesk>,
    /// The host names that are answered to; `None`: any.
    pub hosts: Option<Vec<String>>,
    pub shutdown: CancellationToken,
}

/// The names of a server that only this machine can reach. A page that answered to any name could be read, and its buttons
/// pressed, by whoever makes a name of his own point here.
pub(crate) fn local_hosts(bind: IpAddr) -> Option<Vec<String>> {
    bind.is_loopback().then(|| vec!["localhost".to_owned(), "[::1]".to_owned(), bind.to_string()])
}

pub(crate) fn router(app: App) -> Router {
    let places = Arc::new(Semaphore::new(VIEWER_COUNT_MAX));
    let mut router = Router::new()
        .route("/events", get(async move |State(app): State<App>| events(app, &places)))
        .route("/state", get(state))
        .route("/faults", get(faults).post(order))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT));
    for (path, content_type, content) in ASSETS {
        router = router.route(path, get(async move || ([(header::CONTENT_TYPE, content_type)], content)));
    }
    let guarded = middleware::from_fn_with_state(app.clone(), guard);
    router
        .fallback(async || (StatusCode::NOT_FOUND, "There is nothing here. The page is at /\n"))
        .layer(guarded)
        .with_state(app)
}

/// Looks at the host name before, and sets headers for browsers after.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    if app.hosts.is_some_and(|hosts| !hosts.iter().any(|known| known.eq_ignore_ascii_case(name))) {
        return (StatusCode::FORBIDDEN, "This page is for this machine only: open it as localhost.\n").into_response();
    }
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// First the points of the last minutes, then a sample whenever there is one.
fn events(app: App, places: &Arc<Semaphore>) -> Response {
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        let retry = [(header::RETRY_AFTER, "10")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, "Too many people watch. Come later.\n").into_response();
    };
    let history = {
        let points = app.history.lock().unwrap_or_else(PoisonError::into_inner);
        event("history", &*points)
    };
    let mut samples = app.samples;
    // The one there is comes at once.
    samples.mark_changed();
    let live = stream::unfold(samples, async |mut samples| {
        samples.changed().await.ok()?;
        let sample = samples.borrow_and_update().clone();
        Some((sample, samples))
    });
    let live = live.filter_map(async |sample| Some(event("sample", &*sample?)));
    let events = stream::iter([history]).chain(live).map(move |event| {
        let _place = &place;
        Ok::<_, Infallible>(event)
    });
    // A stream that never ends would keep the server from stopping.
    let events = events.take_until(app.shutdown.cancelled_owned());
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))).into_response()
}

fn event(name: &str, data: &impl serde::Serialize) -> Event {
    // Numbers, texts and lists: nothing that JSON could not hold.
    Event::default().event(name).json_data(data).unwrap_or_default()
}

/// The last sample, for programs.
async fn state(State(app): State<App>) -> Response {
    match app.samples.borrow().clone() {
        Some(sample) => Json(&*sample).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "There is no sample yet.\n").into_response(),
    }
}

/// What the page needs for its buttons. No other site's page can read it.
async fn faults(State(app): State<App>) -> Response {
    match &app.desk {
        Some(desk) => Json(json!({ "token": desk.token })).into_response(),
        None => Json(json!({ "token": null })).into_response(),
    }
}

async fn order(State(app): State<App>, headers: HeaderMap, order: Result<Json<Order>, JsonRejection>) -> Response {
    let refused = |status: StatusCode, why: &str| (status, Json(json!({ "error": why }))).into_response();
    let Some(desk) = &app.desk else {
        return refused(StatusCode::NOT_FOUND, "No faults are injected here: FAULT_ORDERS is not set.");
    };
    if headers.get(TOKEN_HEADER).is_none_or(|token| token.as_bytes() != desk.token.as_bytes()) {
        return refused(StatusCode::FORBIDDEN, "This page is of an earlier server: load it again.");
    }
    let Ok(Json(order)) = order else {
        return refused(StatusCode::UNPROCESSABLE_ENTITY, "There is no such fault.");
    };
    let processes = app.samples.borrow().as_ref().map(|sample| sample.processes.clone()).unwrap_or_default();
    match desk.carry_out(&order, &processes).await {
        Ok(done) => {
            info!(?order, "fault ordered");
            Json(json!({ "done": done })).into_response()
        }
        Err(error) => refused(StatusCode::CONFLICT, &format!("{error:#}")),
    }
}
