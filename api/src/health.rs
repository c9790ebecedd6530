//! `GET /healthz`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::error::Error;
use crate::paths::HEALTHZ;
use crate::responses::ReadErrors;
use crate::writer::WRITE_RIDES;

/// The response of `GET /healthz`.
#[derive(Serialize, ToSchema)]
pub(crate) struct Ready {
    /// `ok`.
    status: &'static str,
}

/// 200 when rides can be taken, 503 when they cannot. It asks by the statement that writes rides, without a ride.
#[utoipa::path(
    get, path = HEALTHZ, operation_id = "check_health", tag = "state",
    responses((status = 200, description = "Ready", body = Ready), ReadErrors)
)]
pub(crate) async fn check_health(State(app): State<App>) -> Result<Json<Ready>, Error> {
    let written = app.database.read(WRITE_RIDES, vec![Box::new(Vec::<i64>::new())]).await;
    // A table or a right is missing: that is logged, and a load balancer gets the answer that it knows.
    written.map_err(|error| if matches!(error, Error::Internal) { Error::Unavailable } else { error })?;
    Ok(Json(Ready { status: "ok" }))
}
