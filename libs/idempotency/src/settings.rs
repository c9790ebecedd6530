//! How a request becomes an operation, and which response ends it: functions, each with a default.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{StatusCode, response};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::headers::{self, Invalid};
use crate::operation::Operation;

/// How long a claim holds by default: longer than any request should take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// How long an operation may be done by default. Clients expect a key to be remembered for a day.
const DEFAULT_EXPIRATION: Duration = Duration::from_secs(24 * 3600);

/// The bounds of a claim that a client asks for. A shorter one would let two requests run at once; a longer one would block the
/// key for as long after a crash.
const TIMEOUT_BOUNDS: RangeInclusive<Duration> = DEFAULT_TIMEOUT..=Duration::from_secs(3600);

/// The bounds of an expiration that a client asks for. A row that never expires would stay for ever.
const EXPIRATION_BOUNDS: RangeInclusive<Duration> = DEFAULT_TIMEOUT..=Duration::from_secs(30 * 24 * 3600);

type Setting<T> = Option<Arc<dyn Fn(&Parts) -> Result<T, Invalid> + Send + Sync>>;
type Finality = Option<Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>>;
type PayloadSetting = Option<Arc<dyn Fn(&Parts, &Bytes) -> Result<Vec<u8>, Invalid> + Send + Sync>>;

/// How a request becomes an operation, and which response ends it. A function that is not set is taken from the settings below, or is the default.
#[derive(Clone, Default)]
pub struct Settings {
    key: Setting<Option<String>>,
    target: Setting<String>,
    scope: Setting<Option<String>>,
    payload: PayloadSetting,
    reference_time: Setting<Option<Timestamp>>,
    timeout: Setting<Option<Duration>>,
    expiration: Setting<Option<Duration>>,
    timeout_bounds: Option<RangeInclusive<Duration>>,
    expiration_bounds: Option<RangeInclusive<Duration>>,
    finality: Finality,
}

/// The same for every request: `Settings::default().timeout(value(Some(Duration::from_secs(10))))`.
pub fn value<T: Clone>(value: T) -> impl Fn(&Parts) -> Result<T, Invalid> {
    move |_| Ok(value.clone())
}

impl Settings {
    /// The key of the operation; `None`: the request is passed through. Default: the header `Idempotency-Key` or
    /// `X-Idempotency-Key`. This is called before the body has been read.
    #[must_use]
    pub fn key(mut self, key: impl Fn(&Parts) -> Result<Option<String>, Invalid> + Send + Sync + 'static) -> Self {
        self.key = Some(Arc::new(key));
        self
    }

    /// The action. Default: `[METHOD]/path`. It is stored and logged: put no credential into it.
    #[must_use]
    pub fn target(mut self, target: impl Fn(&Parts) -> Result<String, Invalid> + Send + Sync + 'static) -> Self {
        self.target = Some(Arc::new(target));
        self
    }

    /// The caller: two callers may choose the same key, and do not see each other's responses. `None`: all callers without a
    /// scope share their keys. The scope is stored and logged as a part of the target.
    ///
    /// Default: a hash of the header `Authorization`; `None` without the header. Set the scope to the user's id if your callers
    /// authenticate in another way (a cookie), if a retry may carry a renewed token, or if the header holds a password: a
    /// weak password can be guessed from its hash.
    #[must_use]
    pub fn scope(mut self, scope: impl Fn(&Parts) -> Result<Option<String>, Invalid> + Send + Sync + 'static) -> Self {
        self.scope = Some(Arc::new(scope));
        self
    }

    /// The part that must be the same in every retry. Default: method, URL and body, byte for byte.
    #[must_use]
    pub fn payload(
        mut self,
        payload: impl Fn(&Parts, &Bytes) -> Result<Vec<u8>, Invalid> + Send + Sync + 'static,
    ) -> Self {
        self.payload = Some(Arc::new(payload));
        self
    }

    /// The time from which the expiration counts; `None`: the time of the first request. Default: the header
    /// `X-Idempotency-Reference-Time`.
    #[must_use]
    pub fn reference_time(
        mut self,
        reference_time: impl Fn(&Parts) -> Result<Option<Timestamp>, Invalid> + Send + Sync + 'static,
    ) -> Self {
        self.reference_time = Some(Arc::new(reference_time));
        self
    }

    /// How long a claim holds; `None`: for ever. Default: the header `X-Idempotency-Timeout` within
    /// [its bounds](Self::timeout_bounds), or 90 s.
    #[must_use]
    pub fn timeout(
        mut self,
        timeout: impl Fn(&Parts) -> Result<Option<Duration>, Invalid> + Send + Sync + 'static,
    ) -> Self {
        self.timeout = Some(Arc::new(timeout));
        self
    }

    /// How long after the reference time the operation may be done; `None`: for ever, and it is never deleted.
    /// Default: the header `X-Idempotency-Expiration` within [its bounds](Self::expiration_bounds), or 24 hours.
    #[must_use]
    pub fn expiration(
        mut self,
        expiration: impl Fn(&Parts) -> Result<Option<Duration>, Invalid> + Send + Sync + 'static,
    ) -> Self {
        self.expiration = Some(Arc::new(expiration));
        self
    }

