//! The client: makes charges and customers by Stripe's HTTP API. The caller chooses an idempotency key and keeps it: any number
//! of requests with this key, after any error and from any process, charge once.

use std::error::Error;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

use crate::args::{StripeArgs, parse_base};
use crate::paths::{CHARGES, CUSTOMERS};

/// How long a charge may take, from connecting to the last byte of the response. Stripe usually responds within a second.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long connecting may take. It is a part of [`ANSWER_WAIT`].
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// The longest response that is read, in bytes. A charge has some 3000.
const ANSWER_LEN_MAX: usize = 256 * 1024;

/// The longest idempotency key that Stripe accepts, in bytes.
pub(crate) const IDEMPOTENCY_KEY_LEN_MAX: usize = 255;

/// A charge to be made.
#[derive(Debug, Clone, Copy)]
pub struct Charge<'a> {
    /// In the currency's smallest unit, cents for usd. Stripe accepts 50 and more.
    pub amount_cents: i64,
    /// Three letters, for example `usd`.
    pub currency: &'a str,
    /// The customer's id, for example `cus_good`.
    pub customer: &'a str,
    /// The text on the account, for example `Charge for ride 12`.
    pub description: &'a str,
    /// 1 to 255 visible characters, the same in each attempt and in no other charge. Stripe keeps it for at least 24 hours;
    /// a retry after that may charge again.
    pub idempotency_key: &'a str,
}

/// Why a charge was not made, or may not have been made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// The card was declined. This is final: Stripe gives the same response to every retry with this key.
    #[error("declined: {message}")]
    Declined {
        /// Stripe's words, for people: `Your card was declined.`
        message: String,
    },
    /// The request or the key is wrong. Nothing was charged. A retry helps only after an operator has corrected the settings:
    /// the error says nothing about the card.
    #[error("refused: {message}")]
    Refused {
        /// The reason, for operators.
        message: String,
    },
    /// There was no usable response. The charge may have been made or not: retry with the same key.
    #[error("payments unavailable: {message}")]
    Unavailable {
        /// The cause, for operators.
        message: String,
    },
}

/// A pool of connections to Stripe. Clones share it.
#[derive(Clone)]
pub struct Stripe {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    bearer: HeaderValue,
    answer_wait: Duration,
}

impl Stripe {
    /// A client that waits 10 s for a response. It connects on first use.
    ///
    /// # Errors
    /// There is no key, or no certificate authority to verify an https server with. The error names the setting.
    pub fn new(args: &StripeArgs) -> Result<Self> {
        Self::with_answer_wait(args, ANSWER_WAIT)
    }

