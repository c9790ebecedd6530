//! A payment processor for one test.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use common::shutdown::CancellationToken;
use payments::{Charged, Stripe, StripeArgs};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::process::{Process, binary};

/// A server that answers as Stripe does, with a journal of its own. It runs in the test's process or in a process of its own.
pub struct Payments {
    base: String,
    folder: PathBuf,
    client: reqwest::Client,
    shutdown: CancellationToken,
}

/// The server accepts every key that begins like this.
const KEY: &str = "sk_test_of_the_tests";

impl Payments {
    /// Starts a server in this process.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut payments = Self::at(listener.local_addr().unwrap().port());
        payments.serve(listener);
        payments
    }

    /// Starts a server as a process, which a test may kill. It listens on `port`, also after a restart.
    pub fn start_process(port: u16) -> (Self, Process) {
        let payments = Self::at(port);
        let process = payments.start_again(port);
        (payments, process)
    }

    /// Starts the process again on the same journal.
    pub fn start_again(&self, port: u16) -> Process {
        let mut command = Command::new(binary("payments"));
        command.args(["--faults", "--payments-port", &port.to_string(), "--data"]).arg(&self.folder);
        Process::spawn("payments", command)
    }

    fn at(port: u16) -> Self {
        Self {
            base: format!("http://127.0.0.1:{port}"),
            folder: std::env::temp_dir().join(format!("payments-{:016x}", rand::random::<u64>())),
            client: reqwest::Client::new(),
            shutdown: CancellationToken::new(),
        }
    }

    fn serve(&mut self, listener: TcpListener) {
        let folder = self.folder.display().to_string();
        let config = payments::Config::parse_from(["payments", "--faults", "--data", &folder]);
        let shutdown = CancellationToken::new();
        self.shutdown = shutdown.clone();
        tokio::spawn(async move { payments::serve(listener, config, shutdown).await.unwrap() });
    }

    /// The base of its URLs.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The flags with which a process charges here.
    pub fn flags(&self) -> [&str; 4] {
        ["--stripe-api-base", &self.base, "--stripe-api-key", KEY]
    }

    /// A client of this server.
    pub fn stripe(&self) -> Stripe {
        Stripe::new(&self.args()).unwrap()
    }

    /// A client that waits at most `answer_wait` for a response.
    pub fn impatient_stripe(&self, answer_wait: Duration) -> Stripe {
        Stripe::with_answer_wait(&self.args(), answer_wait).unwrap()
    }

    fn args(&self) -> StripeArgs {
        StripeArgs { stripe_api_base: self.base.clone(), stripe_api_key: Some(KEY.to_owned()) }
    }

    /// Injects a fault into the next `count` charges, for example `time-out`, `error-after`, `slow` (3 s), or `pending` (3 s).
    pub async fn plan(&self, kind: &str, count: u32) {
        self.order("_faults", format!("kind={kind}&count={count}&ms=3000")).await;
    }

    /// Forgets every idempotency key, as Stripe does after a day.
    pub async fn forget_keys(&self) {
        self.order("_forget-keys", String::new()).await;
    }

    /// Makes a charge, as another program would.
    pub async fn charge(&self, form: &str) {
        self.order("v1/charges", form.to_owned()).await;
    }

    async fn order(&self, path: &str, body: String) {
        let request = self.client.post(format!("{}/{path}", self.base)).bearer_auth(KEY);
        let request =
            request.header("x-fault-order", "1").header("content-type", "application/x-www-form-urlencoded").body(body);
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{}", response.text().await.unwrap());
    }

    /// All charges that were made, the newest first.
    pub async fn charges(&self) -> Vec<Charged> {
        self.stripe().charges().await.unwrap()
    }
}

impl Drop for Payments {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
