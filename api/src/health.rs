//! `GET /healthz`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

use crate::app::App;
use crate::database::Param;
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

/// 200 when rides and commands for wallets can be taken, 503 when they cannot.
///
/// It asks by the statement that writes rides, without a ride, and by one that would write a wallet. Without Redis wallets are
/// read from Postgres, so it is not asked for.
#[utoipa::path(
    get, path = HEALTHZ, operation_id = "check_health", tag = "state",
    responses((status = 200, description = "Ready", body = Ready), ReadErrors)
)]
pub(crate) async fn check_health(State(app): State<App>) -> Result<Json<Ready>, Error> {
    for (statement, parameters) in [(WRITE_RIDES, vec![Box::new(Vec::<i64>::new()) as Param]), (wallet::TRIAL, vec![])]
    {
        let tried = app.database.read(statement, parameters).await;
        tried.map_err(|error| match error {
            // A table or a right is missing. A load balancer gets the answer that it knows.
            Error::Internal => {
                error!("the api cannot work: apply schema.sql and ops/roles.sql");
                Error::Unavailable
            }
            error => error,
        })?;
    }
    Ok(Json(Ready { status: "ok" }))
}
