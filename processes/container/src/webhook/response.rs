//! The response of a webhook's server.

use std::time::{Duration, SystemTime};

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER};
use tokio::time::{Instant, timeout_at};

use crate::destination::Refusal;

/// The longest body that is read, in bytes.
const BODY_LEN_MAX: usize = 64 * 1024;

/// The part of the body that is shown to people, in bytes.
const SHOWN_LEN_MAX: usize = 200;

/// The longest wait that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether the server was told. The status decides; a body that is late, broken or endless changes nothing.
pub(super) async fn understand(response: Response<Incoming>, deadline: Instant) -> Result<(), Refusal> {
    let (parts, body) = response.into_parts();
    // The body is read also after a success: only then can the connection be used again.
    let body = read(body, deadline).await;
    if parts.status.is_success() {
        return Ok(());
    }
    let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_LEN_MAX)]);
    let reason = format!("the server responded with {}: {}", parts.status.as_u16(), shown.trim());
    let mut refusal = match parts.status.as_u16() {
        // It may have stored the part, and failed after it.
        status @ (408 | 500..=599) => Refusal::new(status, reason),
        status @ 400..=499 => Refusal::new(status, reason).clear(),
        // The declared URL is wrong. That is no fault of the unit, so another attempt is worth it.
        300..=399 => {
            Refusal::new(502, format!("the server redirects, with {}: declare the new URL", parts.status.as_u16()))
        }
        _ => Refusal::new(502, reason),
    };
    refusal.retry_after = parts.headers.get(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
    Err(refusal)
}

/// The beginning of the body, as far as it arrives until the deadline. A longer body closes the connection.
async fn read(mut body: Incoming, deadline: Instant) -> Vec<u8> {
    let mut beginning = Vec::new();
    while beginning.len() < BODY_LEN_MAX {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else { break };
        // Trailers are ignored.
        let Ok(data) = frame.into_data() else { continue };
        beginning.extend_from_slice(&data);
    }
    beginning
}

/// The wait that a server asks for: seconds, or a date. A date that has passed is no wait.
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let cases = [
            ("0", Some(0)),
            ("120", Some(120)),
            ("99999999", Some(86_400)),
            ("99999999999999999999", None),
            ("-1", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("Sat, 06 Nov 2094 08:00:00 GMT", Some(86_400)),
        ];
        for (text, wait_s) in cases {
            let wait = retry_after(&HeaderValue::from_static(text), now);
            assert_eq!(wait, wait_s.map(Duration::from_secs), "{text}");
        }
    }
}
