//! `POST /rides`, `GET /rides/{id}` and `GET /rides`.

use axum::Json;
use axum::body::{Bytes, HttpBody};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use traces::TraceParent;
use tracing::Instrument;
use utoipa::{IntoParams, ToSchema};
use web::{ErrorBody, RequestInfo};

use crate::app::App;
use crate::body::Body;
use crate::bookings;
use crate::client_trace::ClientSpan;
use crate::distance::{metres_with_one_decimal, parse_distance};
use crate::error::Error;
use crate::parameters::{BookingHeaders, RideBody};
use crate::paths::{RIDE, RIDES};
use crate::query::whole_number;
use crate::responses::{BookingErrors, ListErrors, ShowErrors};
use crate::ride::Ride;
use crate::writer::NewRide;

/// The rides of a page, unless the client asks for another number.
const PAGE_LEN_DEFAULT: i64 = 100;
/// The most rides a page may have.
const PAGE_LEN_MAX: i64 = 1000;

/// The space for the body of a response to `POST /rides`, in bytes. The body fits in, so it is never copied.
const CREATED_LEN: usize = 256;

/// The response 201 of `POST /rides`.
#[derive(Serialize, ToSchema)]
pub(crate) struct Created {
    /// For people.
    message: String,
    ride: Ride,
}

/// Takes a ride: a guest's, or a booked one if the request has coordinates or an `Idempotency-Key`.
///
/// A booked ride needs both, and `Authorization`. It is charged once, however often the request is sent with its key. A
/// guest's ride may have any `Authorization`: a proxy may need one of its own.
#[utoipa::path(
    post, path = RIDES, operation_id = "create_ride", tag = "rides", params(BookingHeaders), security((), ("user" = [])),
    request_body(content((RideBody = "application/json"), (RideBody = "application/x-www-form-urlencoded"))),
    responses(
        (
            status = 201, description = "The ride is written; a booked one is charged", body = Created,
            headers(
                ("Location" = String, description = "A guest's ride"),
                ("Idempotent-Replayed" = String, description = "`true`: this was answered before")
            ),
            links(("ride" = (operation_id = "show_ride", parameters(("id" = "$response.body#/ride/id")))))
        ),
        (
            status = 402, description = "* `charge_declined`: the card was declined; final", body = ErrorBody,
            headers(("Idempotent-Replayed" = String, description = "`true`: this was answered before"))
        ),
        BookingErrors
    )
)]
pub(crate) async fn create_ride<B>(app: &App, info: &RequestInfo, headers: &HeaderMap, body: B) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let span = ClientSpan::begin(headers, RIDES);
    let response = written(app, info, span.traceparent(), headers, body).await.unwrap_or_else(Error::into_response);
    span.end(&response);
    response
}

async fn written<B>(
    app: &App,
    info: &RequestInfo,
    traceparent: Option<TraceParent>,
    headers: &HeaderMap,
    body: B,
) -> Result<Response, Error>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let body = Body::read(headers, body, app.body_wait).await?;
    let params = (!bookings::is_asked_for(headers)).then(|| body.params()).transpose()?;
    let Some(params) = params.filter(|params| !params.have_coordinates()) else {
        // In a box: this future is large, and the future of every guest's ride would have to be as large.
        return Box::pin(bookings::book(app, headers, info.client, traceparent, &body))
            .instrument(info.id.span())
            .await;
    };
    let distance_mm = parse_distance(params.distance.as_deref().ok_or(Error::DistanceMissing)?)?;
    let ride = app.writer.write(NewRide { distance_mm, traceparent }).await?;
    let message = format!(
        "Payment accepted. Your pilot is on their way! distance={}m",
        metres_with_one_decimal(ride.distance_mm)
    );
    let location = HeaderValue::try_from(format!("{RIDES}/{}", ride.id)).map_err(|_| Error::Internal)?;
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), (header::LOCATION, location)];
    let mut body = Vec::with_capacity(CREATED_LEN);
    serde_json::to_writer(&mut body, &Created { message, ride }).map_err(|_| Error::Internal)?;
    Ok((StatusCode::CREATED, headers, body).into_response())
}

/// A ride.
#[utoipa::path(
    get, path = RIDE, operation_id = "show_ride", tag = "rides",
    params(("id" = i64, Path, description = "The ride's id")),
    responses((status = 200, description = "The ride", body = Ride), ShowErrors)
)]
pub(crate) async fn show_ride(
    State(app): State<App>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Ride>, Error> {
    // A text that is not a number is not the id of any ride.
    let Path(id) = id.map_err(|_| Error::NoSuchRide)?;
    let rows = app
        .database
        .read(
            "-- api::rides::show
             SELECT id, distance_mm, created_at FROM rides WHERE id = $1",
            vec![Box::new(id)],
        )
        .await?;
    let row = rows.first().ok_or(Error::NoSuchRide)?;
    Ok(Json(Ride::from_row(row)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// The last id of the page before, or 0 for the first page.
    #[param(value_type = Option<i64>, minimum = 0, default = 0)]
    after: Option<String>,
    /// Rides a page.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
}

/// A page of rides in id order: `{"rides":[…],"next_after":42}`. `next_after` is null on the last page.
#[derive(Serialize, ToSchema)]
pub(crate) struct RidePage {
    rides: Vec<Ride>,
    next_after: Option<i64>,
}

/// Rides in the order of their ids, page by page.
#[utoipa::path(
    get, path = RIDES, operation_id = "list_rides", tag = "rides", params(Page),
    responses((status = 200, description = "A page", body = RidePage), ListErrors)
)]
pub(crate) async fn list_rides(
    State(app): State<App>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<RidePage>, Error> {
    let Query(page) = page.map_err(|_| Error::Malformed("The query string is malformed.".to_owned()))?;
    let after =
        whole_number("after", page.after.as_deref(), 0, i64::MAX, "a ride's id, or 0 for the first page")?.unwrap_or(0);
    let limit = whole_number("limit", page.limit.as_deref(), 1, PAGE_LEN_MAX, "a whole number between 1 and 1000")?
        .unwrap_or(PAGE_LEN_DEFAULT);
    let rows = app
        .database
        .read(
            "-- api::rides::list
             SELECT id, distance_mm, created_at FROM rides WHERE id > $1 ORDER BY id LIMIT $2",
            vec![Box::new(after), Box::new(limit + 1)],
        )
        .await?;
    let mut rides: Vec<Ride> = rows.iter().map(Ride::from_row).collect();
    let has_more = rides.len() as i64 > limit;
    rides.truncate(limit as usize);
    let next_after = rides.last().filter(|_| has_more).map(|ride| ride.id);
    Ok(Json(RidePage { rides, next_after }))
}
