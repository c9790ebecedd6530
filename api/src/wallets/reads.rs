//! `GET /wallet/{id}`, `…/balance` and `…/transactions`: from the read model in Redis if it has what the client asks for, else
//! from Postgres. The header `Read-From` says which.

use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;
use wallet::WalletId;
use wallet::documents::{self, Head, TRANSACTION_COUNT_MAX};

use crate::app::App;
use crate::error::Error;
use crate::metrics;
use crate::paths::{BALANCE, TRANSACTIONS, WALLET};
use crate::query::whole_number;
use crate::wallet_model::Source;
use crate::wallets::answer::{self, Balance, Money, READ_FROM, Shown, Transaction, TransactionPage};
use crate::wallets::error::{Asked, WalletError};
use crate::wallets::responses::ReadErrors;
use crate::wallets::source;
use crate::wallets::target::{query, wallet_of};
use crate::wallets::{described, page};

/// The transactions of a page, unless the client asks for another number: as many as a document has, so that Redis has them.
const PAGE_LEN_DEFAULT: i64 = TRANSACTION_COUNT_MAX as i64;
/// The most transactions a page may have.
const PAGE_LEN_MAX: i64 = 1000;

/// The parameters of a wallet and of its balance.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReadQuery {
    /// The version that the response must at least have: that of a response to a command, so that a client sees its own
    /// writes.
    #[param(value_type = Option<i64>, minimum = 0)]
    min_version: Option<String>,
}

/// The parameters of its transactions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Only transactions before this version: `next_before` of the page before.
    #[param(value_type = Option<i64>, minimum = 1)]
    before: Option<String>,
    /// Transactions per page.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 1000, default = 20)]
    limit: Option<String>,
    /// The version that the wallet must at least have.
    #[param(value_type = Option<i64>, minimum = 0)]
    min_version: Option<String>,
}

/// A wallet: its balance and its version. Any KSUID is a wallet, so there is no 404: a wallet that was never credited has the
/// balance 0 and the version 0.
#[utoipa::path(
    get, path = WALLET, operation_id = "show_wallet", tag = "wallets", params(described::WalletPath, ReadQuery),
    responses(
        (
            status = 200, description = "The wallet", body = Shown,
            headers(("Read-From" = String, description = "`redis` or `postgres`"))
        ),
        ReadErrors
    )
)]
pub(crate) async fn show_wallet(app: &App, head: &Parts) -> Response {
    respond(head, read_state(app, head).await, |wallet, Balance { timestamp, balance, version }| {
        answer::json(StatusCode::OK, &Shown { timestamp, id: wallet.to_string(), balance, version })
    })
}

/// The balance of a wallet, and its version.
#[utoipa::path(
    get, path = BALANCE, operation_id = "show_balance", tag = "wallets", params(described::WalletPath, ReadQuery),
    responses(
        (
            status = 200, description = "The balance", body = Balance,
            headers(("Read-From" = String, description = "`redis` or `postgres`"))
        ),
        ReadErrors
    )
)]
pub(crate) async fn show_balance(app: &App, head: &Parts) -> Response {
    respond(head, read_state(app, head).await, |_, state| answer::balance(&state))
}

/// The accepted events of a wallet, newest first, page by page.
///
/// Go on with `before=<next_before>` until `next_before` is null. A page costs the same however many transactions there are.
#[utoipa::path(
    get, path = TRANSACTIONS, operation_id = "list_transactions", tag = "wallets",
    params(described::WalletPath, PageQuery),
    responses(
        (
            status = 200, description = "A page", body = TransactionPage,
            headers(("Read-From" = String, description = "`redis` or `postgres`"))
        ),
        ReadErrors
    )
)]
pub(crate) async fn list_transactions(app: &App, head: &Parts) -> Response {
    respond(head, read_page(app, head).await, |_, page| answer::json(StatusCode::OK, &page))
}

/// A result of a read, with the wallet and the source.
type Read<T> = Result<(WalletId, T, Source), WalletError>;

fn respond<T>(head: &Parts, read: Read<T>, show: impl FnOnce(WalletId, T) -> Response) -> Response {
    match read {
        Ok((wallet, found, source)) => {
            metrics::wallet_read(source);
            let mut response = show(wallet, found);
            response.headers_mut().insert(READ_FROM, source.header());
            response
        }
        Err(error) => Asked::of(head).respond(&error),
    }
}

async fn read_state(app: &App, head: &Parts) -> Read<Balance> {
    let wallet = wallet_of(head.uri.path())?;
    let query: ReadQuery = query(head)?;
    let min_version = version("min_version", query.min_version, 0, "a whole number from 0 on")?.unwrap_or(0);
    let (found, source) = source::head(app, wallet, min_version).await?;
    let state = match found {
        Some(Head { timestamp, balance_minor, version, .. }) => {
            Balance { timestamp, balance: Money(balance_minor), version }
        }
        None => Balance { timestamp: Timestamp::now(), balance: Money(0), version: 0 },
    };
    Ok((wallet, state, source))
}

async fn read_page(app: &App, head: &Parts) -> Read<TransactionPage> {
    let wallet = wallet_of(head.uri.path())?;
    let query: PageQuery = query(head)?;
    let min_version = version("min_version", query.min_version, 0, "a whole number from 0 on")?.unwrap_or(0);
    let before = version("before", query.before, 1, "a whole number from 1 on")?;
    let wanted = "a whole number between 1 and 1000";
    let limit = whole_number("limit", query.limit.as_deref(), 1, PAGE_LEN_MAX, wanted)?.unwrap_or(PAGE_LEN_DEFAULT);
    if before.is_none() && limit <= PAGE_LEN_DEFAULT {
        let (found, source) = source::document(app, wallet, min_version).await?;
        let (timestamp, newest) = match found {
            Some(document) => (document.timestamp, document.transactions),
            None => (Timestamp::now(), vec![]),
        };
        let transactions = newest.iter().take(limit as usize).map(shown).collect();
        return Ok((wallet, page::page_of(timestamp, transactions), source));
    }
    let page = page::read(app, wallet, before.unwrap_or(i64::MAX), limit, min_version).await?;
    Ok((wallet, page, Source::Postgres))
}

fn shown(transaction: &documents::Transaction) -> Transaction {
    let documents::Transaction { timestamp, counterparty, amount_minor, version, event_id } = *transaction;
    let source_entity_id = counterparty.map_or_else(|| "world".to_owned(), |wallet| wallet.to_string());
    Transaction { timestamp, source_entity_id, amount: Money(amount_minor), version, event_id: event_id.to_string() }
}

fn version(name: &'static str, text: Option<String>, least: i64, wanted: &'static str) -> Result<Option<i64>, Error> {
    whole_number(name, text.as_deref(), least, i64::MAX, wanted)
}
