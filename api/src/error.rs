//! Every error of a request, as the client sees it. No text of the database leaves the process.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use group::Refusal;
use pglog::UnknownPartition;
use web::ErrorResponse;

use crate::paths::{DOCS, HISTORY, RIDE, RIDES, TOTALS, WALLET, WALLETS};

/// How a client shows who it is: the bare address of a user, which is no scheme of a standard.
pub(crate) const CHALLENGE: &str = r#"Email realm="rides""#;

/// The `Retry-After` of a payment that is pending.
const PENDING_WAIT_S: u64 = 30;

/// An error of a request. Its text says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No distance was given.
    #[error("Please specify parameter 'distance'.")]
    DistanceMissing,
    /// The distance is not a number.
    #[error("Parameter 'distance' must be a floating-point number.")]
    DistanceNotANumber,
    /// The distance is negative, zero or absurdly long.
    #[error("Parameter 'distance' must be at least 0.001 and at most 1000000000 metres.")]
    DistanceOutOfRange,
    /// A parameter of a booked ride was not given.
    #[error("Please specify parameter '{0}'.")]
    ParameterMissing(&'static str),
    /// A coordinate is not a number.
    #[error("Parameter '{0}' must be a floating-point number.")]
    NotANumber(&'static str),
    /// A latitude is beyond a pole.
    #[error("Parameter '{0}' must be a valid latitude coordinate.")]
    NotALatitude(&'static str),
    /// A longitude is beyond the date line.
    #[error("Parameter '{0}' must be a valid longitude coordinate.")]
    NotALongitude(&'static str),
    /// A parameter is neither true nor false.
    #[error("Parameter '{0}' must be a boolean.")]
    NotABoolean(&'static str),
    /// A booked ride needs a user.
    #[error("Please specify credentials in the Authorization header.")]
    CredentialsMissing,
    /// The user is unknown.
    #[error("Credentials in Authorization were invalid.")]
    CredentialsInvalid,
    /// A booked ride needs a key.
    #[error("Please specify an idempotency key with the Idempotency-Key header.")]
    KeyMissing,
    /// The header has no value, and the request needs no key.
    #[error("Idempotency-Key is empty: give it a value, or leave the header out.")]
    KeyEmpty,
    /// A key as short as this is likely to be used twice.
    #[error("Idempotency-Key must be at least {min} characters long.")]
    KeyTooShort {
        /// The bound, in characters.
        min: usize,
    },
    /// The key is longer than a stored key may be.
    #[error("Idempotency-Key must be at most {max} characters long.")]
    KeyTooLong {
        /// The bound, in characters.
        max: usize,
    },
    /// The header was sent several times, or its value is not text.
    #[error("Idempotency-Key must be given once, in printable ASCII characters, with or without quotes.")]
    KeyMalformed,
    /// The key was used for another ride.
    #[error(
        "There was a mismatch between this request's parameters and the parameters of a previously stored request with \
         the same Idempotency-Key."
    )]
    KeyMismatch,
    /// The first request with this key is still in progress.
    #[error("An API request with the same Idempotency-Key is already in progress.")]
    KeyInProgress,
    /// The first request with this key was sent so long ago that going on might charge twice.
    #[error("The first request with this Idempotency-Key is too old to go on with. Please contact support.")]
    KeyExpired,
    /// Concurrent requests were in conflict. Nothing is lost.
    #[error("Conflict detected with a concurrent request. Please retry with the same Idempotency-Key.")]
    Conflict,
    /// The payment processor is away or slow. The ride is kept; a retry of the request charges it, once.
    #[error("Error from payment processor. Please contact support.")]
    Processor {
        /// When the processor may be asked again.
        retry_after_s: u64,
    },
    /// The processor has the charge, and has not decided yet.
    #[error(
        "The payment is pending at the payment processor. Please retry later with the same Idempotency-Key: you are not \
         charged twice."
    )]
    PaymentPending,
    /// The processor refuses for a reason that has nothing to do with the card, such as a bad key.
    #[error(
        "The payment processor refuses to charge for this ride. A retry helps only after an operator has looked. Please \
         contact support."
    )]
    ProcessorRefused,
    /// A booking failed. A retry of the request continues where it stopped.
    #[error(
        "Internal server error. Please retry the request periodically with the same Idempotency-Key until it succeeds."
    )]
    BookingFailed,
    /// No payment processor is set up.
    #[error("Rides cannot be booked here, because no payment processor is set up (STRIPE_API_KEY).")]
    BookingsOff,
    /// A parameter of the query string cannot be used.
    #[error("Parameter '{name}' must be {wanted}.")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// The values that it may have.
        wanted: &'static str,
    },
    /// The query string has a parameter that this route does not have.
    #[error("The query string has an unknown parameter: here is only {known}.")]
    ParameterUnknown {
        /// The parameters that the route has.
        known: &'static str,
    },
    /// The log lacks the partition.
    #[error("Parameter 'partition': {0}.")]
    PartitionUnknown(UnknownPartition),
    /// The body does not match its content type.
    #[error("{0}")]
    Malformed(String),
    /// The body is larger than a ride needs.
    #[error("The body is too large: at most {max} bytes are read.")]
    TooLarge {
        /// The bound, in bytes.
        max: usize,
    },
    /// The body did not arrive in time.
    #[error("The body did not arrive in time. Send it at once.")]
    TooSlow,
    /// The body is neither a form nor JSON.
    #[error("Send the body as application/x-www-form-urlencoded or as application/json.")]
    UnsupportedType,
    /// The body is compressed.
    #[error("Send the body as it is, without Content-Encoding: it is not decompressed.")]
    Encoded,
    /// The path is unknown.
    #[error(
        "There is nothing at this path. Try POST {RIDES}, GET {RIDES}, GET {RIDE}, POST {WALLETS}, GET {WALLET}, GET {TOTALS}, \
         GET {HISTORY} or GET {DOCS}."
    )]
    NoSuchPath,
    /// No ride has this id.
    #[error("There is no ride with this id.")]
    NoSuchRide,
    /// The history lacks the next records, and has later ones.
    #[error("The history lacks the records {first} to {last}. Continue with after={last}.")]
    RecordsMissing {
        /// The first missing offset.
        first: i64,
        /// The last missing offset.
        last: i64,
    },
    /// The path exists, but not for this method.
    #[error("This path does not support that method; the Allow header lists those it does.")]
    WrongMethod,
    /// Too many requests are waiting. This one was not begun.
    #[error("Too many requests are waiting. This one was not accepted; please retry.")]
    Overloaded,
    /// Too many clients watch the history.
    #[error("Too many clients watch the history. Please retry later, or read pages.")]
    TooManyWatchers,
    /// Postgres is away, or did not respond in time. The ride may have been written: the connection may have been lost after
    /// COMMIT.
    #[error("The service is temporarily unavailable. Please retry.")]
    Unavailable,
    /// Another session holds a wallet of the command. Nothing was written.
    #[error("The wallet is in use by another session. Nothing was written; please retry.")]
    WalletBusy,
    /// The connection was lost at COMMIT, and the api could not find out whether the event was written.
    #[error(
        "Whether the event was written is unknown. With an Idempotency-Key please retry; without one look at the wallet's \
         transactions first."
    )]
    OutcomeUnknown,
    /// A bug, or a statement that Postgres refuses.
    #[error("Internal server error.")]
    Internal,
}

