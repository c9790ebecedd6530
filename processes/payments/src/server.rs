//! The server: the part of Stripe's API that rides need, with Stripe's rules for idempotency keys, and faults on demand.
//!
//! The first request with a key takes the key. If it makes a charge or a customer, both are written to the journal together
//! with the key, so every later request with the key gets the same response, also after a crash. A request that makes nothing
//! (it is wrong, or fails with 500 before the charge) gives the key back.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::from_fn;
use axum::routing::{get, post};
use common::fault::{Dice, die};
use common::shutdown::{CancellationToken, stop_at_last};
use journal::{Journal, lock};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinError;
use tracing::{debug, info};
use web::{Limits, Server};

use crate::Config;
use crate::answer::Answer;
use crate::faults::{Fault, Faults, Plan};
use crate::ledger::{ChargeObject, Entry, Known, Ledger, Made, now_ms};
use crate::paths::{CHARGES, CUSTOMERS};
use crate::request::{self, Form};

/// The longest body that is accepted, in bytes.
const BODY_LEN_MAX: usize = 64 * 1024;

/// How long the response to a charge with [`Fault::TimeOut`] is held back. Clients give up earlier.
const TIME_OUT: Duration = Duration::from_secs(60);

/// How long a request may take. Longer than [`TIME_OUT`] and the slowest [`Fault::Slow`] together.
const REQUEST_WAIT: Duration = Duration::from_secs(150);

#[derive(Clone)]
struct App {
    ledger: Arc<Mutex<Ledger>>,
    journal: Journal<Ledger>,
    faults: Arc<Mutex<Faults>>,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, on a socket that is already open; then requests in flight are finished. Charges and keys are
/// never deleted, on disk and in memory: a kilobyte each.
///
/// # Errors
/// The journal cannot be read, is in use by another process, or cannot be written any more.
pub async fn serve(listener: TcpListener, config: Config, shutdown: CancellationToken) -> Result<()> {
    let mut ledger = Ledger::new();
    let file = journal::open(&config.data, "PAYMENTS_DATA", &mut ledger)?;
    let charge_count = ledger.charges.len();
    let ledger = Arc::new(Mutex::new(ledger));
    let (journal, mut writing) = Journal::start(file, Arc::clone(&ledger));
    let dice = Dice::new("payments", &config.fault);
    let address = listener.local_addr().context("reading the socket's address")?;
    info!(
        address = %address,
        charge_count,
        fault_rate = config.fault.fault_rate,
        fault_seed = dice.seed(),
        faults = config.faults,
        "payments started"
    );
    let app = App { ledger, journal, faults: Arc::new(Mutex::new(Faults::new(dice))), shutdown: shutdown.clone() };
    let router = router(app, config.faults);
    let limits = Limits { request_wait: REQUEST_WAIT, ..Limits::default() }.within_open_files(0);
    let hosts = config.process.monitor.http_hosts.unwrap_or_default();
    let serving = Server::new(limits).with_hosts(hosts).serve(listener, router, shutdown.clone());
    tokio::select! {
        () = serving => {}
        // Without the writing task no charge can be made, so the process ends, and a supervisor starts it again.
        ended = &mut writing => return written(ended),
        () = stop_at_last(&shutdown) => return Ok(()),
    }
    // Charges whose clients have left may still be in progress.
    tokio::select! {
        ended = writing => written(ended)?,
        () = stop_at_last(&shutdown) => {}
    }
    info!("payments stopped");
    Ok(())
}

fn written(ended: Result<io::Result<()>, JoinError>) -> Result<()> {
    ended.context("the writing task died")?.context("writing the journal")
}

fn router(app: App, faults: bool) -> Router {
    let v1 = Router::new()
        .route(CUSTOMERS, post(create_customer))
        .route(CHARGES, get(list_charges).post(create_charge))
        .route(&format!("{CHARGES}/{{id}}"), get(show_charge))
        .layer(from_fn(request::authorize));
    let other = Router::new().route("/healthz", get(async || Answer::ok(&json!({ "status": "ok" }))));
    let other = if faults {
        other.route("/_faults", post(plan_faults)).route("/_forget-keys", post(forget_keys))
    } else {
        other
    };
    v1.merge(other)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_path)
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(app)
}

