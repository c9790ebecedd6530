//! `GET /totals`: SQL's own count and sum beside each consumer's. All figures come from one snapshot, so they can be
//! compared.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::error::Error;
use crate::paths::TOTALS;
use crate::reading::Totals;
use crate::responses::ReadErrors;

/// SQL's count and sum beside every consumer's.
///
/// All of one snapshot, so the figures can be compared. The header `Age` tells how many seconds ago they were read. A new
/// reading is waited for, unless a large table makes it take long: then the figures are at most some twenty times as old as a
/// reading takes.
#[utoipa::path(
    get, path = TOTALS, operation_id = "show_totals", tag = "state",
    responses(
        (
            status = 200, description = "The totals", body = Totals,
            headers(("Age" = i64, description = "Seconds since the figures were read"))
        ),
        ReadErrors
    )
)]
pub(crate) async fn show_totals(State(app): State<App>) -> Result<Response, Error> {
    let figure = app.totals.recent().await.ok_or(Error::Internal)?;
    let age = [(header::AGE, HeaderValue::from(figure.age().as_secs()))];
    Ok((age, Json(&*figure.result?)).into_response())
}
