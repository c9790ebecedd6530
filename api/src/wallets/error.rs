//! Every error of a request to a wallet, as the client sees it: a text for people and a code for programs.

use std::fmt;

use axum::http::header::{self, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use wallet::{Action, NotAKsuid, NotAnAmount};

use crate::error::Error;
use crate::wallets::answer;

/// The most characters of a client's text that an error repeats.
const ECHO_LEN_MAX: usize = 100;

/// An error of a request to a wallet. Its text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WalletError {
    /// The path exists, but not for this method.
    #[error("method must be GET or POST: this path takes {allowed}")]
    WrongMethod { allowed: &'static str },
    /// The path is none of a wallet.
    #[error("path must be 'wallet/[entity ksuid]/[endpoint]'")]
    NotAPath,
    /// The path has no KSUID in its second place.
    #[error("entity ksuid \"{}\" could not be parsed: {reason}", Echo(.text))]
    NotAKsuid { text: String, reason: NotAKsuid },
    /// The path has an unknown word in its third place.
    #[error(
        "no handler for endpoint=\"{}\": GET balance or transactions, or POST to credit, debit or transfer",
        Echo(.endpoint)
    )]
    NoHandler { endpoint: String },
    /// The body did not arrive, or is of a type that is not read.
    #[error("failed to read data from request body: {0}")]
    Unread(Error),
    /// The body is neither JSON nor of a type that clients send with JSON.
    #[error("failed to read data from request body: send it as application/json")]
    UnsupportedType,
    /// The body is not JSON.
    #[error("failed to parse JSON from request body: {reason}; {example}")]
    NotJson { reason: String, example: &'static str },
    /// The body is well-formed JSON, and no command.
    #[error("failed to handle endpoint=\"{action}\": {fault}")]
    NotACommand { action: Action, fault: Fault },
    /// The wallet cannot do what is asked for. The attempt is an event.
    #[error("failed to handle endpoint=\"{action}\": {reason}")]
    Rejected { action: Action, reason: String },
    /// The query string has a parameter that the path does not take.
    #[error("there is no parameter \"{}\": this path takes {}", Echo(.name), list(.known))]
    UnknownParameter { name: String, known: Vec<String> },
    /// The query string has a parameter several times.
    #[error("a parameter is in the query string several times: give each once")]
    RepeatedParameter,
    /// The wallet has not reached the version that the client asks for.
    #[error("the wallet has version {version}, and min_version={min_version} was asked for: ask for at most {version}")]
    VersionNotReached { version: i64, min_version: i64 },
    /// An error that is not a wallet's own.
    #[error(transparent)]
    Other(#[from] Error),
}

/// Why well-formed JSON is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It is no object with the keys of a command.
    #[error("failed to cast requestBody={} to Amount: {reason}", Echo(.body))]
    Body { body: String, reason: String },
    /// The amount is of another type.
    #[error("failed to cast rawAmount={} to float64: it {}", Echo(.raw), NotAnAmount::NotANumber)]
    AmountNotANumber { raw: String },
    /// The amount is a number, and not the amount of a command.
    #[error("{action} amount {reason}")]
    Amount { action: Action, reason: NotAnAmount },
    /// The receiving wallet is no KSUID.
    #[error("entity ksuid \"{}\" in \"to\" could not be parsed: {reason}", Echo(.text))]
    To { text: String, reason: NotAKsuid },
    /// A wallet would pay itself.
    #[error("a wallet cannot pay itself: give another wallet as \"to\"")]
    ToItself,
}

/// The parameters of a path, for people.
fn list(known: &[String]) -> String {
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}

impl Fault {
    /// A stable word for programs.
    fn code(&self) -> &'static str {
        match self {
            Self::Body { .. } => "command_malformed",
            Self::AmountNotANumber { .. } => "amount_not_a_number",
            Self::Amount { reason: NotAnAmount::TooFine, .. } => "amount_too_fine",
            Self::Amount { .. } => "amount_out_of_range",
            Self::To { .. } => "ksuid_malformed",
            Self::ToItself => "transfer_to_itself",
        }
    }
}

impl WalletError {
    /// A stable word for programs; the sentence is for people.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongMethod { .. } => "method_not_allowed",
            Self::NotAPath => "path_malformed",
            Self::NotAKsuid { .. } => "ksuid_malformed",
            Self::NoHandler { .. } => "endpoint_unknown",
            Self::Unread(error) | Self::Other(error) => error.code(),
            Self::UnsupportedType => "content_type_unsupported",
            Self::NotJson { .. } => "body_malformed",
            Self::NotACommand { fault, .. } => fault.code(),
            Self::Rejected { .. } => "rejected",
            Self::UnknownParameter { .. } => "parameter_unknown",
            Self::RepeatedParameter => "parameter_invalid",
            Self::VersionNotReached { .. } => "version_not_reached",
        }
    }

    /// 400 for every fault of the client that HTTP has no better word for.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotAPath
            | Self::NotAKsuid { .. }
            | Self::NoHandler { .. }
            | Self::NotJson { .. }
            | Self::NotACommand { .. }
            | Self::Rejected { .. }
            | Self::UnknownParameter { .. }
            | Self::RepeatedParameter
            | Self::Other(Error::Parameter { .. }) => StatusCode::BAD_REQUEST,
            Self::WrongMethod { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::UnsupportedType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::VersionNotReached { .. } => StatusCode::CONFLICT,
            Self::Unread(error) | Self::Other(error) => error.status(),
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_temporary(&self) -> bool {
        self.status() == StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Method and URL of a request. The response to an error repeats them.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    method: Method,
    url: Uri,
}

impl Asked {
    /// The request with this head.
    pub fn of(head: &Parts) -> Self {
        Self { method: head.method.clone(), url: head.uri.clone() }
    }

    /// The response to the request.
    pub fn respond(&self, error: &WalletError) -> Response {
        let body = WalletErrorBody {
            success: false,
            detail: "An error occurred",
            method: self.method.to_string(),
            url: self.url.to_string(),
            error: error.to_string(),
            code: error.code(),
        };
        let mut response = answer::json(error.status(), &body);
        let headers = response.headers_mut();
        if error.is_temporary() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        match error {
            WalletError::WrongMethod { allowed } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            WalletError::Unread(Error::Encoded) => {
                headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            // Bytes that arrive late would be taken for the next request.
            WalletError::Unread(Error::TooSlow) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// The body of every error response of a wallet.
#[derive(Serialize, ToSchema)]
pub(crate) struct WalletErrorBody {
    /// `false`.
    success: bool,
    /// `An error occurred`.
    detail: &'static str,
    /// The method of the request.
    method: String,
    /// The path and the query of the request.
    url: String,
    /// For people: what to change.
    error: String,
    /// For programs: a word that stays the same.
    code: &'static str,
}

/// A client's text, cut to a bearable length.
struct Echo<'a>(&'a str);

impl fmt::Display for Echo<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(ECHO_LEN_MAX) {
            None => out.write_str(self.0),
            Some((end, _)) => write!(out, "{}…", &self.0[..end]),
        }
    }
}
