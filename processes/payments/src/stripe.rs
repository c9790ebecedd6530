//! The client: charges and customers by Stripe's HTTP API. Whoever calls brings an idempotency key and keeps it: asking
//! again with the same key, after any error and from any process, charges once.

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

/// How long a charge may take, from connecting to the last byte of the answer. Stripe usually answers within a second.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long connecting may take; a part of [`ANSWER_WAIT`].
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// The longest answer that is read, in bytes. A charge has some 3000.
const ANSWER_LEN_MAX: usize = 256 * 1024;

/// The longest idempotency key that Stripe takes, in bytes.
pub(crate) const IDEMPOTENCY_KEY_LEN_MAX: usize = 255;

/// What is to be charged, to whom, and under which key.
#[derive(Debug, Clone, Copy)]
pub struct Charge<'a> {
    /// In the currency's smallest unit, cents for usd; Stripe takes 50 and more.
    pub amount_cents: i64,
    /// Three letters, for example `usd`.
    pub currency: &'a str,
    /// The customer's id, for example `cus_good`.
    pub customer: &'a str,
    /// What people read on the account, for example `Charge for ride 12`.
    pub description: &'a str,
    /// 1 to 255 visible characters, the same in each attempt and for nothing else. Stripe keeps it for 24 hours at
    /// least; a retry after that may charge again.
    pub idempotency_key: &'a str,
}

/// Why there is no charge, or why nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// The card was declined. Final: Stripe gives the same answer to every retry with this key.
    #[error("declined: {message}")]
    Declined {
        /// As Stripe words it, for people: `Your card was declined.`
        message: String,
    },
    /// The request or the key is wrong. Nothing was charged; retrying does not help until somebody mends the settings,
    /// and then it does: it says nothing about the card.
    #[error("refused: {message}")]
    Refused {
        /// What is wrong, for operators.
        message: String,
    },
    /// No answer, or none that can be used. It may have been charged or not: ask again with the same key.
    #[error("payments unavailable: {message}")]
    Unavailable {
        /// What happened, for operators.
        message: String,
    },
}

/// A connection to Stripe, or rather a pool of them; clones share it.
#[derive(Clone)]
pub struct Stripe {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    bearer: HeaderValue,
    answer_wait: Duration,
}

impl Stripe {
    /// A client that waits 10 s for an answer. Nothing is connected yet.
    ///
    /// # Errors
    /// There is no key, or no certificate authority to verify an https server with. Says what to set.
    pub fn new(args: &StripeArgs) -> Result<Self> {
        Self::with_answer_wait(args, ANSWER_WAIT)
    }

    /// As [`new`](Self::new), waiting so long for an answer.
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
    /// Only [`ChargeError::Declined`] is final. After the others, ask again later with the same key.
    pub async fn charge(&self, charge: &Charge<'_>) -> Result<String, ChargeError> {
        let amount = charge.amount_cents.to_string();
        let form = [
            ("amount", amount.as_str()),
            ("currency", charge.currency),
            ("customer", charge.customer),
            ("description", charge.description),
        ];
        self.post("/v1/charges", &form, charge.idempotency_key).await
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
        self.post("/v1/customers", &[("email", email), ("source", source)], idempotency_key).await
    }

    /// All charges that were made and not declined, the newest first.
    ///
    /// # Errors
    /// No answer, or none that can be used.
    pub async fn charges(&self) -> Result<Vec<Charged>> {
        let mut charges: Vec<Charged> = Vec::new();
        loop {
            let after = charges.last().map_or_else(String::new, |last| format!("&starting_after={}", last.id));
            let request = Request::get(format!("{}/v1/charges?limit=100{after}", self.base))
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
        // Stripe takes a request without a key too, and then every retry would charge again.
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

/// A charge, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Charged {
    /// For example `ch_3PqJ0s2eZvKYlo2C`.
    pub id: String,
    /// In the currency's smallest unit.
    pub amount: i64,
    /// Three letters, for example `usd`.
    pub currency: String,
    /// Who was charged.
    pub customer: Option<String>,
    /// As it was asked for.
    pub description: Option<String>,
    /// Whether money moved.
    pub paid: bool,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Charged>,
    has_more: bool,
}

/// All that matters of an answer: the id of what was made, or else the error.
#[derive(Deserialize)]
struct Answer {
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
        Ok(Answer { id: Some(id), .. }) if status.is_success() => return Ok(id),
        Ok(Answer { error: Some(problem), .. }) => problem,
        // Whoever says this is not Stripe, whatever the status: a proxy's 402 must not end a ride.
        _ => return Err(ChargeError::Unavailable { message: format!("HTTP {status}, and not in Stripe's words") }),
    };
    let is_declined = problem.kind.as_deref() == Some("card_error") || problem.code.as_deref() == Some("card_declined");
    let message = problem.message.unwrap_or_else(|| format!("HTTP {status}"));
    Err(match status.as_u16() {
        400..=499 if is_declined => ChargeError::Declined { message },
        // Without the word for it, somebody else's 402.
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
        // Never used.
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
        let builder = builder.with_safe_default_protocol_versions().context("preparing TLS")?;
        builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    };
    let builder = HttpsConnectorBuilder::new().with_tls_config(config);
    Ok(builder.https_or_http().enable_http1().wrap_connector(tcp))
}
