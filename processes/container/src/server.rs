//! The container over HTTP: `POST /{resource}`, `GET /{resource}/{subject}`, `GET /units/{uow}`, `GET /openapi.json`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use deadpool_postgres::ClientWrapper as Client;
use tokio::time::{Instant, sleep, timeout};
use traces::TraceParent;
use web::ErrorResponse;

use crate::begin::Begun;
use crate::current::current;
use crate::declaration::{Declaration, Kind, Resource};
use crate::envelope::Head;
use crate::fan_out::End;
use crate::hand::Hand;
use crate::incoming::{Incoming, receive, refusal};
use crate::openapi;
use crate::units::{self, NewUnit, Shown, State as UnitState, Unwritten};

/// How often to look at a unit that another worker has.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The longest key of a client, as in the api.
const KEY_LEN_MAX: usize = 255;

/// The state that handlers use.
#[derive(Clone)]
pub(crate) struct App {
    pub declaration: Arc<Declaration>,
    pub hand: Hand,
    /// How long a response waits for the verdict.
    pub reply_wait: Duration,
}

pub(crate) fn router(app: App) -> Router {
    let description = openapi::describe(&app.declaration);
    let mut router =
        Router::new().route(openapi::PATH, get(async || Json(description))).route("/units/{uow}", get(show_unit));
    for resource in &app.declaration.resources {
        router = router.route(&format!("/{}", resource.name), axum::routing::post(post));
        if resource.reader.is_some() {
            router = router.route(&format!("/{}/{{subject}}", resource.name), get(read));
        }
    }
    router
        .method_not_allowed_fallback(async || {
            refusal(405, "method_not_allowed", "This path has other methods: see Allow.")
        })
        .fallback(async || path_unknown())
        .layer(from_fn(refuse_query))
        .with_state(app)
}

fn path_unknown() -> ErrorResponse {
    refusal(404, "path_unknown", "There is nothing here.")
}

/// No path has parameters. One that was ignored would pass for one that was obeyed.
async fn refuse_query(request: Request, next: Next) -> Response {
    if request.uri().query().is_some_and(|query| !query.is_empty()) {
        return refusal(400, "parameter_unknown", "No path has parameters in its query: leave the ? out.")
            .into_response();
    }
    next.run(request).await
}

async fn post(State(app): State<App>, uri: Uri, headers: HeaderMap, body: Body) -> Result<Response, ErrorResponse> {
    let deadline = Instant::now() + app.reply_wait;
    let resource = app.resource(&uri)?;
    let idempotency_key = key_of(&headers)?;
    let traceparent = trace_of(&headers);
    let head = Head {
        resource: resource.name.clone(),
        document: resource.document.clone(),
        idempotency_key: idempotency_key.clone(),
        traceparent: traceparent.clone(),
        received_at: jiff::Timestamp::now(),
    };
    let incoming = receive(&app.hand.spool, resource, head, &headers, body).await?;
    let waits = app.hand.fan_out.is_any_open(&resource.destinations);
    let unit = NewUnit {
        key: uuid::Uuid::new_v4().to_string(),
        resource: resource.name.clone(),
        subject: incoming.subject.clone(),
        destinations: resource.destinations.clone(),
        spool_id: app.hand.spool.id().to_string(),
        spool_name: incoming.spooled.name.clone(),
        idempotency_key,
        content_hash: incoming.spooled.hash.to_vec(),
        traceparent,
        waits,
    };
    app.accept(unit, incoming, deadline).await
}

impl App {
    /// The resource of a path, which begins with its name.
    fn resource(&self, uri: &Uri) -> Result<&Resource, ErrorResponse> {
        let name = uri.path().split('/').nth(1).unwrap_or_default();
        self.declaration.resources.iter().find(|resource| resource.name == name).ok_or_else(path_unknown)
    }

    async fn accept(&self, unit: NewUnit, incoming: Incoming, deadline: Instant) -> Result<Response, ErrorResponse> {
        let destinations = unit.destinations.clone();
        match self.hand.begin(unit, incoming).await.map_err(unwritten)? {
            Begun::KeyMismatch => {
                Err(refusal(409, "key_mismatch", "The Idempotency-Key belongs to another request. Use a new key."))
            }
            Begun::Known { uow } => self.follow(uow, deadline).await,
            Begun::Waits { uow } => {
                let mut response = reply(StatusCode::SERVICE_UNAVAILABLE, &Shown::queued(uow, &destinations));
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
                Ok(response)
            }
            Begun::Driven { uow, ended } => {
                let wait = deadline.saturating_duration_since(Instant::now());
                match timeout(wait, ended).await {
                    Ok(Ok(End::Committed(parts))) => Ok(reply_of(&Shown::committed(uow, parts))),
                    Ok(Ok(End::Failed(_))) => Ok(reply_of(&self.shown(uow).await?)),
                    // Not ended in time, or another worker goes on with it.
                    _ => self.follow(uow, deadline).await,
                }
            }
        }
    }

