//! A payment processor of a test's own.

use std::path::PathBuf;

use clap::Parser;
use common::shutdown::CancellationToken;
use payments::{Stripe, StripeArgs};
use serde_json::Value;
use tokio::net::TcpListener;

/// A server as Stripe is one, in this process, with a journal of its own.
pub struct Payments {
    base: String,
    folder: PathBuf,
    client: reqwest::Client,
    shutdown: CancellationToken,
}

/// Any key of this kind is taken.
const KEY: &str = "sk_test_of_the_tests";

impl Payments {
    /// Starts it.
    pub async fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("payments-{:016x}", rand::random::<u64>()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let mut payments = Self { base, folder, client: reqwest::Client::new(), shutdown: CancellationToken::new() };
        payments.serve(listener);
        payments
    }

    fn serve(&mut self, listener: TcpListener) {
        let folder = self.folder.display().to_string();
        let config = payments::Config::parse_from(["payments", "--faults", "--data", &folder]);
        let shutdown = CancellationToken::new();
        self.shutdown = shutdown.clone();
        tokio::spawn(async move { payments::serve(listener, config, shutdown).await.unwrap() });
    }

    /// Where it is.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// What a process gets to charge here.
    pub fn flags(&self) -> [&str; 4] {
        ["--stripe-api-base", &self.base, "--stripe-api-key", KEY]
    }

    /// A client of it.
    pub fn stripe(&self) -> Stripe {
        let args = StripeArgs { stripe_api_base: self.base.clone(), stripe_api_key: Some(KEY.to_owned()) };
        Stripe::new(&args).unwrap()
    }

    /// Does this to the next `count` charges: `time-out`, `error-before`, `error-after`, `slow`.
    pub async fn plan(&self, kind: &str, count: u32) {
        let body = format!("kind={kind}&count={count}&ms=300");
        let request = self.client.post(format!("{}/_faults", self.base)).bearer_auth(KEY);
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
    }

    /// All charges that stand, the newest first.
    pub async fn charges(&self) -> Vec<Value> {
        let mut charges: Vec<Value> = Vec::new();
        loop {
            let after = charges
                .last()
                .map_or_else(String::new, |last| format!("&starting_after={}", last["id"].as_str().unwrap()));
            let url = format!("{}/v1/charges?limit=100{after}", self.base);
            let page: Value = self.client.get(url).bearer_auth(KEY).send().await.unwrap().json().await.unwrap();
            charges.extend(page["data"].as_array().unwrap().iter().cloned());
            if page["has_more"] != Value::Bool(true) {
                charges.retain(|charge| charge["paid"] == Value::Bool(true));
                return charges;
            }
        }
    }
}

impl Drop for Payments {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
