//! How a request becomes an operation: six functions, each with a default.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use jiff::Timestamp;

use crate::error::Error;
use crate::headers::{self, Invalid};
use crate::operation::Operation;

/// How long a claim holds by default: longer than any request should take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// How long an operation may be done by default. Clients expect a key to be remembered for a day.
const DEFAULT_EXPIRATION: Duration = Duration::from_secs(24 * 3600);

type Setting<T> = Option<Arc<dyn Fn(&Parts) -> Result<T, Invalid> + Send + Sync>>;
type PayloadSetting = Option<Arc<dyn Fn(&Parts, &Bytes) -> Result<Vec<u8>, Invalid> + Send + Sync>>;

/// How a request becomes an operation. A function that is not set is taken from the settings below, or is the default.
#[derive(Clone, Default)]
pub struct Settings {
    key: Setting<Option<String>>,
    target: Setting<String>,
    payload: PayloadSetting,
    reference_time: Setting<Option<Timestamp>>,
    timeout: Setting<Option<Duration>>,
    expiration: Setting<Option<Duration>>,
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

    /// The action and its user. Default: `[METHOD]/path`. A service with several users should name the user too, or a user
    /// could read the response to another user by guessing a key.
    #[must_use]
    pub fn target(mut self, target: impl Fn(&Parts) -> Result<String, Invalid> + Send + Sync + 'static) -> Self {
        self.target = Some(Arc::new(target));
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

    /// How long a claim holds; `None`: for ever. Default: the header `X-Idempotency-Timeout`, or 90 s.
    #[must_use]
    pub fn timeout(
        mut self,
        timeout: impl Fn(&Parts) -> Result<Option<Duration>, Invalid> + Send + Sync + 'static,
    ) -> Self {
        self.timeout = Some(Arc::new(timeout));
        self
    }

    /// How long after the reference time the operation may be done; `None`: for ever, and it is never deleted.
    /// Default: the header `X-Idempotency-Expiration`, or 24 hours.
    #[must_use]
    pub fn expiration(
        mut self,
        expiration: impl Fn(&Parts) -> Result<Option<Duration>, Invalid> + Send + Sync + 'static,
    ) -> Self {
        self.expiration = Some(Arc::new(expiration));
        self
    }

    /// These settings, with `shared` in place of each function that is not set.
    #[must_use]
    pub fn over(self, shared: &Self) -> Self {
        Self {
            key: self.key.or_else(|| shared.key.clone()),
            target: self.target.or_else(|| shared.target.clone()),
            payload: self.payload.or_else(|| shared.payload.clone()),
            reference_time: self.reference_time.or_else(|| shared.reference_time.clone()),
            timeout: self.timeout.or_else(|| shared.timeout.clone()),
            expiration: self.expiration.or_else(|| shared.expiration.clone()),
        }
    }

    pub(crate) fn key_of(&self, parts: &Parts) -> Result<Option<String>, Invalid> {
        self.key.as_ref().map_or_else(|| headers::key(&parts.headers), |key| key(parts))
    }

    pub(crate) fn operation_of(&self, key: String, parts: &Parts, body: &Bytes) -> Result<Operation, Invalid> {
        let headers = &parts.headers;
        let target = match &self.target {
            Some(target) => target(parts)?,
            None => format!("[{}]{}", parts.method, parts.uri.path()),
        };
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
            None => headers::timeout(headers)?.unwrap_or(Some(DEFAULT_TIMEOUT)),
        };
        let expiration = match &self.expiration {
            Some(expiration) => expiration(parts)?,
            None => headers::expiration(headers)?.unwrap_or(Some(DEFAULT_EXPIRATION)),
        };
        let operation = Operation { target, key, payload, reference_time, timeout, expiration };
        operation.check().map_err(|error: Error| Invalid(error.to_string()))?;
        Ok(operation)
    }
}
