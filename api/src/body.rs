//! The body of `POST /rides`: a form or JSON, by content type.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::value::RawValue;
use web::{BodyError, read_body};

use crate::error::Error;

/// The largest body that is read, in bytes. A ride needs fifty bytes.
pub(crate) const BODY_LEN_MAX: usize = 16 * 1024;

/// The parameters of `POST /rides`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Params<T> {
    pub distance: Option<T>,
    pub origin_lat: Option<T>,
    pub origin_lon: Option<T>,
    pub target_lat: Option<T>,
    pub target_lon: Option<T>,
    pub raise_error: Option<T>,
}

impl<T> Params<T> {
    /// Whether these parameters ask for a booked ride.
    pub fn have_coordinates(&self) -> bool {
        [&self.origin_lat, &self.origin_lon, &self.target_lat, &self.target_lon].into_iter().any(Option::is_some)
    }

    fn map<U>(self, change: impl Fn(T) -> U) -> Params<U> {
        Params {
            distance: self.distance.map(&change),
            origin_lat: self.origin_lat.map(&change),
            origin_lon: self.origin_lon.map(&change),
            target_lat: self.target_lat.map(&change),
            target_lon: self.target_lon.map(&change),
            raise_error: self.raise_error.map(&change),
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub(crate) struct Body {
    kind: Kind,
    bytes: Bytes,
}

impl Body {
    /// Reads a whole body.
    ///
    /// # Errors
    /// It is compressed or too large, broke off, or took longer than `wait`.
    pub async fn read<B>(headers: &HeaderMap, body: B, wait: Duration) -> Result<Self, Error>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        if web::is_encoded(headers) {
            return Err(Error::Encoded);
        }
        let bytes = read_body(body, BODY_LEN_MAX, wait).await.map_err(|error| match error {
            BodyError::TooLarge => Error::TooLarge { max: BODY_LEN_MAX },
            BodyError::TooSlow => Error::TooSlow,
            BodyError::Broken => Error::Malformed("The body broke off.".to_owned()),
        })?;
        Ok(Self { kind: Kind::of(headers), bytes })
    }

    /// The parameters, digit by digit as the client wrote them.
    ///
    /// # Errors
    /// The body is neither a form nor a JSON object.
    pub fn params(&self) -> Result<Params<Cow<'_, str>>, Error> {
        let bytes = self.bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.bytes);
        match self.kind {
            Kind::Form => parse_form(bytes),
            Kind::Json => parse_json(bytes),
            // A request without a type and without a body lacks its parameters, not its type.
            Kind::Unnamed if self.bytes.is_empty() => Ok(Params::default()),
            Kind::Unnamed | Kind::Other => Err(Error::UnsupportedType),
        }
    }

    /// The bytes of a body that is to be JSON. The type of a form is taken for JSON, because curl sends it unless it is told
    /// another. `None`: the body is of another type.
    pub fn json(&self) -> Option<&[u8]> {
        let is_json = !matches!(self.kind, Kind::Other);
        is_json.then(|| self.bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&self.bytes))
    }
}

/// Some programs put it before every text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[derive(Debug, Clone, Copy)]
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

fn parse_form(body: &[u8]) -> Result<Params<Cow<'_, str>>, Error> {
    serde_urlencoded::from_bytes(body).map_err(|error| Error::Malformed(format!("The body must be a form: {error}.")))
}

fn parse_json(body: &[u8]) -> Result<Params<Cow<'_, str>>, Error> {
    // Serde would accept an array for a struct, too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::Malformed("The body must be a JSON object.".to_owned()));
    }
    let document: Params<&RawValue> = serde_json::from_slice(body)
        .map_err(|error| Error::Malformed(format!("The body must be a JSON object: {error}.")))?;
    Ok(document.map(text))
}

/// A number or a word as it stands; a string without its quotes, because some clients send every value as a string.
fn text(value: &RawValue) -> Cow<'_, str> {
    let raw = value.get();
    match raw.starts_with('"').then(|| serde_json::from_str(raw)) {
        Some(Ok(text)) => Cow::Owned(text),
        _ => Cow::Borrowed(raw),
    }
}
