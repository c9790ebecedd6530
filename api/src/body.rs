//! The body of `POST /rides`: a form or JSON, by content type.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::App;
use crate::distance::parse_distance;
use crate::error::Error;

/// The largest body that is read, in bytes. A ride needs fifty.
pub(crate) const BODY_LEN_MAX: usize = 16 * 1024;

/// A ride as the client wants it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewRide {
    pub distance_mm: i64,
}

#[derive(Deserialize)]
struct Form {
    distance: Option<String>,
}

/// The distance is kept as the client wrote it, digit by digit.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    distance: Option<&'a RawValue>,
}

impl FromRequest<App> for NewRide {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        let kind = Kind::of(request.headers());
        let body = timeout(app.body_wait, Bytes::from_request(request, app)).await.map_err(|_| Error::TooSlow)?;
        let body = body.map_err(|rejection| match rejection.status() {
            axum::http::StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge { max: BODY_LEN_MAX },
            _ => Error::Malformed("The body broke off.".to_owned()),
        })?;
        let distance_mm = match kind {
            Kind::Form => parse_form(&body)?,
            Kind::Json => parse_json(&body)?,
            // Without a type and without a body, what is missing is the distance.
            Kind::Unnamed if body.is_empty() => return Err(Error::DistanceMissing),
            Kind::Unnamed | Kind::Other => return Err(Error::UnsupportedType),
        };
        Ok(Self { distance_mm })
    }
}

enum Kind {
    Form,
    Json,
    Unnamed,
    Other,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Self::Unnamed };
        let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-www-form-urlencoded" => Self::Form,
            "application/json" => Self::Json,
            subtype if subtype.starts_with("application/") && subtype.ends_with("+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

fn parse_form(body: &[u8]) -> Result<i64, Error> {
    let form: Form = serde_urlencoded::from_bytes(body)
        .map_err(|error| Error::Malformed(format!("The body must be a form: {error}.")))?;
    form.distance.as_deref().map_or(Err(Error::DistanceMissing), parse_distance)
}

fn parse_json(body: &[u8]) -> Result<i64, Error> {
    // Serde would take an array for a struct, too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::Malformed("The body must be a JSON object.".to_owned()));
    }
    let document: Document = serde_json::from_slice(body)
        .map_err(|error| Error::Malformed(format!("The body must be a JSON object: {error}.")))?;
    match document.distance.map(RawValue::get) {
        None => Err(Error::DistanceMissing),
        // A number, as it stands; a string, for clients that send all numbers so.
        Some(number) if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => parse_distance(number),
        Some(text) if text.starts_with('"') => {
            let text: String = serde_json::from_str(text).map_err(|_| Error::DistanceNotANumber)?;
            parse_distance(&text)
        }
        Some(_) => Err(Error::DistanceNotANumber),
    }
}