    /// As [`new`](Self::new), with another wait for a response.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_answer_wait(args: &StripeArgs, answer_wait: Duration) -> Result<Self> {
        let base = parse_base(&args.stripe_api_base).map_err(anyhow::Error::msg).context("bad STRIPE_API_BASE")?;
        let key = args.key().context(
            "need STRIPE_API_KEY: set it in the environment or pass --stripe-api-key (our payments server takes any \
             that begins with sk_test_)",
        )?;
        let mut bearer = HeaderValue::try_from(format!("Bearer {key}")).context("bad STRIPE_API_KEY")?;
        bearer.set_sensitive(true);
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector(&base)?);
        Ok(Self { client, base, bearer, answer_wait })
    }

    /// Charges a customer's card. Returns the charge's id, for example `ch_3PqJ0s2eZvKYlo2C`.
    ///
    /// # Errors
    /// Only [`ChargeError::Declined`] is final. After any other error, retry later with the same key.
    pub async fn charge(&self, charge: &Charge<'_>) -> Result<String, ChargeError> {
        let amount = charge.amount_cents.to_string();
        let form = [
            ("amount", amount.as_str()),
            ("currency", charge.currency),
            ("customer", charge.customer),
            ("description", charge.description),
        ];
        self.post(CHARGES, &form, charge.idempotency_key).await
    }

    /// Creates a customer who pays with `source`, for example `tok_visa`. Returns its id, for example `cus_9s6XKzkNRi`.
    ///
    /// # Errors
    /// As [`charge`](Self::charge).
    pub async fn create_customer(
        &self,
        email: &str,
        source: &str,
        idempotency_key: &str,
    ) -> Result<String, ChargeError> {
        self.post(CUSTOMERS, &[("email", email), ("source", source)], idempotency_key).await
    }

    /// Every charge that was made and not declined, the newest first.
    ///
    /// # Errors
    /// There was no usable response.
    pub async fn charges(&self) -> Result<Vec<Charged>> {
        let mut charges: Vec<Charged> = Vec::new();
        loop {
            let after = charges.last().map_or_else(String::new, |last| format!("&starting_after={}", last.id));
            let request = Request::get(format!("{}{CHARGES}?limit=100{after}", self.base))
                .header(AUTHORIZATION, self.bearer.clone())
                .body(Full::default())?;
            let answer = tokio::time::timeout(self.answer_wait, self.exchange(request)).await;
            let (status, body) = answer.with_context(|| format!("no answer from {}", self.base))??;
            ensure!(status.is_success(), "reading charges: HTTP {status}");
            let page: Page = serde_json::from_slice(&body).context("reading charges")?;
            charges.extend(page.data);
            if !page.has_more {
                charges.retain(|charge| charge.paid);
                return Ok(charges);
            }
        }
    }

    async fn post(&self, path: &str, form: &[(&str, &str)], idempotency_key: &str) -> Result<String, ChargeError> {
        let refused = |error: &dyn Error| ChargeError::Refused { message: format!("bad request: {error}") };
        // Stripe accepts a request without a key too, and then every retry would charge again.
        if idempotency_key.is_empty() || idempotency_key.len() > IDEMPOTENCY_KEY_LEN_MAX {
            return Err(ChargeError::Refused { message: "an idempotency key has 1 to 255 characters".to_owned() });
        }
        let body = serde_urlencoded::to_string(form).map_err(|error| refused(&error))?;
        let request = Request::post(format!("{}{path}", self.base))
            .header(AUTHORIZATION, self.bearer.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header("idempotency-key", idempotency_key)
            .body(Full::from(body))
            .map_err(|error| refused(&error))?;
        let (status, body) = match tokio::time::timeout(self.answer_wait, self.exchange(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(ChargeError::Unavailable { message: format!("{error:#}") }),
            Err(_) => {
                let message = format!("no answer from {} within {:?}", self.base, self.answer_wait);
                return Err(ChargeError::Unavailable { message });
            }
        };
        understand(status, &body)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
        let response = self.client.request(request).await.with_context(|| format!("asking {}", self.base))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed).with_context(|| format!("reading from {}", self.base))?;
        Ok((status, body.to_bytes()))
    }
}

/// A charge, as Stripe lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Charged {
    /// For example `ch_3PqJ0s2eZvKYlo2C`.
    pub id: String,
    /// In the currency's smallest unit.
    pub amount: i64,
    /// Three letters, for example `usd`.
    pub currency: String,
    /// The customer who was charged.
    pub customer: Option<String>,
    /// The description in the request.
    pub description: Option<String>,
    /// Whether the charge was paid.
    pub paid: bool,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Charged>,
    has_more: bool,
}

/// The relevant part of a response: the id of the charge or customer, or else the error.
#[derive(Deserialize)]
struct Reply {
    id: Option<String>,
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

fn understand(status: StatusCode, body: &[u8]) -> Result<String, ChargeError> {
    let problem = match serde_json::from_slice(body) {
        Ok(Reply { id: Some(id), .. }) if status.is_success() => return Ok(id),
        Ok(Reply { error: Some(problem), .. }) => problem,
        // Stripe does not send such a response, so its status means nothing: the 402 of a proxy must not end a ride.
        _ => return Err(ChargeError::Unavailable { message: format!("HTTP {status}, and not in Stripe's words") }),
    };
    let is_declined = problem.kind.as_deref() == Some("card_error") || problem.code.as_deref() == Some("card_declined");
    let message = problem.message.unwrap_or_else(|| format!("HTTP {status}"));
    Err(match status.as_u16() {
        400..=499 if is_declined => ChargeError::Declined { message },
        // A 402 without the word "declined" is not from Stripe.
        402 | 408 | 409 | 429 => ChargeError::Unavailable { message },
        400..=499 => ChargeError::Refused { message },
        _ => ChargeError::Unavailable { message },
    })
}

fn connector(base: &str) -> Result<HttpsConnector<HttpConnector>> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_WAIT));
    let config = if base.starts_with("https:") {
        connect::tls::client_config()?
    } else {
        // This configuration is never used.
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
        let builder = builder.with_safe_default_protocol_versions().context("preparing TLS")?;
        builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    };
    let builder = HttpsConnectorBuilder::new().with_tls_config(config);
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}
