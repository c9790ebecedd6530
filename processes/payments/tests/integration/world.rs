//! Shared by the tests: a folder and a server for each test, and plain requests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use common::shutdown::CancellationToken;
use payments::{ChargeForm, Config, GOOD_CUSTOMER, Stripe, StripeArgs};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The wait of a client for a response: long enough for a busy machine, short enough for a test of a silent server.
pub const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// A folder that is removed when the test ends.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("payments-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server under a base URL.
#[derive(Clone)]
pub struct Http {
    pub base: String,
    client: reqwest::Client,
}

/// A response with status, headers and body.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    pub status: u16,
    pub replayed: bool,
    pub body: String,
}

impl Said {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Http {
    pub fn new(base: String) -> Self {
        Self { base, client: reqwest::Client::new() }
    }

    pub async fn get(&self, path: &str) -> Said {
        let request = self.client.get(format!("{}{path}", self.base));
        said(request.header("authorization", "Bearer sk_test_any")).await.unwrap()
    }

    pub async fn post(&self, path: &str, key: Option<&str>, form: &str) -> Said {
        self.try_post(path, key, form).await.unwrap()
    }

    /// As `post`, for a server that may end before it responds.
    pub async fn try_post(&self, path: &str, key: Option<&str>, form: &str) -> Option<Said> {
        let mut request = self.client.post(format!("{}{path}", self.base)).body(form.to_owned());
        request = request.header("authorization", "Bearer sk_test_any");
        request = request.header("content-type", "application/x-www-form-urlencoded");
        // Only the planning of faults looks at it.
        request = request.header("x-fault-order", "1");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        said(request).await
    }

    /// Plans faults.
    pub async fn plan(&self, plan: &str) {
        assert_eq!(self.post("/_faults", None, plan).await.status, 200, "{plan}");
    }

    /// All charges, newest first.
    pub async fn charges(&self) -> Vec<Value> {
        let mut charges: Vec<Value> = Vec::new();
        loop {
            let after = charges.last().map(|last| format!("&starting_after={}", last["id"].as_str().unwrap()));
            let page = self.get(&format!("/v1/charges?limit=100{}", after.unwrap_or_default())).await.json();
            charges.extend_from_slice(page["data"].as_array().unwrap());
            if page["has_more"] == false {
                return charges;
            }
        }
    }

    pub fn stripe(&self) -> Stripe {
        self.stripe_that_waits(ANSWER_WAIT)
    }

    pub fn stripe_that_waits(&self, answer_wait: Duration) -> Stripe {
        Stripe::with_answer_wait(&args(&self.base), answer_wait).unwrap()
    }
}

async fn said(request: reqwest::RequestBuilder) -> Option<Said> {
    let response = request.send().await.ok()?;
    let replayed = response.headers().get("idempotent-replayed").is_some_and(|header| header == "true");
    Some(Said { status: response.status().as_u16(), replayed, body: response.text().await.ok()? })
}

/// A server in this process.
pub struct Server {
    pub http: Http,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    /// The server accepts planned faults, and draws none.
    pub async fn start(folder: &Folder) -> Self {
        Self::with(folder, &["--faults", "--fault-rate", "0"]).await
    }

    pub async fn with(folder: &Folder, flags: &[&str]) -> Self {
        let folder = ["payments", "--data", folder.path().to_str().unwrap()];
        let config = Config::parse_from(folder.iter().chain(flags));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = Http::new(format!("http://{}", listener.local_addr().unwrap()));
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(payments::serve(listener, config, shutdown.clone()));
        Self { http, shutdown, serving }
    }

    /// Stops the server as SIGTERM would. It must end before the time for work in hand (10 s) is over.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(9), self.serving).await;
        ended.expect("it does not stop by itself").unwrap().unwrap();
    }
}

pub fn args(base: &str) -> StripeArgs {
    StripeArgs { stripe_api_base: base.to_owned(), stripe_api_key: Some("sk_test_any".to_owned()) }
}

/// Twenty dollars of the good customer.
pub fn fare() -> ChargeForm {
    ChargeForm::from([
        ("amount", "2000"),
        ("currency", "usd"),
        ("customer", GOOD_CUSTOMER),
        ("description", "Charge for ride 1"),
        ("metadata[charge_key]", "key-of-ride-1"),
    ])
}
