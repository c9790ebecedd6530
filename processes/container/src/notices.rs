//! A receiver of notices, for the demo and for tests: a small real server that a webhook tells of each store and undo.
//!
//! It keeps the register that the contract of destinations asks for, in a journal: per unit and attempt, stored or undone, which
//! only grows. A late store of an undone attempt gets 409. A change is on disk before its response is sent.
//!
//! | request | response |
//! | --- | --- |
//! | `POST /notices` | 200; 400: no notice; 401: not signed with the secret, or older than five minutes; 409: undone; 413: too large |
//! | `GET /notices?after=0&limit=100` | `{"notices":[{"unit","attempt","uow","resource","subject","state"}],"next":100}`, in the order in which the attempts were first told |

mod register;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use clap::Parser;
use common::shutdown::{CancellationToken, stop_at_last};
use journal::{Journal, lock};
use process::ProcessArgs;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinError;
use tracing::info;
use web::{ErrorResponse, Limits, Server};

use crate::webhook::{Action, Notice, Secret};
use register::{Register, State as AttemptState, Told};

/// The longest body, in bytes: a document of 64 KiB and what is around it.
const BODY_LEN_MAX: usize = 80 * 1024;

/// The most notices in one response.
const PAGE_LEN_MAX: usize = 1000;

/// Receives notices, for development and tests.
#[derive(Debug, Clone, Parser)]
#[command(name = "notices", version)]
pub struct Config {
    /// The port to listen on, at 127.0.0.1; 0 takes a free one.
    #[arg(long, env = "NOTICES_PORT", default_value_t = 5009)]
    pub notices_port: u16,

    /// The folder of the journal, in which every notice is kept.
    #[arg(long, env = "NOTICES_DATA", value_name = "FOLDER", default_value = ".data/notices")]
    pub data: PathBuf,

    /// The secret with which notices are signed: whsec_ and base64.
    #[arg(long, env = "NOTICES_SECRET", hide_env_values = true, value_parser = Secret::parse)]
    pub secret: Secret,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

#[derive(Clone)]
struct App {
    register: Arc<Mutex<Register>>,
    journal: Journal<Register>,
    secret: Secret,
}

/// Serves on the configured port until `shutdown`.
///
/// # Errors
/// The port is taken, or as [`serve`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let port = config.notices_port;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = listener.await.with_context(|| format!("listening on port {port}: set NOTICES_PORT to another"))?;
    monitor::start(&config.process.monitor).await?;
    serve(listener, config, shutdown).await
}

/// Serves until `shutdown`, on a socket that is already open; then requests in flight are finished. Attempts are never deleted,
/// on disk and in memory: some 200 bytes each.
///
/// # Errors
/// The journal cannot be read, is in use by another process, or cannot be written any more.
pub async fn serve(listener: TcpListener, config: Config, shutdown: CancellationToken) -> Result<()> {
    let mut register = Register::default();
    let file = journal::open(&config.data, "NOTICES_DATA", &mut register)?;
    let register = Arc::new(Mutex::new(register));
    let (journal, mut writing) = Journal::start(file, Arc::clone(&register));
    let address = listener.local_addr().context("reading the socket's address")?;
    info!(%address, "receiver of notices started");
    let router = Router::new()
        .route("/notices", post(take).get(show))
        .route("/healthz", get(async || Json(json!({ "status": "ok" }))))
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(App { register, journal, secret: config.secret });
    let hosts = config.process.monitor.http_hosts.unwrap_or_default();
    let limits = Limits::default().within_open_files(0);
    let serving = Server::new(limits).with_hosts(hosts).serve(listener, router, shutdown.clone());
    tokio::select! {
        () = serving => {}
        // Without the writing task no notice can be taken, so the process ends, and a supervisor starts it again.
        ended = &mut writing => return written(ended),
        () = stop_at_last(&shutdown) => return Ok(()),
    }
    tokio::select! {
        ended = writing => written(ended)?,
        () = stop_at_last(&shutdown) => {}
    }
    info!("receiver of notices stopped");
    Ok(())
}

fn written(ended: Result<std::io::Result<()>, JoinError>) -> Result<()> {
    ended.context("the writing task died")?.context("writing the journal")
}

async fn take(
    State(app): State<App>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ErrorResponse> {
    let body = body.map_err(|rejection| refused(rejection.status(), "body_unreadable", rejection.body_text()))?;
    let signed = app.secret.0.verify(&body, &headers);
    signed.map_err(|error| refused(StatusCode::UNAUTHORIZED, "signature_bad", format!("The signature: {error}.")))?;
    let (action, told) = read(&body)?;
    let known = lock(&app.register).find(&told).filter(|known| *known >= told.state);
    let state = match known {
        Some(known) => known,
        // The order of the journal decides between a store and an undo that arrive together.
        None => app.journal.append(told).await.ok_or_else(ErrorResponse::late)?,
    };
    if action == Action::Store && state == AttemptState::Undone {
        let error = "This attempt has been undone, so it is not stored any more.";
        return Err(refused(StatusCode::CONFLICT, "attempt_undone", error.to_owned()));
    }
    Ok(Json(json!({ "state": state })).into_response())
}

fn read(body: &[u8]) -> Result<(Action, Told), ErrorResponse> {
    let bad = |error: String| refused(StatusCode::BAD_REQUEST, "notice_bad", error);
    let Notice { kind, data } = serde_json::from_slice(body).map_err(|error| bad(format!("The body: {error}.")))?;
    let action = Action::of(&kind).ok_or_else(|| bad("The type ends in .store or .undo.".to_owned()))?;
    let state = match action {
        Action::Store => AttemptState::Stored,
        Action::Undo => AttemptState::Undone,
    };
    Ok((action, Told::new(data, state)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    after: usize,
    limit: Option<usize>,
}

async fn show(
    State(app): State<App>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<impl IntoResponse, ErrorResponse> {
    let Query(Page { after, limit }) =
        page.map_err(|rejection| refused(StatusCode::BAD_REQUEST, "query_bad", rejection.body_text()))?;
    let limit = limit.unwrap_or(100).min(PAGE_LEN_MAX);
    let register = lock(&app.register);
    let notices = register.page(after, limit);
    let next = after + notices.len();
    let next = (next < register.len()).then_some(next);
    Ok(Json(json!({ "notices": notices, "next": next })))
}

fn refused(status: StatusCode, code: &'static str, error: String) -> ErrorResponse {
    ErrorResponse { status, code, error: error.into(), is_temporary: false }
}
