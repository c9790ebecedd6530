//! The client: makes and finds charges by Stripe's HTTP API. The caller chooses an idempotency key and keeps it: any number
//! of requests with this key, after any error and from any process, charge once.

use std::error::Error;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Builder;
use hyper::{Method, Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use monitor::{counter, declare_counter, describe_histogram, histogram};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::{debug, warn};

use crate::args::{StripeArgs, parse_base};
use crate::charge::{ChargeError, ChargeForm, ChargeState, Charged};
use crate::outcome::Heard;
use crate::paths::{CHARGES, CUSTOMERS};

/// The version of Stripe's API that this client was written for. Without it, Stripe would answer in the version that the
/// account was opened with.
const API_VERSION: &str = "2024-06-20";

/// The metrics, and the outcome of a charge that is paid.
const REQUESTS: &str = "rocket_rides_processor_requests_total";
const SECONDS: &str = "rocket_rides_processor_seconds";
const PAID: &str = "paid";

/// How long the search for one charge may take. It is a part of the time that a booking has.
const FIND_WAIT: Duration = Duration::from_secs(45);

/// No charge is older: the autumn of 2017, in seconds since 1970. localstripe refuses earlier times.
const SINCE_MIN_S: i64 = 1_510_000_000;

/// How long a charge may take, from connecting to the last byte of the response. Stripe usually responds within a second.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long connecting may take. It is a part of [`ANSWER_WAIT`].
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// The longest response that is read, in bytes. A charge has some 3000, and a page has a hundred.
const ANSWER_LEN_MAX: usize = 2 << 20;

/// The longest idempotency key that Stripe accepts, in bytes.
pub(crate) const IDEMPOTENCY_KEY_LEN_MAX: usize = 255;

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

    /// Charges a customer's card, under a key that is the same in each attempt and in no other charge: 1 to 255 visible
    /// characters. Returns a charge that is paid. Stripe keeps the key for at least 24 hours; a retry after that may charge
    /// again.
    ///
    /// # Errors
    /// Only [`ChargeError::Declined`] is final. After any other error, retry later with the same key.
    pub async fn charge(&self, form: &ChargeForm, idempotency_key: &str) -> Result<Charged, ChargeError> {
        let began = Instant::now();
        let charged = self.charge_unmeasured(form, idempotency_key).await;
        let outcome = charged.as_ref().map_or_else(ChargeError::outcome, |_| PAID);
        counter!(REQUESTS, "outcome" => outcome).increment(1);
        histogram!(SECONDS).record(began.elapsed().as_secs_f64());
        charged
    }

    async fn charge_unmeasured(&self, form: &ChargeForm, idempotency_key: &str) -> Result<Charged, ChargeError> {
        let charged: Charged = self.post(CHARGES, form, idempotency_key).await?;
        match charged.state() {
            // A retry gets the response of the first request, whatever has become of the charge.
            ChargeState::Pending => self.get(&format!("{CHARGES}/{}", charged.id), &[]).await,
            ChargeState::Paid | ChargeState::Failed => Ok(charged),
        }
        .and_then(Charged::if_paid)
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
        #[derive(Deserialize)]
        struct Created {
            id: String,
        }
        let form = ChargeForm::from([("email", email), ("source", source)]);
        let Created { id } = self.post(CUSTOMERS, &form, idempotency_key).await?;
        Ok(id)
    }

    /// The charge of this id. `None`: there is none.
    ///
    /// # Errors
    /// There was no usable response.
    pub async fn show(&self, charge_id: &str) -> Result<Option<Charged>, ChargeError> {
        let (heard, _) = self.ask(self.request(Method::GET, &format!("{CHARGES}/{charge_id}"))).await?;
        if heard.status == StatusCode::NOT_FOUND { Ok(None) } else { heard.understand().map(Some) }
    }

    /// The charges that were made after `since_s` (seconds since 1970), of one customer or of all; the newest first, a page at
    /// a time. `after` is the last charge of the page before.
    ///
    /// # Errors
    /// There was no usable response.
    pub async fn page(
        &self,
        customer: Option<&str>,
        since_s: i64,
        after: Option<&Charged>,
    ) -> Result<ChargePage, ChargeError> {
        // A list shows each charge at once. Stripe's search does so a minute later, or more.
        let since_s = since_s.max(SINCE_MIN_S).to_string();
        let mut query = vec![("limit", "100"), ("created[gt]", since_s.as_str())];
        query.extend(customer.map(|customer| ("customer", customer)));
        query.extend(after.map(|after| ("starting_after", after.id.as_str())));
        self.get(CHARGES, &query).await
    }

    /// The charge that was made with this form after `since_s`. Looks at every charge of the customer since then; a charge
    /// that is paid comes before others. `None`: there certainly is none.
    ///
    /// # Errors
    /// [`ChargeError::Refused`] if the form has no key to look for. [`ChargeError::Unavailable`] if there was no usable
    /// response, or if there are too many charges to look at.
    pub async fn find(&self, form: &ChargeForm, since_s: i64) -> Result<Option<Charged>, ChargeError> {
        let Some(charge_key) = form.charge_key() else {
            let message = "the charge has no charge_key in its metadata, so it cannot be looked for".to_owned();
            return Err(ChargeError::Refused { message });
        };
        let finding = async {
            let (mut found, mut last) = (None::<Charged>, None);
            loop {
                let ChargePage { data, has_more } = self.page(form.field("customer"), since_s, last.as_ref()).await?;
                last = data.last().cloned();
                for charged in data.into_iter().filter(|charged| charged.charge_key() == Some(charge_key)) {
                    if charged.is_paid() {
                        return Ok(Some(charged));
                    }
                    // A charge that may still be paid says more than one that has failed.
                    if found.as_ref().is_none_or(|found| found.state() == ChargeState::Failed) {
                        found = Some(charged);
                    }
                }
                if !has_more || last.is_none() {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(FIND_WAIT, finding).await.unwrap_or_else(|_| {
            let message = format!("the customer's charges could not be read within {FIND_WAIT:?}");
            Err(ChargeError::Unavailable { message })
        })
    }

    /// Every paid charge, the newest first.
    ///
    /// # Errors
    /// There was no usable response.
    pub async fn charges(&self) -> Result<Vec<Charged>, ChargeError> {
        let mut charges: Vec<Charged> = Vec::new();
        loop {
            let page = self.page(None, 0, charges.last()).await?;
            charges.extend(page.data);
            if !page.has_more {
                charges.retain(Charged::is_paid);
                return Ok(charges);
            }
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, ChargeError> {
        let query = serde_urlencoded::to_string(query).map_err(|error| bad_request(&error))?;
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let (heard, _) = self.ask(self.request(Method::GET, &path)).await?;
        heard.understand()
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &ChargeForm,
        idempotency_key: &str,
    ) -> Result<T, ChargeError> {
        // Stripe accepts a request without a key too, and then every retry would charge again.
        if idempotency_key.is_empty() || idempotency_key.len() > IDEMPOTENCY_KEY_LEN_MAX {
            return Err(ChargeError::Refused { message: "an idempotency key has 1 to 255 characters".to_owned() });
        }
        let body = serde_urlencoded::to_string(form).map_err(|error| bad_request(&error))?;
        let request = self
            .request(Method::POST, path)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header("idempotency-key", idempotency_key);
        let (heard, elapsed) = self.ask_with(request, Full::from(body)).await?;
        let (status, elapsed_ms) = (heard.status.as_u16(), elapsed.as_millis() as u64);
        let request_id = heard.request_id().unwrap_or("none");
        match heard.understand() {
            Ok(object) => {
                debug!(path, key = idempotency_key, status, request_id, elapsed_ms, "the processor answered");
                Ok(object)
            }
            Err(error) => {
                let outcome = error.outcome();
                warn!(
                    path,
                    key = idempotency_key,
                    status,
                    request_id,
                    elapsed_ms,
                    outcome,
                    error = %error,
                    "the processor answered with an error"
                );
                Err(error)
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(AUTHORIZATION, self.bearer.clone())
            .header("stripe-version", API_VERSION)
    }

    async fn ask(&self, request: Builder) -> Result<(Heard, Duration), ChargeError> {
        self.ask_with(request, Full::default()).await
    }

    /// The response, and how long it took.
    async fn ask_with(&self, request: Builder, body: Full<Bytes>) -> Result<(Heard, Duration), ChargeError> {
        let request = request.body(body).map_err(|error| bad_request(&error))?;
        let began = Instant::now();
        match tokio::time::timeout(self.answer_wait, self.exchange(request)).await {
            Ok(Ok(heard)) => Ok((heard, began.elapsed())),
            Ok(Err(error)) => Err(ChargeError::Unavailable { message: format!("{error:#}") }),
            Err(_) => {
                let message = format!("no answer from {} within {:?}", self.base, self.answer_wait);
                Err(ChargeError::Unavailable { message })
            }
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Heard> {
        let response = self.client.request(request).await.with_context(|| format!("asking {}", self.base))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed).with_context(|| format!("reading from {}", self.base))?;
        Ok(Heard { status: parts.status, headers: parts.headers, body: body.to_bytes() })
    }
}

/// A page of charges.
#[derive(Debug, Deserialize)]
pub struct ChargePage {
    /// The charges, the newest first.
    pub data: Vec<Charged>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// Describes the metrics of the client.
pub fn describe_metrics() {
    let help = "Charges that the payment processor was asked for, by the outcome";
    for outcome in [PAID, "declined", "pending", "refused", "spent", "busy", "unavailable"] {
        declare_counter(REQUESTS, help, &[("outcome", outcome)]);
    }
    describe_histogram!(SECONDS, "The time from asking for a charge to the response");
}

fn bad_request(error: &dyn Error) -> ChargeError {
    ChargeError::Refused { message: format!("bad request: {error}") }
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
