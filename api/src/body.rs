//! The body of `POST /rides`: a form or JSON, by content type.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::{HeaderMap, Request, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::distance::parse_distance;
use crate::error::Error;

/// The largest body that is read, in bytes. A ride needs fifty.
const BODY_LEN_MAX: usize = 16 * 1024;

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

/// The distance that the client wants, in millimetres.
///
/// # Errors
/// What is wrong with the body, or that it took longer than `wait`.
pub(crate) async fn read_distance<B>(request: Request<B>, wait: Duration) -> Result<i64, Error>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let kind = Kind::of(request.headers());
    let body = timeout(wait, read_all(request.into_body())).await.map_err(|_| Error::TooSlow)??;
    match kind {
        Kind::Form => parse_form(&body),
        Kind::Json => parse_json(&body),
        // Without a type and without a body, what is missing is the distance.
        Kind::Unnamed if body.is_empty() => Err(Error::DistanceMissing),
        Kind::Unnamed | Kind::Other => Err(Error::UnsupportedType),
    }
}

async fn read_all<B>(mut body: B) -> Result<Bytes, Error>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut whole = Bytes::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|_| Error::Malformed("The body broke off.".to_owned()))?;
        // Trailers say nothing that is needed here.
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > BODY_LEN_MAX {
            return Err(Error::TooLarge { max: BODY_LEN_MAX });
        }
        // Nearly always there is one piece, and nothing to copy.
        whole = if whole.is_empty() { data } else { [whole, data].concat().into() };
    }
    Ok(whole)
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
        let essence = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
        if essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Self::Form;
        }
        match essence.to_ascii_lowercase().as_str() {
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
