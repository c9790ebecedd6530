//! Clients of wallets during the faults: they credit, debit, transfer and read, and keep every response.

use std::sync::Arc;
use std::time::Duration;

use common::shutdown::{CancellationToken, sleep_or_stop};
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Client;
use serde_json::Value;
use simulator::WalletCommand;

use crate::ledger::{Answer, minor};
use crate::world::World;

/// The longest pause between two tries of one command; the mean is half of it.
const RETRY_PAUSE_MAX: f64 = 1.0;

/// How long a client waits for the response to a read.
const READ_WAIT: Duration = Duration::from_secs(5);

/// Sends commands until `stop`. One without a key is sent once; one with a key is repeated until its response is final.
pub(crate) async fn command_wallets(world: Arc<World>, pause: Duration, seed: u64, stop: CancellationToken) {
    let (wallets, mut rng, client) = (&world.wallets, StdRng::seed_from_u64(seed), Client::new());
    while sleep_or_stop(pause.mul_f64(rng.random_range(0.0..2.0)), &stop).await {
        let command = WalletCommand::random(wallets.pick(&mut rng), &wallets.ids, &mut rng);
        let sending =
            Sending { world: &world, client: &client, stop: &stop, trace_id: rng.random(), command: &command };
        wallets.ledger.begin(sending.trace_id, &command);
        let answer = match (&command.key, sending.send(&mut rng).await) {
            (_, Response::Final { answer, .. }) => Some(answer),
            (None, Response::Refused) => {
                wallets.ledger.refuse(sending.trace_id);
                None
            }
            (None, _) => None,
            (Some(_), _) => sending.insist(&mut rng).await,
        };
        let Some(answer) = answer else { continue };
        wallets.ledger.conclude(sending.trace_id, &answer, &world.history);
        if command.key.is_some() && rng.random_bool(0.3) {
            sending.repeat(&answer, &mut rng).await;
        }
        if rng.random_bool(0.2) {
            read(&world, &client, &command.wallet, answer.version, &mut rng).await;
        }
    }
}

/// A command that is being sent.
struct Sending<'a> {
    world: &'a World,
    client: &'a Client,
    stop: &'a CancellationToken,
    /// Its event has the same one. So a command without a key is found, too.
    trace_id: u128,
    command: &'a WalletCommand,
}

/// The meaning of a response.
enum Response {
    /// The command was decided.
    Final { answer: Answer, is_replayed: bool },
    /// It was certainly not decided.
    Refused,
    /// Its key belongs to another command.
    KeyReused,
    /// No response came, or it leaves the outcome open.
    Open,
}

impl Sending<'_> {
    /// Sends the command once.
    async fn send(&self, rng: &mut StdRng) -> Response {
        let traceparent = format!("00-{:032x}-{:016x}-00", self.trace_id, rng.random_range(1..u64::MAX));
        let request = self.command.request(self.client, self.world.api_url(rng)).header("traceparent", traceparent);
        let Ok(response) = request.send().await else { return Response::Open };
        let is_replayed = response.headers().contains_key("idempotent-replayed");
        let status = response.status().as_u16();
        let Ok(body) = response.bytes().await else { return Response::Open };
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (status, json["code"].as_str(), Answer::of(&json)) {
            (200, _, Some(answer)) if answer.rejection.is_none() => Response::Final { answer, is_replayed },
            (400, Some("rejected"), Some(answer)) if answer.rejection.is_some() => {
                Response::Final { answer, is_replayed }
            }
            (409, Some(_), _) => Response::KeyReused,
            (503, Some("overloaded" | "wallet_busy" | "unavailable"), _) => Response::Refused,
            (503, Some(_), _) => Response::Open,
            _ => {
                self.world.history.violation(&format!("{:?} was answered with {status}: {body:?}", self.command));
                Response::Open
            }
        }
    }

    /// Sends a command with a key until its response is final. `None` if `stop` came first: then it was decided at most once.
    async fn insist(&self, rng: &mut StdRng) -> Option<Answer> {
        loop {
            match self.send(rng).await {
                Response::Final { answer, .. } => return Some(answer),
                Response::KeyReused => {
                    self.world
                        .history
                        .violation(&format!("W1: {:?} was sent again, and its key refused", self.command));
                    return None;
                }
                Response::Refused | Response::Open => {}
            }
            if !sleep_or_stop(Duration::from_secs_f64(rng.random_range(0.0..RETRY_PAUSE_MAX)), self.stop).await {
                return None;
            }
        }
    }

    /// Sends a decided command again, sometimes several times at once, and sometimes its key with another amount.
    async fn repeat(&self, first: &Answer, rng: &mut StdRng) {
        let copies = (0..rng.random_range(1..=3)).map(|_| {
            let mut rng = StdRng::seed_from_u64(rng.random());
            async move { self.send(&mut rng).await }
        });
        for response in join_all(copies).await {
            let is_right = match &response {
                Response::Final { answer, is_replayed } => answer == first && *is_replayed,
                Response::KeyReused => false,
                Response::Refused | Response::Open => true,
            };
            if !is_right {
                let text = match response {
                    Response::Final { answer, is_replayed } => format!("{answer:?}, replayed: {is_replayed}"),
                    _ => "409".to_owned(),
                };
                let command = self.command;
                self.world
                    .history
                    .violation(&format!("W1: {command:?} was answered with {first:?}, again with {text}"));
            }
        }
        let other = WalletCommand { amount_minor: self.command.amount_minor + 1, ..self.command.clone() };
        let sending = Sending { trace_id: rng.random(), command: &other, ..*self };
        if rng.random_bool(0.3)
            && let Response::Final { answer, .. } = sending.send(rng).await
        {
            self.world.history.violation(&format!("W1: {other:?} has the key of another command, and got {answer:?}"));
        }
    }
}

