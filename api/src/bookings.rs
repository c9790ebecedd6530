//! `POST /rides` with a user, a key and coordinates: a booked ride.

use std::borrow::Cow;
use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use booking::{Journey, Order, Reply};
use payments::ChargeError;
use traces::TraceParent;
use tracing::{Instrument, error};

use crate::app::App;
use crate::body::{Body, Params};
use crate::database::postgres_to_client_error;
use crate::error::Error;
use crate::key;

/// The shortest key, in characters. A shorter one is likely to be used twice.
pub(crate) const KEY_LEN_MIN: usize = 20;

/// Whether these headers alone make a request one for a booked ride. `Authorization` does not: it may be meant for a proxy.
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    headers.contains_key(key::HEADER)
}

/// Books a ride or continues a booking. A repeated request receives the response of the first request with its key.
pub(crate) async fn book(
    app: &App,
    headers: &HeaderMap,
    client: IpAddr,
    traceparent: Option<TraceParent>,
    body: &Body,
) -> Result<Response, Error> {
    let desk = app.desk.clone().ok_or(Error::BookingsOff)?;
    let email = headers.get(header::AUTHORIZATION).map_or(Ok(""), HeaderValue::to_str);
    let email = email.map_err(|_| Error::CredentialsInvalid)?.trim();
    if email.is_empty() {
        return Err(Error::CredentialsMissing);
    }
    let user = desk.user(email).await.map_err(|error| api_error(&error))?.ok_or(Error::CredentialsInvalid)?;
    let key = read_key(headers)?;
    let order = Order { traceparent, ..read_order(&body.params()?, client)? };
    // A task of its own: if the client leaves, this future is dropped, and the booking goes on.
    let booking = tokio::spawn(async move { desk.book(&user, &key, &order).await }.in_current_span());
    let reply = booking.await.map_err(|_| Error::BookingFailed)?.map_err(|error| api_error(&error))?;
    app.writer.hint();
    respond(reply)
}

fn respond(reply: Reply) -> Result<Response, Error> {
    let status = StatusCode::from_u16(reply.status).map_err(|_| Error::Internal)?;
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], reply.body).into_response();
    if reply.is_replayed {
        monitor::counter!("rocket_rides_idempotent_replays_total").increment(1);
        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The client's key, which a booking must have.
fn read_key(headers: &HeaderMap) -> Result<String, Error> {
    match key::read_key(headers) {
        Ok(None) | Err(Error::KeyEmpty) => Err(Error::KeyMissing),
        Ok(Some(key)) if key.len() < KEY_LEN_MIN => Err(Error::KeyTooShort { min: KEY_LEN_MIN }),
        Ok(Some(key)) => Ok(key),
        Err(error) => Err(error),
    }
}

fn read_order(params: &Params<Cow<'_, str>>, origin_ip: IpAddr) -> Result<Order, Error> {
    let latitude = |name, text| coordinate(name, text, 90.0, Error::NotALatitude);
    let longitude = |name, text| coordinate(name, text, 180.0, Error::NotALongitude);
    let journey = Journey {
        origin_lat: latitude("origin_lat", &params.origin_lat)?,
        origin_lon: longitude("origin_lon", &params.origin_lon)?,
        target_lat: latitude("target_lat", &params.target_lat)?,
        target_lon: longitude("target_lon", &params.target_lon)?,
    };
    let raise_error = match params.raise_error.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Error::NotABoolean("raise_error")),
    };
    Ok(Order { journey, origin_ip, traceparent: None, raise_error })
}

fn coordinate(
    name: &'static str,
    text: &Option<Cow<'_, str>>,
    most: f64,
    out_of_range: fn(&'static str) -> Error,
) -> Result<f64, Error> {
    let text = text.as_deref().map(str::trim).filter(|text| !text.is_empty()).ok_or(Error::ParameterMissing(name))?;
    // Rust would also parse "inf" and "nan".
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let value: f64 = text.parse().ok().filter(|_| is_number).ok_or(Error::NotANumber(name))?;
    if !(-most..=most).contains(&value) {
        return Err(out_of_range(name));
    }
    // Turns -0 into 0, which is the same place.
    Ok(value + 0.0)
}

fn api_error(error: &booking::Error) -> Error {
    use booking::Error as Booking;
    use idempotency::Error as Operation;
    if matches!(error, Booking::Operation(Operation::Mismatch { .. } | Operation::StillRunning { .. })) {
        monitor::counter!("rocket_rides_idempotency_conflicts_total").increment(1);
    }
    match error {
        Booking::Operation(Operation::Mismatch { .. }) => Error::KeyMismatch,
        // Fenced: this request took so long that another request with its key has taken over.
        Booking::Operation(Operation::StillRunning { .. } | Operation::Fenced) => Error::KeyInProgress,
        Booking::Operation(Operation::Expired { .. }) => Error::KeyExpired,
        Booking::Conflict => Error::Conflict,
        Booking::Processor(ChargeError::Pending { .. }) => Error::PaymentPending,
        refusal if refusal.is_refusal() => {
            error!(error = error.explain(), "the payment processor refuses a charge: an operator has to look");
            Error::ProcessorRefused
        }
        Booking::Processor(_) => Error::Processor { retry_after_s: 1 },
        Booking::ProcessorAway(wait) => Error::Processor { retry_after_s: wait.as_secs() + 1 },
        Booking::Overloaded => Error::Overloaded,
        Booking::Operation(Operation::Invalid(_)) => Error::KeyMalformed,
        Booking::Unavailable(_) | Booking::Operation(Operation::Pool(_)) => Error::Unavailable,
        Booking::Operation(Operation::Postgres(error)) => match postgres_to_client_error(error) {
            Error::Internal => Error::BookingFailed,
            error => error,
        },
        Booking::Raised => Error::BookingFailed,
        other => {
            error!(error = other.explain(), "a booking failed");
            Error::BookingFailed
        }
    }
}