    /// The shortest and the longest claim that a client may ask for. A value outside becomes the nearest one; `0`, which means
    /// for ever, becomes the longest. Default: 90 s to an hour. The shortest must be longer than any handler takes.
    #[must_use]
    pub fn timeout_bounds(mut self, bounds: RangeInclusive<Duration>) -> Self {
        self.timeout_bounds = Some(bounds);
        self
    }

    /// The shortest and the longest expiration that a client may ask for, as [`timeout_bounds`](Self::timeout_bounds).
    /// Default: 90 s to 30 days.
    #[must_use]
    pub fn expiration_bounds(mut self, bounds: RangeInclusive<Duration>) -> Self {
        self.expiration_bounds = Some(bounds);
        self
    }

    /// Whether a response ends the operation: it is stored, and every retry receives it. After any other response a retry runs
    /// the handler again. Default: every response but 401, 403, 408, 425, 429 and 5xx, which say that the operation was not
    /// done, or leave it open.
    #[must_use]
    pub fn is_final(mut self, is_final: impl Fn(&response::Parts) -> bool + Send + Sync + 'static) -> Self {
        self.finality = Some(Arc::new(is_final));
        self
    }

    /// These settings, with `shared` in place of each function that is not set.
    #[must_use]
    pub fn over(self, shared: &Self) -> Self {
        Self {
            key: self.key.or_else(|| shared.key.clone()),
            target: self.target.or_else(|| shared.target.clone()),
            scope: self.scope.or_else(|| shared.scope.clone()),
            payload: self.payload.or_else(|| shared.payload.clone()),
            reference_time: self.reference_time.or_else(|| shared.reference_time.clone()),
            timeout: self.timeout.or_else(|| shared.timeout.clone()),
            expiration: self.expiration.or_else(|| shared.expiration.clone()),
            timeout_bounds: self.timeout_bounds.or_else(|| shared.timeout_bounds.clone()),
            expiration_bounds: self.expiration_bounds.or_else(|| shared.expiration_bounds.clone()),
            finality: self.finality.or_else(|| shared.finality.clone()),
        }
    }

    pub(crate) fn key_of(&self, parts: &Parts) -> Result<Option<String>, Invalid> {
        self.key.as_ref().map_or_else(|| headers::key(&parts.headers), |key| key(parts))
    }

    pub(crate) fn operation_of(&self, key: String, parts: &Parts, body: &Bytes) -> Result<Operation, Invalid> {
        let headers = &parts.headers;
        let mut target = match &self.target {
            Some(target) => target(parts)?,
            None => format!("[{}]{}", parts.method, parts.uri.path()),
        };
        let scope = match &self.scope {
            Some(scope) => scope(parts)?,
            None => hash_of_credential(parts),
        };
        if let Some(scope) = scope {
            // The length keeps two pairs of target and scope from being joined into the same text.
            target = format!("{target} of {}:{scope}", scope.len());
        }
        let payload = match &self.payload {
            Some(payload) => payload(parts, body)?,
            // Neither method nor URL can contain a line break, so two requests never have the same payload.
            None => [format!("{} {}\n", parts.method, parts.uri).as_bytes(), body].concat(),
        };
        let reference_time = match &self.reference_time {
            Some(reference_time) => reference_time(parts)?,
            None => headers::reference_time(headers)?,
        };
        let timeout = match &self.timeout {
            Some(timeout) => timeout(parts)?,
            None => within(headers::timeout(headers)?, DEFAULT_TIMEOUT, self.timeout_bounds.as_ref(), &TIMEOUT_BOUNDS),
        };
        let expiration = match &self.expiration {
            Some(expiration) => expiration(parts)?,
            None => {
                let asked = headers::expiration(headers)?;
                within(asked, DEFAULT_EXPIRATION, self.expiration_bounds.as_ref(), &EXPIRATION_BOUNDS)
            }
        };
        let operation = Operation { target, key, payload, reference_time, timeout, expiration };
        operation.check().map_err(|error: Error| Invalid(error.to_string()))?;
        Ok(operation)
    }

    pub(crate) fn ends(&self, response: &response::Parts) -> bool {
        self.finality.as_ref().map_or_else(|| is_final(response.status), |is_final| is_final(response))
    }
}

/// Without this, a caller could read the response to another caller by guessing a key.
fn hash_of_credential(parts: &Parts) -> Option<String> {
    let credential = parts.headers.get(AUTHORIZATION)?;
    let hash = Sha256::digest(credential.as_bytes());
    // 128 bits: no two credentials of one service share them by chance.
    Some(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// The duration that a client asked for, within these bounds. Outer `None`: it asked for none; inner `None`: for ever.
fn within(
    asked: Option<Option<Duration>>,
    default: Duration,
    bounds: Option<&RangeInclusive<Duration>>,
    default_bounds: &RangeInclusive<Duration>,
) -> Option<Duration> {
    let bounds = bounds.unwrap_or(default_bounds);
    let wanted = asked.unwrap_or(Some(default)).unwrap_or(Duration::MAX);
    Some(wanted.min(*bounds.end()).max(*bounds.start()))
}

fn is_final(status: StatusCode) -> bool {
    let is_open = matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_EARLY
            | StatusCode::TOO_MANY_REQUESTS
    );
    !is_open && !status.is_server_error()
}