    /// Looks at a unit until its newest attempt has ended or the time is up.
    async fn follow(&self, uow: i64, deadline: Instant) -> Result<Response, ErrorResponse> {
        loop {
            let shown = self.shown(uow).await?;
            let is_open = matches!(shown.state.as_str(), "queued" | "fanned_out" | "rolling_back");
            if !is_open || Instant::now() >= deadline {
                return Ok(reply_of(&shown));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn shown(&self, uow: i64) -> Result<Shown, ErrorResponse> {
        let client = self.hand.client().await.map_err(|_| unavailable())?;
        let shown = units::show(&client, uow).await.map_err(|_| unavailable())?;
        shown.ok_or_else(|| refusal(404, "unit_unknown", "There is no unit with this number."))
    }
}

async fn show_unit(
    State(app): State<App>,
    uow: Result<Path<String>, PathRejection>,
) -> Result<Response, ErrorResponse> {
    let uow = path(uow)?.parse().map_err(|_| refusal(404, "unit_unknown", "The number of a unit is an integer."))?;
    Ok(Json(app.shown(uow).await?).into_response())
}

async fn read(
    State(app): State<App>,
    uri: Uri,
    subject: Result<Path<String>, PathRejection>,
) -> Result<Response, ErrorResponse> {
    let (resource, subject) = (app.resource(&uri)?, path(subject)?);
    let reader = resource.reader.as_ref().and_then(|reader| app.declaration.destinations.get(reader));
    let Some(Kind::Rows { table }) = reader.map(|reader| &reader.kind) else {
        return Err(refusal(404, "path_unknown", "This resource has no reader."));
    };
    let unknown = || refusal(404, "subject_unknown", "Nothing is stored about this.");
    if subject.contains('\0') {
        // Postgres takes no text with a NUL.
        return Err(unknown());
    }
    let client = app.hand.client().await.map_err(|_| unavailable())?;
    let client: &Client = &client;
    let found = current(client, table, &subject).await.map_err(|_| unavailable())?;
    let found = found.ok_or_else(unknown)?;
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((headers, found.data).into_response())
}

/// 200, 4xx or 5xx after a verdict; 202 before it.
fn reply_of(shown: &Shown) -> Response {
    let status = match shown.state.parse() {
        Ok(UnitState::Committed) => StatusCode::OK,
        Ok(UnitState::Rejected | UnitState::FailQueued | UnitState::Dead | UnitState::Dropped) => {
            let status = shown.status.and_then(|status| StatusCode::from_u16(status as u16).ok());
            status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
        }
        _ => StatusCode::ACCEPTED,
    };
    reply(status, shown)
}

fn reply(status: StatusCode, shown: &Shown) -> Response {
    let location = HeaderValue::from_str(&format!("/units/{}", shown.uow));
    let mut response = (status, Json(shown)).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The parameters of a path.
fn path<T>(parameters: Result<Path<T>, PathRejection>) -> Result<T, ErrorResponse> {
    let Path(parameters) = parameters.map_err(|_| refusal(400, "path_malformed", "The path is no UTF-8."))?;
    Ok(parameters)
}

fn key_of(headers: &HeaderMap) -> Result<Option<String>, ErrorResponse> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(refusal(400, "key_malformed", "The request has two Idempotency-Keys: send one."));
    }
    let is_sane = |key: &str| (1..=KEY_LEN_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let key = value.to_str().ok().filter(|key| is_sane(key)).map(str::to_owned);
    let sentence = format!("An Idempotency-Key has 1 to {KEY_LEN_MAX} visible characters.");
    key.map(Some).ok_or_else(|| refusal(400, "key_malformed", sentence))
}

fn unwritten(unwritten: Unwritten) -> ErrorResponse {
    match unwritten {
        Unwritten::Overloaded => ErrorResponse {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "overloaded",
            error: "Too many requests are waiting. Nothing was begun. Please retry a little later.".into(),
            is_temporary: true,
        },
        Unwritten::Refused(_) | Unwritten::Unknown(_) => unavailable(),
    }
}

/// The trace of the request. A malformed one is treated as absent: Postgres would refuse the unit.
fn trace_of(headers: &HeaderMap) -> Option<String> {
    Some(TraceParent::parse(headers.get("traceparent")?.to_str().ok()?)?.to_string())
}

fn unavailable() -> ErrorResponse {
    ErrorResponse {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "unavailable",
        error: "Postgres is away. Please retry with the same Idempotency-Key.".into(),
        is_temporary: true,
    }
}
