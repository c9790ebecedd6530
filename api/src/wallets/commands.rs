//! `POST /wallet/{id}/credit`, `…/debit` and `…/transfer`: each well-formed attempt becomes an event, accepted or rejected (W1).
//! `POST /wallets` gives an id, and writes nothing: any KSUID is a wallet.

use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use tokio::time::{Instant, timeout_at};
use traces::TraceParent;
use wallet::write::{Command, Outcome};
use wallet::{Action, WalletId};
use web::RequestInfo;

use crate::app::App;
use crate::body::Body;
use crate::client_trace::ClientSpan;
use crate::error::Error;
use crate::key::read_key;
use crate::paths::{CREDIT, DEBIT, TRANSFER, WALLETS};
use crate::wallets::answer::{Handled, Money, NewWallet, json};
use crate::wallets::described;
use crate::wallets::error::{Asked, WalletError};
use crate::wallets::request;
use crate::wallets::responses::{CommandErrors, CreateErrors, TransferErrors};
use crate::wallets::target::{NoParameters, query, wallet_of};

/// So long before the server's own deadline for a request a command is given up.
const DEADLINE_MARGIN: Duration = Duration::from_millis(250);

/// The response has it if it is that of an earlier request with the same key.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A new wallet's id. Nothing is written: any KSUID is a wallet, with the balance 0 until it is credited.
#[utoipa::path(
    post, path = WALLETS, operation_id = "create_wallet", tag = "wallets",
    responses(CreateErrors, (
        status = 201, description = "The id of a new wallet", body = NewWallet,
        headers(("Location" = String, description = "The wallet")),
        links(
            ("wallet" = (operation_id = "show_wallet", parameters(("id" = "$response.body#/id")))),
            ("credit" = (operation_id = "credit_wallet", parameters(("id" = "$response.body#/id"))))
        )
    ))
)]
pub(crate) async fn create_wallet(head: Parts) -> Response {
    if let Err(error) = query::<NoParameters>(&head) {
        return Asked::of(&head).respond(&error);
    }
    let wallet = WalletId::new();
    let mut response = json(StatusCode::CREATED, &NewWallet { id: wallet.to_string() });
    // A KSUID has letters and digits only.
    if let Ok(location) = HeaderValue::try_from(format!("/wallet/{wallet}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Puts money into a wallet.
///
/// The response is sent after the event is durable. Send an `Idempotency-Key` to be able to retry: the same key and body get
/// the same response, and the wallet is credited once.
#[utoipa::path(
    post, path = CREDIT, operation_id = "credit_wallet", tag = "wallets",
    params(described::WalletPath, described::CommandHeaders), request_body = request::AmountBody,
    responses(
        (
            status = 200, description = "The money is in the wallet", body = Handled,
            headers(("Idempotent-Replayed" = String, description = "`true`: this was answered before"))
        ),
        CommandErrors
    )
)]
pub(crate) async fn credit_wallet<B>(app: &App, info: &RequestInfo, request: Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    command(app, info, Action::Credit, request).await
}

/// Takes money out of a wallet.
///
/// A balance never falls below 0: a debit that would cause it is rejected with 400 and the code `rejected`. The rejected
/// attempt is an event, too.
#[utoipa::path(
    post, path = DEBIT, operation_id = "debit_wallet", tag = "wallets",
    params(described::WalletPath, described::CommandHeaders), request_body = request::AmountBody,
    responses(
        (
            status = 200, description = "The money is out of the wallet", body = Handled,
            headers(("Idempotent-Replayed" = String, description = "`true`: this was answered before"))
        ),
        CommandErrors
    )
)]
pub(crate) async fn debit_wallet<B>(app: &App, info: &RequestInfo, request: Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    command(app, info, Action::Debit, request).await
}

/// Moves money from a wallet to another.
///
/// Both wallets change in one transaction, or neither does. The response shows the paying wallet, which is that of the path,
/// and the `Idempotency-Key` belongs to it.
#[utoipa::path(
    post, path = TRANSFER, operation_id = "transfer_money", tag = "wallets",
    params(described::WalletPath, described::CommandHeaders), request_body = request::TransferBody,
    responses(
        (
            status = 200, description = "The money is in the other wallet", body = Handled,
            headers(("Idempotent-Replayed" = String, description = "`true`: this was answered before"))
        ),
        TransferErrors
    )
)]
pub(crate) async fn transfer_money<B>(app: &App, info: &RequestInfo, request: Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    command(app, info, Action::Transfer, request).await
}

/// Any of the three.
async fn command<B>(app: &App, info: &RequestInfo, action: Action, request: Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let (head, body) = request.into_parts();
    let route = match action {
        Action::Credit => CREDIT,
        Action::Debit => DEBIT,
        Action::Transfer => TRANSFER,
    };
    let span = ClientSpan::begin(&head.headers, route);
    let response = match handle(app, info, span.traceparent(), action, &head, body).await {
        Ok(outcome) => respond(action, &head, &outcome),
        Err(error) => Asked::of(&head).respond(&error),
    };
    span.end(&response);
    response
}

async fn handle<B>(
    app: &App,
    info: &RequestInfo,
    traceparent: Option<TraceParent>,
    action: Action,
    head: &Parts,
    body: B,
) -> Result<Outcome, WalletError>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let deadline = Instant::now() + app.request_wait.saturating_sub(DEADLINE_MARGIN);
    let wallet = wallet_of(head.uri.path())?;
    query::<NoParameters>(head)?;
    let key = read_key(&head.headers)?;
    let body = Body::read(&head.headers, body, app.body_wait).await.map_err(WalletError::Unread)?;
    let request::Asked { amount, to } =
        request::read(wallet, action, body.json().ok_or(WalletError::UnsupportedType)?)?;
    let command = Command { wallet, action, to, amount, key, origin_ip: info.client, traceparent };
    // Later the server would respond in another shape, and would not say that the outcome is unknown.
    let written = timeout_at(deadline, app.wallets.write(command)).await;
    Ok(written.unwrap_or(Err(Error::OutcomeUnknown))?)
}

fn respond(action: Action, head: &Parts, outcome: &Outcome) -> Response {
    let mut response = match &outcome.rejection {
        Some(reason) => {
            let rejected = WalletError::Rejected { action, reason: reason.clone() };
            Asked::of(head).respond(&rejected)
        }
        None => json(
            StatusCode::OK,
            &Handled {
                success: true,
                detail: format!("handled endpoint=\"{action}\""),
                version: outcome.version,
                balance: Money(outcome.balance_minor),
                event_id: outcome.event_id.to_string(),
            },
        ),
    };
    if outcome.is_replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}
