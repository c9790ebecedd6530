//! The routes of wallets, and the fast path for those that nearly every request takes.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Extension, State};
use axum::http::Request;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use wallet::Action;
use web::RequestInfo;

use crate::app::App;
use crate::error::Error;
use crate::paths::{BALANCE, CREDIT, DEBIT, TRANSACTIONS, TRANSFER, WALLET, WALLETS};
use crate::wallets::error::{Asked, WalletError};
use crate::wallets::target::{Quick, error_of};
use crate::wallets::{commands, reads, target};

/// Every route of a wallet.
pub(crate) fn routes() -> [(&'static str, MethodRouter<App>); 7] {
    let show = async |State(app): State<App>, head: Parts| reads::show_wallet(&app, &head).await;
    let balance = async |State(app): State<App>, head: Parts| reads::show_balance(&app, &head).await;
    let transactions = async |State(app): State<App>, head: Parts| reads::list_transactions(&app, &head).await;
    let command = |action| {
        post(async move |State(app): State<App>, Extension(info): Extension<RequestInfo>, request: Request<Body>| {
            answer(&app, &info, Quick::Command(action), request).await
        })
    };
    let (reading, writing) =
        (async |head: Parts| wrong_method(&head, "GET,HEAD"), async |head: Parts| wrong_method(&head, "POST"));
    [
        (WALLETS, post(commands::create_wallet).fallback(writing)),
        (WALLET, get(show).fallback(reading)),
        (BALANCE, get(balance).fallback(reading)),
        (TRANSACTIONS, get(transactions).fallback(reading)),
        (CREDIT, command(Action::Credit).fallback(writing)),
        (DEBIT, command(Action::Debit).fallback(writing)),
        (TRANSFER, command(Action::Transfer).fallback(writing)),
    ]
}

fn wrong_method(head: &Parts, allowed: &'static str) -> Response {
    Asked::of(head).respond(&WalletError::WrongMethod { allowed })
}

/// The response to a request that is on no route of the api.
pub(crate) async fn fallback(head: Parts) -> Response {
    match error_of(&head.method, head.uri.path()) {
        Some(error) => Asked::of(&head).respond(&error),
        None => Error::NoSuchPath.into_response(),
    }
}

/// Whether a request goes straight to [`answer`], which responds as the router would.
pub(crate) fn quick<B>(request: &Request<B>) -> Option<Quick> {
    target::quick(request.method(), request.uri().path())
}

/// Responds to a request that needs no router.
pub(crate) async fn answer<B>(app: &App, info: &RequestInfo, quick: Quick, request: Request<B>) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    match quick {
        Quick::Balance => reads::show_balance(app, &request.into_parts().0).await,
        Quick::Command(Action::Credit) => commands::credit_wallet(app, info, request).await,
        Quick::Command(Action::Debit) => commands::debit_wallet(app, info, request).await,
        Quick::Command(Action::Transfer) => commands::transfer_money(app, info, request).await,
    }
}