type Body = Result<Bytes, BytesRejection>;

async fn create_customer(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Answer, Answer> {
    create(app, "customers", request::read_customer, &headers, body).await
}

async fn create_charge(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Answer, Answer> {
    create(app, "charges", request::read_charge, &headers, body).await
}

async fn create(
    app: App,
    what: &str,
    read: fn(Form, &Ledger) -> Result<Made, Answer>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Answer, Answer> {
    request::plain(headers)?;
    let (form, key) = (request::form(&request::body(body)?)?, request::key(headers)?);
    let fields = serde_urlencoded::to_string(&form).map_err(|_| Answer::internal())?;
    let request = format!("{what}?{fields}");
    let made = {
        let mut ledger = lock(&app.ledger);
        let made = read(form, &ledger)?;
        if let Some(answer) = take_key(&mut ledger, key.as_deref(), &request)? {
            return Ok(answer);
        }
        made
    };
    let (fault, wait) = match made {
        Made::Charge(_) => app.faults.lock().unwrap_or_else(PoisonError::into_inner).draw(),
        Made::Customer(_) => (None, Duration::ZERO),
    };
    if let Some(fault) = fault {
        info!(?fault, key, "fault injected");
    }
    let shutdown = app.shutdown.clone();
    // In a task of its own: if the client leaves, this future is dropped, and the key would stay taken.
    let carried_out = tokio::spawn(carry_out(app, Entry { key, request, made }, fault, wait));
    let answer = carried_out.await.map_err(|_| Answer::internal())??;
    let outcome = if answer.is_good() { "made" } else { "declined" };
    monitor::counter!("rocket_rides_charges_total", "outcome" => outcome).increment(1);
    match fault {
        Some(Fault::ErrorAfter) => Err(Answer::internal()),
        Some(Fault::TimeOut) => {
            let _ = tokio::time::timeout(TIME_OUT, shutdown.cancelled()).await;
            Err(Answer::internal())
        }
        _ => Ok(answer),
    }
}

/// Takes the key for this request, or returns the response of the first request with this key.
fn take_key(ledger: &mut Ledger, key: Option<&str>, request: &str) -> Result<Option<Answer>, Answer> {
    let Some(key) = key else { return Ok(None) };
    match ledger.keys.get(key) {
        None => {
            ledger.keys.insert(key.to_owned(), Known::InHand);
            Ok(None)
        }
        Some(Known::Done { request: first, made }) if first == request => Ok(Some(Answer::of(made).again())),
        Some(Known::Done { .. }) => {
            let message = "Keys for idempotent requests can only be used with the same parameters they were first used \
                           with. Try using a key other than this one if you meant to execute a different request.";
            Err(Answer::error(StatusCode::BAD_REQUEST, "idempotency_error", None, message))
        }
        Some(Known::InHand) => {
            let message = "There is currently another in-progress request using this idempotent key.";
            Err(Answer::error(StatusCode::CONFLICT, "idempotency_error", "idempotency_key_in_use", message))
        }
    }
}

async fn carry_out(app: App, mut entry: Entry, fault: Option<Fault>, wait: Duration) -> Result<Answer, Answer> {
    if let Some(refusal) = fault.and_then(Fault::refusal) {
        if let Some(key) = &entry.key {
            lock(&app.ledger).keys.remove(key);
        }
        return Err(refusal);
    }
    match (fault, &mut entry.made) {
        (Some(Fault::Slow), _) => tokio::time::sleep(wait).await,
        (Some(Fault::Pending | Fault::PendingThenDeclined), Made::Charge(charge)) => {
            charge.settles_at_ms = Some(now_ms() + wait.as_millis() as u64);
            charge.declined |= fault == Some(Fault::PendingThenDeclined);
        }
        _ => {}
    }
    let answer = Answer::of(&entry.made);
    debug!(request = entry.request, key = entry.key, "carried out");
    app.journal.append(entry).await.ok_or_else(Answer::internal)?;
    if fault == Some(Fault::DieAfterCharge) {
        die();
    }
    Ok(answer)
}

async fn show_charge(State(app): State<App>, Path(id): Path<String>) -> Result<Answer, Answer> {
    let ledger = lock(&app.ledger);
    let place = ledger.places.get(&id).ok_or_else(|| no_such_charge(StatusCode::NOT_FOUND, &id))?;
    Ok(Answer::ok(&ledger.charges[*place].to_json()))
}

/// Lists at most `limit` charges that are older than `starting_after`, the newest first; of one customer, and those after a
/// time, if the query says so.
async fn list_charges(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Answer, Answer> {
    let mut query = request::form(query.unwrap_or_default().as_bytes())?;
    let limit = match query.remove("limit").map(|limit| limit.parse()) {
        None => 10,
        Some(Ok(limit @ 1..=100)) => limit,
        Some(_) => return Err(Answer::invalid("parameter_invalid_integer", "A limit is between 1 and 100.")),
    };
    let since = query.remove("created[gt]").map_or(Ok(0), |since| since.parse());
    let since: u64 = since.map_err(|_| Answer::invalid("parameter_invalid_integer", "A time is a whole number."))?;
    let customer = query.remove("customer");
    let ledger = lock(&app.ledger);
    let end = match query.remove("starting_after") {
        None => ledger.charges.len(),
        Some(id) => *ledger.places.get(&id).ok_or_else(|| no_such_charge(StatusCode::BAD_REQUEST, &id))?,
    };
    let is_theirs = |charge: &&ChargeObject| customer.as_ref().is_none_or(|customer| *customer == charge.customer);
    let newer = ledger.charges[..end].iter().rev().take_while(|charge| charge.created > since);
    let mut wanted = newer.filter(is_theirs);
    let data: Vec<Value> = wanted.by_ref().take(limit).map(|charge| charge.to_json()).collect();
    let has_more = wanted.next().is_some();
    Ok(Answer::ok(&json!({ "object": "list", "url": CHARGES, "has_more": has_more, "data": data })))
}

/// Faults are ordered by a person on this machine, and not by a page of another site.
fn require_order(headers: &HeaderMap) -> Result<(), Answer> {
    if monitor::is_order(headers) {
        return Ok(());
    }
    let message = "Give the header x-fault-order, and ask for localhost.";
    Err(Answer::error(StatusCode::FORBIDDEN, "invalid_request_error", None, message))
}

async fn plan_faults(State(app): State<App>, headers: HeaderMap, body: Body) -> Result<Answer, Answer> {
    require_order(&headers)?;
    let body = request::body(body)?;
    let plan: Result<Plan, String> = match body.first() {
        Some(b'{') => serde_json::from_slice(&body).map_err(|error| error.to_string()),
        _ => serde_urlencoded::from_bytes(&body).map_err(|error| error.to_string()),
    };
    let plan = plan.map_err(|error| Answer::invalid(None, &error))?;
    app.faults.lock().unwrap_or_else(PoisonError::into_inner).plan(plan);
    Ok(Answer::ok(&json!(plan)))
}

/// Forgets every key that is not in use, as Stripe does after a day. The journal still has them.
async fn forget_keys(State(app): State<App>, headers: HeaderMap) -> Result<Answer, Answer> {
    require_order(&headers)?;
    lock(&app.ledger).keys.retain(|_, known| matches!(known, Known::InHand));
    Ok(Answer::ok(&json!({})))
}

fn no_such_charge(status: StatusCode, id: &str) -> Answer {
    Answer::error(status, "invalid_request_error", "resource_missing", &format!("No such charge: '{id}'"))
}

async fn no_such_path(method: Method, uri: Uri) -> Answer {
    let message = format!("Unrecognized request URL ({method}: {}).", uri.path());
    Answer::error(StatusCode::NOT_FOUND, "invalid_request_error", None, &message)
}
