//! A destination on another server: each store and each undo is a POST request, as Standard Webhooks describes it
//! (<https://www.standardwebhooks.com>).
//!
//! The request is repeated until the server responds with 2xx. Its `webhook-id` is `<key>-<attempt>-<store|undo>`, the same in
//! each repetition, and its body has the unit and the attempt. So a server can keep the register that the contract asks for, as
//! [`notices`](crate::notices) does. An undo that the server responds to with 404 or 410 counts as told: the thing is gone.
//!
//! A redirect is not followed, because the document would go to an address that was never declared. The response is read up to
//! 64 KiB. Private addresses are refused unless they are allowed: a name may resolve to any address, so the check is on the
//! address that is connected.

mod address;
mod client;
mod notice;
mod response;
mod secret;

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, USER_AGENT};
use hyper::{Request, Uri};
use serde_json::value::RawValue;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP};
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

pub use address::{Reach, is_public};
use client::Client;
pub(crate) use notice::{Action, Data, Notice};
pub use secret::Secret;

use crate::destination::{Destination, Outcome, Refusal, Unit, UnitRef};

/// A server that is told of each store and each undo.
pub struct Webhook {
    client: Client,
    uri: Uri,
    secret: Secret,
    time_out: Duration,
}

impl Webhook {
    /// The server at `url`. One request may take `time_out` in all. Connects at the first request.
    ///
    /// # Errors
    /// The URL cannot be used, for example because its address is private and `reach` does not allow that. The error says what to
    /// change.
    pub fn new(url: &Url, secret: Secret, time_out: Duration, reach: Reach) -> Result<Self> {
        check_url(url, reach)?;
        let client = client::build(url.scheme(), reach)?;
        Ok(Self { client, uri: url.as_str().parse().context("the URL cannot be used")?, secret, time_out })
    }

    async fn tell(&self, action: Action, unit: UnitRef<'_>, document: Option<&[u8]>) -> Result<(), Refusal> {
        let deadline = Instant::now() + self.time_out;
        let request = self.request(action, unit, document)?;
        let Ok(response) = timeout_at(deadline, self.client.request(request)).await else {
            return Err(Refusal::new(504, format!("no response within {:?}", self.time_out)));
        };
        match response {
            Ok(response) => response::understand(response, deadline).await,
            Err(error) => {
                // Without a connection the request was not sent.
                let is_clear = error.is_connect();
                let reason = format!("the server cannot be reached: {:#}", anyhow::Error::new(error));
                Err(Refusal { is_clear, ..Refusal::new(502, reason) })
            }
        }
    }

    fn request(
        &self,
        action: Action,
        unit: UnitRef<'_>,
        document: Option<&[u8]>,
    ) -> Result<Request<Full<Bytes>>, Refusal> {
        let document: Option<&RawValue> = document
            .map(serde_json::from_slice)
            .transpose()
            .map_err(|error| Refusal::new(400, format!("the document is not JSON: {error}")))?;
        let internal = |error: anyhow::Error| Refusal::new(500, format!("the request cannot be built: {error:#}"));
        let body = serde_json::to_vec(&Notice::new(action, unit, document)).map_err(|error| internal(error.into()))?;
        // Without a full stop, which separates the id from the time in the text that is signed.
        let id = format!("{}-{}-{}", unit.key, unit.attempt, action.name());
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let signature = self.secret.0.sign(&id, now_s, &body).map_err(|error| internal(error.into()))?;
        Request::post(self.uri.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("rocket-rides-log/", env!("CARGO_PKG_VERSION")))
            .header(HEADER_WEBHOOK_ID, id)
            .header(HEADER_WEBHOOK_TIMESTAMP, now_s)
            .header(HEADER_WEBHOOK_SIGNATURE, signature)
            .body(Full::from(body))
            .map_err(|error| internal(error.into()))
    }
}

/// Whether a webhook can have this URL, as far as its text says.
///
/// # Errors
/// As [`Webhook::new`].
pub fn check_url(url: &Url, reach: Reach) -> Result<()> {
    ensure!(matches!(url.scheme(), "http" | "https"), "give a URL that begins with http:// or https://");
    ensure!(url.username().is_empty() && url.password().is_none(), "leave the password out of the URL");
    ensure!(url.fragment().is_none(), "leave the part from # on out of the URL");
    let address = match url.host() {
        Some(Host::Ipv4(address)) => Some(address.into()),
        Some(Host::Ipv6(address)) => Some(address.into()),
        Some(Host::Domain(_)) | None => None,
    };
    ensure!(
        address.is_none_or(|address| reach.allows(address)),
        "the address is private: give a public one, or set allow_private = true"
    );
    Ok(())
}

impl Destination for Webhook {
    fn store<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            match self.tell(Action::Store, unit.reference(), Some(&unit.document)).await {
                Ok(()) => Outcome::Stored,
                Err(refusal) => Outcome::Failed(refusal),
            }
        })
    }

    fn undo<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            match self.tell(Action::Undo, unit, None).await {
                Err(Refusal { status: 404 | 410, .. }) => Ok(()),
                told => told,
            }
        })
    }

    fn forget<'a>(&'a self, _: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        // The register is the server's own.
        Box::pin(async { Ok(()) })
    }
}
