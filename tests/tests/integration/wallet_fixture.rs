//! Wallets over HTTP, and what must hold for them in every database (W1 to W4).

use std::collections::HashMap;

use reqwest::StatusCode;
use serde_json::{Value, json};
use tests::{Process, Watched, World};
use wallet::WalletId;

use crate::manners::start_api;

/// A client of one api.
#[derive(Clone)]
pub struct Bank {
    base: String,
    client: reqwest::Client,
}

/// The response to a command.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
    pub is_replayed: bool,
    pub has_retry_after: bool,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn version(&self) -> i64 {
        self.body["version"].as_i64().unwrap_or_else(|| panic!("no version: {self:?}"))
    }

    pub fn event_id(&self) -> &str {
        self.body["event_id"].as_str().unwrap_or_else(|| panic!("no event: {self:?}"))
    }

    /// The command was accepted.
    #[track_caller]
    pub fn accepted(self) -> Self {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self
    }

    /// The command was not written, and the client is told to retry.
    #[track_caller]
    pub fn refused(self, code: &str) -> Self {
        assert_eq!((self.status, self.code()), (StatusCode::SERVICE_UNAVAILABLE, code), "{self:?}");
        assert!(self.has_retry_after, "{self:?}");
        self
    }

    /// The command was rejected because of the state of a wallet.
    #[track_caller]
    pub fn rejected(self) -> Self {
        assert_eq!((self.status, self.code()), (StatusCode::BAD_REQUEST, "rejected"), "{self:?}");
        self
    }
}

impl Bank {
    /// Starts an api, and a client of it.
    pub async fn start(world: &World) -> (Process, Self) {
        Self::start_at(world, &[]).await
    }

    /// As [`start`](Self::start), with further flags for the api.
    pub async fn start_at(world: &World, flags: &[&str]) -> (Process, Self) {
        let (process, base) = start_api(world, flags).await;
        (process, Self::at(base))
    }

    /// Starts an api with a monitor, and a client of it.
    pub async fn start_watched(world: &World) -> (Watched, Self) {
        let mut api = Watched::start(world, "api", &["--api-port", "0"]).await;
        let address = api.process.address_after("api started").await;
        (api, Self::at(format!("http://{address}")))
    }

    fn at(base: String) -> Self {
        Self { base, client: reqwest::Client::new() }
    }

    pub async fn send(&self, wallet: WalletId, action: &str, body: &Value, key: Option<&str>) -> Answer {
        let request = self.client.post(format!("{}/wallet/{wallet}/{action}", self.base)).json(body);
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        let response = request.send().await.unwrap();
        Answer {
            status: response.status(),
            is_replayed: response.headers().contains_key("idempotent-replayed"),
            has_retry_after: response.headers().contains_key("retry-after"),
            body: response.json().await.unwrap(),
        }
    }

    pub async fn credit(&self, wallet: WalletId, amount: i64) -> Answer {
        self.send(wallet, "credit", &json!({"amount": amount}), None).await
    }

    pub async fn debit(&self, wallet: WalletId, amount: i64) -> Answer {
        self.send(wallet, "debit", &json!({"amount": amount}), None).await
    }

    /// Where a wallet was read from, and the version that the client sees.
    pub async fn read(&self, wallet: WalletId, min_version: i64) -> (String, i64) {
        let url = format!("{}/wallet/{wallet}?min_version={min_version}", self.base);
        let response = self.client.get(url).send().await.unwrap();
        let source = response.headers()["read-from"].to_str().unwrap().to_owned();
        let body: Value = response.json().await.unwrap();
        (source, body["version"].as_i64().unwrap())
    }

    pub async fn transfer(&self, wallet: WalletId, to: WalletId, amount: i64) -> Answer {
        self.send(wallet, "transfer", &json!({"to": to.as_str(), "amount": amount}), None).await
    }
}

