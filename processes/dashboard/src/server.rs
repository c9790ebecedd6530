//! Serves the page: its files, and samples as server-sent events.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use common::shutdown::CancellationToken;
use futures_util::{Stream, StreamExt, stream};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tracing::info;
use wallet::WalletId;

use crate::assets::ASSETS;
use crate::faults::{FaultDesk, Order};
use crate::memory::SharedMemory;
use crate::sample::Sample;
use crate::wallets::Watchers;

/// At most this many pages receive events at a time. Further ones are told to retry later.
const VIEWER_COUNT_MAX: usize = 100;

/// The header in which the page shows its token with an order.
const TOKEN_HEADER: &str = "x-fault-token";

/// Scripts, styles and connections come from this server only; no other page can frame this one, and no form can be sent. A
/// script may set an element's style, so the plots need no exception.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                                       connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The state that handlers use.
#[derive(Clone)]
pub(crate) struct App {
    pub samples: watch::Receiver<Option<Arc<Sample>>>,
    pub memory: SharedMemory,
    /// `None`: the page has no buttons that inject faults.
    pub desk: Option<FaultDesk>,
    pub watchers: Watchers,
    pub shutdown: CancellationToken,
}

pub(crate) fn router(app: App) -> Router {
    let places = Arc::new(Semaphore::new(VIEWER_COUNT_MAX));
    let places_of_wallets = Arc::clone(&places);
    let mut router = Router::new()
        .route("/events", get(async move |State(app): State<App>| events(app, &places)))
        .route(
            "/wallets/{id}",
            get(async move |State(app), Path(id): Path<String>| wallet(app, &id, &places_of_wallets)),
        )
        .route("/state", get(state))
        .route("/faults", get(faults).post(order))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT));
    for (path, content_type, content) in ASSETS {
        router = router.route(path, get(async move || ([(header::CONTENT_TYPE, content_type)], content)));
    }
    router
        .fallback(async || (StatusCode::NOT_FOUND, "There is nothing here. The page is at /\n"))
        .layer(middleware::from_fn(secure))
        .with_state(app)
}

/// Sets security headers.
async fn secure(request: Request, next: Next) -> Response {
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

/// Sends the memory first: plots, incidents, last known figures. Then it sends each sample, after the incidents that it brought.
fn events(app: App, places: &Arc<Semaphore>) -> Response {
    let Ok(place) = Arc::clone(places).try_acquire_owned() else { return too_many() };
    let (past, change) = {
        let memory = app.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (incidents, change) = memory.incidents_after(0);
        let past = [event("history", memory.points()), event("incidents", &incidents), event("known", &memory.known())];
        (past, change)
    };
    let mut samples = app.samples;
    // The latest sample is sent at once.
    samples.mark_changed();
    let live = stream::unfold((samples, app.memory, change), async |(mut samples, memory, change)| {
        samples.changed().await.ok()?;
        let sample = samples.borrow_and_update().clone();
        let (incidents, change) = memory.lock().unwrap_or_else(PoisonError::into_inner).incidents_after(change);
        let incidents = (!incidents.is_empty()).then(|| event("incidents", &incidents));
        let sample = sample.map(|sample| event("sample", &*sample));
        Some((incidents.into_iter().chain(sample), (samples, memory, change)))
    });
    let live = live.flat_map(stream::iter);
    let events = stream::iter(past).chain(live).map(move |event| {
        let _place = &place;
        event
    });
    send(events, app.shutdown)
}

/// Sends the wallet with each sample that was taken after the page asked for it.
fn wallet(app: App, id: &str, places: &Arc<Semaphore>) -> Response {
    let id: WalletId = match id.parse() {
        Ok(id) => id,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    let Ok(place) = Arc::clone(places).try_acquire_owned() else { return too_many() };
    let (watching, samples) = (app.watchers.watch(id), app.samples);
    let live = stream::unfold((samples, watching, place), async |(mut samples, watching, place)| {
        samples.changed().await.ok()?;
        let sample = samples.borrow_and_update().clone();
        let wallet = sample.as_ref().and_then(|sample| sample.wallets.watched.get(&watching.id()));
        Some((wallet.map(|wallet| event("wallet", wallet)), (samples, watching, place)))
    });
    send(live.flat_map(stream::iter), app.shutdown)
}

fn too_many() -> Response {
    let retry = [(header::RETRY_AFTER, "10")];
    (StatusCode::SERVICE_UNAVAILABLE, retry, "Too many pages are open. Try again later.\n").into_response()
}

fn send(events: impl Stream<Item = Event> + Send + 'static, shutdown: CancellationToken) -> Response {
    // The server stops when all responses have ended, so this one must end at shutdown.
    let events = events.map(Ok::<_, Infallible>).take_until(shutdown.cancelled_owned());
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))).into_response()
}

fn event(name: &str, data: &impl serde::Serialize) -> Event {
    // Samples consist of numbers, texts and lists, which JSON can always hold.
    Event::default().event(name).json_data(data).unwrap_or_default()
}

/// The latest sample, for programs.
async fn state(State(app): State<App>) -> Response {
    match app.samples.borrow().clone() {
        Some(sample) => Json(&*sample).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "There is no sample yet.\n").into_response(),
    }
}

/// The token that the page needs for its buttons. A page of another site cannot read it, also if `HTTP_HOSTS` is `*`.
async fn faults(State(app): State<App>, headers: HeaderMap) -> Response {
    match &app.desk {
        Some(desk) if web::is_this_machine(&headers) => Json(json!({ "token": desk.token })).into_response(),
        _ => Json(json!({ "token": null })).into_response(),
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