impl Error {
    /// The error of a request that a queue refused, or `if_lost` if its writing task died.
    pub(crate) fn of_refusal(refusal: Refusal, if_lost: Self) -> Self {
        match refusal {
            Refusal::Overloaded => Self::Overloaded,
            Refusal::Closed => Self::Unavailable,
            Refusal::Lost => if_lost,
        }
    }

    /// A stable word for programs; the sentence is for people.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::DistanceMissing => "distance_missing",
            Self::DistanceNotANumber => "distance_not_a_number",
            Self::DistanceOutOfRange => "distance_out_of_range",
            Self::Parameter { .. } => "parameter_invalid",
            Self::ParameterUnknown { .. } => "parameter_unknown",
            Self::PartitionUnknown(_) => "partition_unknown",
            Self::ParameterMissing(_) => "parameter_missing",
            Self::NotANumber(_) => "not_a_number",
            Self::NotALatitude(_) => "not_a_latitude",
            Self::NotALongitude(_) => "not_a_longitude",
            Self::NotABoolean(_) => "not_a_boolean",
            Self::CredentialsMissing => "credentials_missing",
            Self::CredentialsInvalid => "credentials_invalid",
            Self::KeyMissing => "idempotency_key_missing",
            Self::KeyEmpty => "idempotency_key_empty",
            Self::KeyTooShort { .. } => "idempotency_key_too_short",
            Self::KeyTooLong { .. } => "idempotency_key_too_long",
            Self::KeyMalformed => "idempotency_key_malformed",
            Self::KeyMismatch => "idempotency_key_mismatch",
            Self::KeyInProgress => "idempotency_key_in_progress",
            Self::KeyExpired => "idempotency_key_expired",
            Self::Conflict => "conflict",
            Self::Processor { .. } => "processor_unavailable",
            Self::PaymentPending => "payment_pending",
            Self::ProcessorRefused => "processor_refused",
            Self::BookingFailed => "booking_failed",
            Self::BookingsOff => "bookings_off",
            Self::Malformed(_) => "body_malformed",
            Self::TooLarge { .. } => "body_too_large",
            Self::TooSlow => "body_too_slow",
            Self::UnsupportedType => "content_type_unsupported",
            Self::Encoded => "content_encoding_unsupported",
            Self::NoSuchPath => "path_unknown",
            Self::NoSuchRide => "ride_unknown",
            Self::RecordsMissing { .. } => "records_missing",
            Self::WrongMethod => "method_not_allowed",
            Self::Overloaded => "overloaded",
            Self::TooManyWatchers => "too_many_watchers",
            Self::Unavailable => "unavailable",
            Self::WalletBusy => "wallet_busy",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(self, Self::KeyInProgress | Self::Conflict) || self.status() == StatusCode::SERVICE_UNAVAILABLE
    }

    /// When a retry may succeed, if that is not soon.
    fn retry_after_s(&self) -> Option<u64> {
        match self {
            Self::Processor { retry_after_s } => Some(*retry_after_s),
            Self::PaymentPending => Some(PENDING_WAIT_S),
            _ => None,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::DistanceMissing
            | Self::DistanceNotANumber
            | Self::DistanceOutOfRange
            | Self::Parameter { .. }
            | Self::ParameterUnknown { .. }
            | Self::ParameterMissing(_)
            | Self::NotANumber(_)
            | Self::NotALatitude(_)
            | Self::NotALongitude(_)
            | Self::NotABoolean(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::CredentialsMissing | Self::CredentialsInvalid => StatusCode::UNAUTHORIZED,
            Self::Malformed(_)
            | Self::KeyMissing
            | Self::KeyEmpty
            | Self::KeyTooShort { .. }
            | Self::KeyTooLong { .. }
            | Self::KeyMalformed => StatusCode::BAD_REQUEST,
            Self::KeyMismatch | Self::KeyInProgress | Self::Conflict => StatusCode::CONFLICT,
            Self::KeyExpired | Self::RecordsMissing { .. } => StatusCode::GONE,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::UnsupportedType | Self::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoSuchPath | Self::NoSuchRide | Self::PartitionUnknown(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::Overloaded
            | Self::TooManyWatchers
            | Self::Unavailable
            | Self::WalletBusy
            | Self::OutcomeUnknown
            | Self::Processor { .. }
            | Self::PaymentPending
            | Self::BookingsOff => StatusCode::SERVICE_UNAVAILABLE,
            Self::ProcessorRefused => StatusCode::BAD_GATEWAY,
            Self::Internal | Self::BookingFailed => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code, is_temporary) = (self.status(), self.code(), self.is_temporary());
        let error = ErrorResponse { status, code, error: self.to_string().into(), is_temporary };
        let mut response = error.into_response();
        let advice = match self {
            Self::CredentialsMissing | Self::CredentialsInvalid => Some((header::WWW_AUTHENTICATE, CHALLENGE)),
            Self::Encoded => Some((header::ACCEPT_ENCODING, "identity")),
            _ => None,
        };
        response.headers_mut().extend(advice.map(|(name, value)| (name, HeaderValue::from_static(value))));
        if let Some(retry_after_s) = self.retry_after_s() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        response
    }
}
