//! The meaning of a response of Stripe for a charge.

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::charge::ChargeError;

/// A response: status, headers and body.
pub(crate) struct Heard {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Deserialize)]
struct Failure {
    error: Problem,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

impl Heard {
    /// Stripe's name for the request, by which its support finds it.
    pub fn request_id(&self) -> Option<&str> {
        self.headers.get("request-id")?.to_str().ok()
    }

    /// The object of a response 200, otherwise the error.
    pub fn understand<T: DeserializeOwned>(&self) -> Result<T, ChargeError> {
        if self.status.is_success() {
            return serde_json::from_slice(&self.body).map_err(|_| self.nonsense());
        }
        // Stripe does not send a response without an error, so its status means nothing: the 402 of a proxy must not end a
        // ride.
        let Failure { error } = serde_json::from_slice(&self.body).map_err(|_| self.nonsense())?;
        Err(self.judge(error))
    }

    fn judge(&self, problem: Problem) -> ChargeError {
        let (kind, code) = (problem.kind.as_deref(), problem.code.as_deref());
        let is_declined = kind == Some("card_error") || code == Some("card_declined");
        // Postgres stores no NUL, and the booking stores the message.
        let mut message = problem.message.unwrap_or_else(|| format!("HTTP {}", self.status)).replace('\0', " ");
        if let Some(request_id) = self.request_id() {
            message = format!("{message} (request {request_id})");
        }
        match (self.status.as_u16(), self.should_retry()) {
            (400..=499, _) if is_declined => ChargeError::Declined { message: without_request(message) },
            // The key was used with other fields, so an earlier request may have charged.
            (400, _) if kind == Some("idempotency_error") => ChargeError::Spent { message },
            (409, None | Some(true)) => ChargeError::Busy { message },
            // A 402 without the word "declined" is not from Stripe.
            (402 | 408 | 429, None) | (400..=499, Some(true)) => ChargeError::Unavailable { message },
            (400..=499, _) => ChargeError::Refused { message },
            (500..=599, Some(false)) => ChargeError::Spent { message },
            _ => ChargeError::Unavailable { message },
        }
    }

    /// Stripe's advice, which knows more than the status.
    fn should_retry(&self) -> Option<bool> {
        self.headers.get("stripe-should-retry")?.to_str().ok()?.parse().ok()
    }

    fn nonsense(&self) -> ChargeError {
        ChargeError::Unavailable { message: format!("HTTP {}, and not in Stripe's words", self.status) }
    }
}

/// A decline is told to the client, who has no use for the name of the request.
fn without_request(message: String) -> String {
    message.rsplit_once(" (request ").map_or(message.clone(), |(message, _)| message.to_owned())
}
