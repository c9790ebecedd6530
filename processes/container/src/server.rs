//! The container over HTTP: `POST /{resource}`, `GET /{resource}/{subject}`, `GET /units/{uow}`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use deadpool_postgres::ClientWrapper as Client;
use tokio::time::{Instant, sleep, timeout};
use web::ErrorResponse;

use crate::current::current;
use crate::declaration::{Declaration, Kind, Resource};
use crate::envelope::Head;
use crate::fan_out::End;
use crate::hand::Hand;
use crate::incoming::{Incoming, receive, refusal};
use crate::units::{self, Accepted, NewUnit, Shown, State as UnitState};

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
    Router::new()
        .route("/units/{uow}", get(show_unit))
        .route("/{resource}", axum::routing::post(post))
        .route("/{resource}/{subject}", get(read))
        .fallback(async || refusal(404, "path_unknown", "There is nothing here."))
        .with_state(app)
}

async fn post(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ErrorResponse> {
    let deadline = Instant::now() + app.reply_wait;
    let resource = app.resource(&name)?;
    let idempotency_key = key_of(&headers)?;
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned);
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
    fn resource(&self, name: &str) -> Result<&Resource, ErrorResponse> {
        let resource = self.declaration.resources.iter().find(|resource| resource.name == name);
        resource.ok_or_else(|| refusal(404, "path_unknown", "There is no such resource."))
    }

    async fn accept(&self, unit: NewUnit, incoming: Incoming, deadline: Instant) -> Result<Response, ErrorResponse> {
        let client = self.hand.client().await.map_err(|_| unavailable())?;
        // After an error the file stays: the unit may have been made. If it was not, the file is taken up later.
        let accepted = units::accept(&client, &unit).await.map_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "whether a unit was accepted is unknown");
            unavailable()
        })?;
        drop(client);
        match accepted {
            Accepted::KeyMismatch => {
                self.hand.discard(&unit.spool_name).await;
                Err(refusal(409, "key_mismatch", "The Idempotency-Key belongs to another request. Use a new key."))
            }
            Accepted::Known { uow, has_this_file, .. } => {
                if !has_this_file {
                    self.hand.discard(&unit.spool_name).await;
                }
                self.follow(uow, deadline).await
            }
            Accepted::New { uow, .. } if unit.waits => {
                let mut response = reply(StatusCode::SERVICE_UNAVAILABLE, &self.shown(uow).await?);
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
                Ok(response)
            }
            Accepted::New { uow, lease } => {
                let ended = self.hand.start(unit, incoming, uow, lease);
                let wait = deadline.saturating_duration_since(Instant::now());
                match timeout(wait, ended).await {
                    Ok(Ok(End::Committed | End::Failed(_))) => Ok(reply_of(&self.shown(uow).await?)),
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

async fn show_unit(State(app): State<App>, Path(uow): Path<String>) -> Result<Response, ErrorResponse> {
    let uow = uow.parse().map_err(|_| refusal(404, "unit_unknown", "The number of a unit is an integer."))?;
    Ok(Json(app.shown(uow).await?).into_response())
}

async fn read(
    State(app): State<App>,
    Path((name, subject)): Path<(String, String)>,
) -> Result<Response, ErrorResponse> {
    let resource = app.resource(&name)?;
    let reader = resource.reader.as_ref().and_then(|reader| app.declaration.destinations.get(reader));
    let Some(Kind::Rows { table }) = reader.map(|reader| &reader.kind) else {
        return Err(refusal(404, "path_unknown", "This resource has no reader."));
    };
    let client = app.hand.client().await.map_err(|_| unavailable())?;
    let client: &Client = &client;
    let found = current(client, table, &subject).await.map_err(|_| unavailable())?;
    let found = found.ok_or_else(|| refusal(404, "subject_unknown", "Nothing is stored about this."))?;
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

fn key_of(headers: &HeaderMap) -> Result<Option<String>, ErrorResponse> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let is_sane = |key: &str| (1..=KEY_LEN_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let key = value.to_str().ok().filter(|key| is_sane(key)).map(str::to_owned);
    let sentence = format!("An Idempotency-Key has 1 to {KEY_LEN_MAX} visible characters.");
    key.map(Some).ok_or_else(|| refusal(400, "key_malformed", sentence))
}

fn unavailable() -> ErrorResponse {
    ErrorResponse {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "unavailable",
        error: "Postgres is away. Please retry with the same Idempotency-Key.".into(),
        is_temporary: true,
    }
}