/// Asserts what must hold in every database: W1 to W4, and that the log has the events of each wallet in the order of its
/// versions.
pub async fn assert_sound(world: &World) {
    let none_breaks = async |what: &str, query: &str| {
        let broken = world.number(&format!("SELECT count(*) FROM ({query}) AS broken")).await;
        assert_eq!(broken, 0, "{what}: {query}");
    };
    none_breaks(
        "each state follows from the one before (W2)",
        "SELECT FROM (SELECT *, lag(version, 1, 0::bigint) OVER newer AS version_before,
                             lag(balance_minor, 1, 0::bigint) OVER newer AS balance_before
                      FROM wallet_states WINDOW newer AS (PARTITION BY wallet_id ORDER BY version)) AS states
         WHERE version <> version_before + 1 OR balance_minor <> balance_before + amount_minor",
    )
    .await;
    none_breaks("no balance is below 0 (W3)", "SELECT FROM wallet_events WHERE balance_minor < 0").await;
    none_breaks(
        "the balances sum to what came from the world (W4)",
        "SELECT FROM (SELECT sum(balance_minor) FROM wallets) AS held (sum),
                     (SELECT sum(amount_minor) FROM wallet_events WHERE accepted AND counterparty = 'world') AS came (sum)
         WHERE held.sum <> came.sum",
    )
    .await;
    none_breaks(
        "a rejected attempt leaves the state as it was",
        "SELECT FROM wallet_events AS e WHERE NOT accepted AND version > 0 AND NOT EXISTS (
             SELECT FROM wallet_states AS s WHERE (s.wallet_id, s.version, s.balance_minor)
                 = (e.wallet_id, e.version, e.balance_minor))",
    )
    .await;
    none_breaks(
        "both events of a transfer belong to one transaction",
        "SELECT e.xmin::text FROM wallet_events AS e WHERE accepted AND action = 'transfer'
         GROUP BY e.xmin::text HAVING sum(amount_minor) <> 0",
    )
    .await;
    assert_log(world).await;
}

/// Asserts that the log has one record per event, with the event's data, and the records of each wallet in the order of its
/// versions.
async fn assert_log(world: &World) {
    while pglog::assign(world.client(), pglog::Partition::FIRST, rand::random()).await.unwrap().is_some() {}
    let rows = world
        .client()
        .query(
            "SELECT event_id::text, CASE WHEN accepted THEN action ELSE 'reject' END, wallet_id::text, version, balance_minor,
                    amount_minor, counterparty, reason FROM wallet_events",
            &[],
        )
        .await
        .unwrap();
    let mut events: HashMap<String, (String, Value)> = HashMap::new();
    for row in rows {
        let (event_id, action): (String, String) = (row.get(0), row.get(1));
        let data = json!({
            "wallet_id": row.get::<_, String>(2), "version": row.get::<_, i64>(3), "event_id": event_id,
            "balance_minor": row.get::<_, i64>(4), "amount_minor": row.get::<_, i64>(5),
            "counterparty": row.get::<_, String>(6), "reason": row.get::<_, Option<String>>(7),
        });
        events.insert(event_id, (action, data));
    }
    let mut versions: HashMap<String, i64> = HashMap::new();
    for record in world.read_from(1, 1000).await.into_iter().filter(|record| record.object == "wallet") {
        let mut data: Value = serde_json::from_str(&record.data).unwrap();
        if let Some(data) = data.as_object_mut() {
            // The action of a rejected attempt is beside it.
            data.remove("action");
            data.entry("reason").or_insert(Value::Null);
        }
        let event = events.remove(data["event_id"].as_str().unwrap());
        assert_eq!(event, Some((record.action.clone(), data.clone())), "a record is an event");
        let last = versions.entry(data["wallet_id"].as_str().unwrap().to_owned()).or_default();
        let version = data["version"].as_i64().unwrap();
        let expected = if record.action == "reject" { *last } else { *last + 1 };
        assert_eq!(version, expected, "the records of a wallet are in the order of its versions: {data}");
        *last = version;
    }
    assert!(events.is_empty(), "events without a record: {events:?}");
}
