//! A request's body on its way into the spool: the parts are checked while they stream, and nothing is held but the document.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde_json::Value;
use tokio::time::timeout;
use web::{BodyError, ErrorResponse, is_encoded, read_body};

use crate::declaration::Resource;
use crate::envelope::{Head, PartHead};
use crate::points::{Point, pass};
use crate::spool::{Spool, SpoolError, Spooled, Upload};

/// The longest document, in bytes. It is held in memory, and becomes a row.
pub const DOCUMENT_LEN_MAX: usize = 64 * 1024;

/// The longest text that says what a unit is about.
const SUBJECT_LEN_MAX: usize = 200;

/// How long a client may pause between two pieces of a body.
const PIECE_WAIT: Duration = Duration::from_secs(10);

/// A body that is in the spool.
pub struct Incoming {
    /// Its file.
    pub spooled: Spooled,
    /// The document.
    pub document: Bytes,
    /// The thing that it is about.
    pub subject: String,
}

/// Checks a body and writes it into the spool. If it is refused, nothing is left.
///
/// # Errors
/// The response for the client.
pub async fn receive(
    spool: &Spool,
    resource: &Resource,
    head: Head,
    headers: &HeaderMap,
    body: Body,
) -> Result<Incoming, ErrorResponse> {
    if is_encoded(headers) {
        return Err(refusal(415, "body_encoded", "Send the body without compression."));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    match multer::parse_boundary(content_type) {
        Ok(boundary) => receive_parts(spool, resource, head, body, boundary).await,
        Err(_) if is_json(content_type) => receive_document(spool, resource, head, body).await,
        Err(_) => Err(refusal(415, "content_type_unknown", "Send application/json or multipart/form-data.")),
    }
}

fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

async fn receive_document(
    spool: &Spool,
    resource: &Resource,
    head: Head,
    body: Body,
) -> Result<Incoming, ErrorResponse> {
    let len_max = DOCUMENT_LEN_MAX.min(resource.body_max as usize);
    let document = read_body(body, len_max, PIECE_WAIT).await.map_err(|error| match error {
        BodyError::TooLarge => too_large(len_max as u64),
        BodyError::TooSlow => refusal(408, "body_slow", "The body did not arrive in time."),
        BodyError::Broken => refusal(400, "body_broken", "The body is not complete."),
    })?;
    let subject = subject_of(resource, &document)?;
    let mut upload = spool.begin(head).map_err(spool_error)?;
    let written = async {
        write_document(&mut upload, resource, &document).await?;
        Ok(())
    };
    finish(written.await, upload, document, subject).await
}

async fn receive_parts(
    spool: &Spool,
    resource: &Resource,
    head: Head,
    body: Body,
    boundary: String,
) -> Result<Incoming, ErrorResponse> {
    let limits = SizeLimit::new().whole_stream(resource.body_max);
    let limits = limits.for_field(resource.document.clone(), DOCUMENT_LEN_MAX as u64);
    let mut body = body.into_data_stream();
    let constraints = Constraints::new().size_limit(limits);
    let mut parts = Multipart::with_constraints(&mut body, boundary, constraints);
    let mut upload = spool.begin(head).map_err(spool_error)?;
    let mut document = None;
    let read = read_parts(resource, &mut parts, &mut upload, &mut document).await;
    let (document, subject, read) = match (read, document) {
        (Ok(()), Some((document, subject))) => (document, subject, Ok(())),
        (Ok(()), None) => {
            let name = &resource.document;
            let missing = refusal(400, "document_missing", format!("The body has no part {name:?} with the document."));
            (Bytes::new(), String::new(), Err(missing))
        }
        (Err(error), _) => (Bytes::new(), String::new(), Err(error)),
    };
    drop(parts);
    if read.is_err() {
        read_to_end(&mut body, resource.body_max).await;
    }
    finish(read, upload, document, subject).await
}

/// Reads the rest of a body that is refused, up to this length. If it were not read, the connection would be reset, and a client
/// that still sends would not see the response.
async fn read_to_end(body: &mut BodyDataStream, len_max: u64) {
    let mut len = 0;
    let reading = async {
        while let Some(Ok(bytes)) = body.next().await {
            len += bytes.len() as u64;
            if len > len_max {
                break;
            }
        }
    };
    // A client that is slower sees a reset.
    let _ = timeout(PIECE_WAIT, reading).await;
}

/// Completes the upload, or gives it up.
async fn finish(
    written: Result<(), ErrorResponse>,
    upload: Upload,
    document: Bytes,
    subject: String,
) -> Result<Incoming, ErrorResponse> {
    if let Err(error) = written {
        upload.abort().await;
        return Err(error);
    }
    pass(Point::BodyReceived, &subject);
    let spooled = upload.complete().await.map_err(spool_error)?;
    pass(Point::FileSynced, &subject);
    Ok(Incoming { spooled, document, subject })
}

async fn read_parts(
    resource: &Resource,
    parts: &mut Multipart<'_>,
    upload: &mut Upload,
    document: &mut Option<(Bytes, String)>,
) -> Result<(), ErrorResponse> {
    let mut seen = Vec::new();
    while let Some(mut field) = in_time(parts.next_field()).await? {
        let name = field.name().unwrap_or_default().to_owned();
        if seen.contains(&name) {
            return Err(refusal(400, "part_twice", format!("The body has two parts {name:?}.")));
        }
        if name == resource.document {
            let bytes = in_time(field.bytes()).await?;
            let subject = subject_of(resource, &bytes)?;
            write_document(upload, resource, &bytes).await?;
            *document = Some((bytes, subject));
        } else {
            let head = attachment_head(resource, &name, &field)?;
            upload.begin_part(head).await.map_err(spool_error)?;
            let mut is_empty = true;
            while let Some(bytes) = in_time(field.chunk()).await? {
                is_empty &= bytes.is_empty();
                upload.write(bytes).await.map_err(spool_error)?;
            }
            if is_empty {
                return Err(refusal(
                    400,
                    "part_empty",
                    format!("The part {name:?} is empty. Leave it out, or send it."),
                ));
            }
        }
        seen.push(name);
    }
    Ok(())
}

fn attachment_head(resource: &Resource, name: &str, field: &Field<'_>) -> Result<PartHead, ErrorResponse> {
    let Some(attachment) = resource.attachment(name) else {
        let known: Vec<&str> = resource.attachments.iter().map(|attachment| attachment.name.as_str()).collect();
        let known = [&[resource.document.as_str()], known.as_slice()].concat().join(", ");
        return Err(refusal(400, "part_unknown", format!("There is no part {name:?} here. The parts are {known}.")));
    };
    let content_type = field.content_type().map_or(String::new(), |kind| kind.essence_str().to_ascii_lowercase());
    if !attachment.content_types.contains(&content_type) {
        let wanted = attachment.content_types.join(" or ");
        let sentence = format!("The part {name:?} has the type {content_type:?}. Send {wanted}.");
        return Err(refusal(415, "content_type_unknown", sentence));
    }
    Ok(PartHead { name: name.to_owned(), content_type, file_name: field.file_name().map(str::to_owned) })
}

async fn write_document(upload: &mut Upload, resource: &Resource, document: &Bytes) -> Result<(), ErrorResponse> {
    let name = resource.document.clone();
    let head = PartHead { name, content_type: "application/json".to_owned(), file_name: None };
    upload.begin_part(head).await.map_err(spool_error)?;
    upload.write(document.clone()).await.map_err(spool_error)
}

/// The thing that a document is about: a string or an integer in the field that the resource names.
///
/// # Errors
/// The document is no JSON object, or lacks the field.
pub fn subject_of(resource: &Resource, document: &[u8]) -> Result<String, ErrorResponse> {
    let wrong = |sentence: String| refusal(400, "document_malformed", sentence);
    let field = &resource.subject;
    let subject = crate::document::read(document, field);
    let subject = subject.map_err(|error| wrong(format!("The document cannot be used: {error}.")))?;
    let subject = match subject {
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) if number.is_i64() => number.to_string(),
        _ => return Err(wrong(format!("The document needs the field {field:?}, a string or an integer."))),
    };
    let is_sane = (1..=SUBJECT_LEN_MAX).contains(&subject.chars().count()) && !subject.contains(char::is_control);
    if is_sane {
        return Ok(subject);
    }
    Err(wrong(format!("The field {field:?} needs 1 to {SUBJECT_LEN_MAX} characters, and no control character.")))
}