/// Reads wallets until `stop`, three times in four with the version that some client knows.
pub(crate) async fn read_wallets(world: Arc<World>, pause: Duration, seed: u64, stop: CancellationToken) {
    let (wallets, mut rng, client) = (&world.wallets, StdRng::seed_from_u64(seed), Client::new());
    while sleep_or_stop(pause.mul_f64(rng.random_range(0.0..2.0)), &stop).await {
        let wallet = wallets.pick(&mut rng);
        let min_version = rng.random_bool(0.75).then(|| wallets.ledger.known_version(wallet));
        read(&world, &client, wallet, min_version, &mut rng).await;
    }
}

/// Reads the wallet once, and compares the response with `min_version` (W5) and with all that clients have seen before.
async fn read(world: &World, client: &Client, wallet: &str, min_version: Option<i64>, rng: &mut StdRng) {
    let (ledger, history) = (&world.wallets.ledger, &world.history);
    let path = ["/balance", "/balance", "", "/transactions"][rng.random_range(0..4)];
    let query = min_version.map(|version| format!("?min_version={version}")).unwrap_or_default();
    let url = format!("{}/wallet/{wallet}{path}{query}", world.api_url(rng));
    let Ok(response) = client.get(&url).timeout(READ_WAIT).send().await else { return };
    let status = response.status().as_u16();
    let read_from = response.headers().get("read-from").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Ok(body) = response.bytes().await else { return };
    let json: Value = serde_json::from_slice(&body).unwrap_or_default();
    let version = match (status, path) {
        (503, _) => return,
        (200, "/transactions") => ledger.saw_transactions(wallet, &json["transactions"], history),
        (200, _) => ledger.saw_balance(wallet, &json, history),
        _ => None,
    };
    let Some(version) = version else {
        return history.violation(&format!("GET {url} was answered with {status}: {body:?}"));
    };
    ledger.count_read(read_from.as_deref());
    if min_version.is_some_and(|min_version| version < min_version) {
        history.violation(&format!("W5: GET {url} was answered from {read_from:?} with version {version}"));
    }
}

/// Reads the wallet from each api. Returns a text about each response that does not show this version and balance, or does not
/// come from Redis: such an api takes Redis for away, or believes another mark than the one that is there.
pub(crate) async fn misread(world: &World, wallet: &str, expected: (i64, i64)) -> Vec<String> {
    let (client, mut texts) = (Client::new(), Vec::new());
    for url in world.api_urls.iter().map(|api_url| format!("{api_url}/wallet/{wallet}")) {
        let read = async {
            let response = client.get(&url).timeout(READ_WAIT).send().await?;
            let is_from_redis = response.headers().get("read-from").is_some_and(|source| source == "redis");
            let body = response.bytes().await?;
            Ok::<_, reqwest::Error>((is_from_redis, serde_json::from_slice(&body).unwrap_or_default()))
        };
        let is_right = |(is_from_redis, json): &(bool, Value)| {
            *is_from_redis && json["version"].as_i64().zip(minor(&json["balance"])) == Some(expected)
        };
        let read = read.await;
        if !read.as_ref().is_ok_and(is_right) {
            texts.push(format!("GET {url} is {read:?} instead of {expected:?} from Redis"));
        }
    }
    texts
}
