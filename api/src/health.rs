//! `GET /healthz`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::Error;
use crate::paths::HEALTHZ;
use crate::responses::ReadErrors;

/// The response of `GET /healthz`.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    /// `ok`.
    status: &'static str,
}

/// 200 when rides can be taken, 503 when they cannot.
#[utoipa::path(
    get, path = HEALTHZ, operation_id = "check_health", tag = "state",
    responses((status = 200, description = "Ready", body = Ready), ReadErrors)
)]
pub(crate) async fn check_health(State(app): State<App>) -> Result<Json<Ready>, Error> {
    app.database.read("-- api::health\nSELECT", vec![]).await?;
    Ok(Json(Ready { status: "ok" }))
}