async fn in_time<T>(piece: impl Future<Output = multer::Result<T>>) -> Result<T, ErrorResponse> {
    let piece = timeout(PIECE_WAIT, piece).await;
    let piece = piece.map_err(|_| refusal(408, "body_slow", "The body did not arrive in time."))?;
    piece.map_err(|error| match error {
        multer::Error::StreamSizeExceeded { limit } | multer::Error::FieldSizeExceeded { limit, .. } => {
            too_large(limit)
        }
        error => refusal(400, "body_broken", format!("The body is no multipart/form-data: {error}.")),
    })
}

fn too_large(limit: u64) -> ErrorResponse {
    refusal(413, "body_large", format!("The body is longer than {limit} bytes."))
}

/// The response for a fault of the spool. Nothing was begun.
pub fn spool_error(error: SpoolError) -> ErrorResponse {
    tracing::warn!(error = format!("{error:#}"), "a body could not be spooled");
    let code = if matches!(error, SpoolError::Full) { "spool_full" } else { "unavailable" };
    ErrorResponse {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code,
        error: "The request could not be stored. Nothing was begun. Please retry.".into(),
        is_temporary: true,
    }
}

/// A refusal for which the client is at fault.
pub fn refusal(status: u16, code: &'static str, error: impl Into<String>) -> ErrorResponse {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    ErrorResponse { status, code, error: error.into().into(), is_temporary: false }
}
