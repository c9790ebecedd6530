//! One credit, debit or transfer.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::{Client, RequestBuilder};

/// How long the response to a request about a wallet may take.
pub(crate) const WALLET_RESPONSE_WAIT: Duration = Duration::from_secs(5);

/// The shares of credits and of debits. All other commands are transfers.
const CREDIT_RATE: f64 = 0.5;
const DEBIT_RATE: f64 = 0.3;

/// The share of commands that ask for more than any wallet has.
const OVERDRAWN_RATE: f64 = 0.05;

/// More than any wallet has, in cents.
const OVERDRAWN_MINOR: i64 = 100_000_000;

/// The largest of the other amounts, in cents.
const AMOUNT_MAX_MINOR: i64 = 1_000;

/// The share of commands that have a key.
const KEY_RATE: f64 = 0.5;

/// A command for a wallet. With a key it may be sent any number of times.
#[derive(Debug, Clone)]
pub struct WalletCommand {
    /// The wallet in the path.
    pub wallet: String,
    /// The wallet that receives a transfer.
    pub to: Option<String>,
    /// `credit`, `debit` or `transfer`.
    pub endpoint: &'static str,
    /// In cents.
    pub amount_minor: i64,
    /// The idempotency key.
    pub key: Option<String>,
}

impl WalletCommand {
    /// A random command for `wallet`. Transfers go to one of `others`.
    pub fn random(wallet: &str, others: &[String], rng: &mut StdRng) -> Self {
        let others: Vec<_> = others.iter().filter(|other| *other != wallet).collect();
        let share: f64 = rng.random();
        let (endpoint, to) = match share {
            _ if share < CREDIT_RATE => ("credit", None),
            _ if share < CREDIT_RATE + DEBIT_RATE || others.is_empty() => ("debit", None),
            _ => ("transfer", Some(others[rng.random_range(0..others.len())].clone())),
        };
        let is_overdrawn = endpoint != "credit" && rng.random_bool(OVERDRAWN_RATE);
        let amount_minor = if is_overdrawn { OVERDRAWN_MINOR } else { rng.random_range(1..=AMOUNT_MAX_MINOR) };
        let key = rng.random_bool(KEY_RATE).then(|| format!("{:032x}", rng.random::<u128>()));
        Self { wallet: wallet.to_owned(), to, endpoint, amount_minor, key }
    }

    /// The request that sends it to the api at `base_url`.
    pub fn request(&self, client: &Client, base_url: &str) -> RequestBuilder {
        let amount = format!("{}.{:02}", self.amount_minor / 100, self.amount_minor % 100);
        let body = match &self.to {
            Some(to) => format!(r#"{{"to":"{to}","amount":{amount}}}"#),
            None => format!(r#"{{"amount":{amount}}}"#),
        };
        let request = client
            .post(format!("{base_url}/wallet/{}/{}", self.wallet, self.endpoint))
            .timeout(WALLET_RESPONSE_WAIT)
            .header("content-type", "application/json")
            .body(body);
        match &self.key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        }
    }
}
