//! The wallets' panel of the live page: events as they happen, Redis beside Postgres.

use std::cell::Cell;
use std::time::Duration;

use deadpool_postgres::ClientWrapper as Client;
use serde_json::{Value, json};
use tests::{PrivatePostgres, PrivateRedis, Process, Watched, World, wait_until};
use wallet::{EventId, WalletId, decimal};

use crate::dashboard::Page;

/// Writes an event as the api does, and no log record. With a reason it is a rejected one, which changes nothing.
pub async fn write_event(
    client: &Client,
    id: WalletId,
    state: (i64, i64),
    minor: i64,
    reason: Option<&str>,
) -> EventId {
    let (event_id, (version, balance_minor)) = (EventId::new(), state);
    let action = if minor > 0 { "credit" } else { "debit" };
    client.execute("INSERT INTO wallet_locks VALUES ($1::text) ON CONFLICT DO NOTHING", &[&id.as_str()]).await.unwrap();
    let insert = "INSERT INTO wallet_events
                      (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor)
                  VALUES ($1::text, $2::text, $3, $4, $5::text IS NULL, $5, $6, $7)";
    let (event, wallet) = (event_id.as_str(), id.as_str());
    let params: pglog::Params<'_> = &[&event, &wallet, &version, &balance_minor, &reason, &action, &minor];
    client.execute(insert, params).await.unwrap();
    event_id
}

/// Two builds of the read model.
const EPOCHS: [&str; 2] = ["000000000000000000000000000000aa", "000000000000000000000000000000bb"];

/// The read model of one test.
pub struct Model {
    redis: redis::aio::MultiplexedConnection,
    mark_key: String,
}

impl Model {
    pub async fn of(world: &World) -> Self {
        Self { redis: world.redis().await, mark_key: format!("{}:wallets", world.stream_name()) }
    }

    async fn set(&mut self, key: &str, value: String) {
        let () = redis::cmd("SET").arg(key).arg(value).query_async(&mut self.redis).await.unwrap();
    }

    pub async fn mark(&mut self, epoch: &str) {
        let mark = format!(r#"{{"epoch":"{epoch}","offset":7,"token":-5}}"#);
        self.set(&self.mark_key.clone(), mark).await;
    }

    pub async fn unmark(&mut self) {
        self.delete(&self.mark_key.clone()).await;
    }

    pub async fn put(&mut self, id: WalletId, epoch: &str, version: i64, event_id: EventId, balance_minor: i64) {
        let (at, balance) = ("2026-01-01T00:00:00.000000Z", decimal(balance_minor));
        let head = format!(r#""epoch":"{epoch}","version_id":{version},"event_id":"{event_id}","timestamp":"{at}""#);
        let data = format!(r#""timestamp":"{at}","balance":{balance},"transactions":[]"#);
        let document = format!(r#"{{{head},"name":"wallet.{id}","entity_id":"{id}","data":{{{data}}}}}"#);
        self.set(&format!("wallet.{id}"), document).await;
    }

    pub async fn delete(&mut self, key: &str) {
        let () = redis::cmd("DEL").arg(key).query_async(&mut self.redis).await.unwrap();
    }
}

/// Looks at a wallet as a page does, until it is shown so.
async fn look(page: &Page, id: WalletId, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut response = page.client.get(format!("{}/wallets/{id}", page.url)).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut text, mut seen) = (String::new(), Value::Null);
    let looking = async {
        loop {
            text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
            while let Some((event, rest)) = text.split_once("\n\n") {
                if let Some(data) = event.strip_prefix("event: wallet\ndata: ") {
                    seen = serde_json::from_str(data).unwrap();
                }
                text = rest.to_owned();
                if is_so(&seen) {
                    return;
                }
            }
        }
    };
    let looked = tokio::time::timeout(Duration::from_secs(30), looking).await;
    looked.unwrap_or_else(|_| panic!("{what}: {seen}"));
    seen
}

/// The wallets of the last sample.
pub async fn wallets(page: &Page) -> Value {
    page.state().await.map(|mut state| state["wallets"].take()).unwrap_or_default()
}

#[tokio::test]
async fn a_credit_and_a_rejected_debit_are_shown_as_they_happen() {
    let world = World::new().await;
    let page = Page::start(&world, &[]).await;
    wait_until("no wallet was used", async || {
        let wallets = wallets(&page).await;
        wallets["money"]["adds_up"] == true && wallets["newest"] == json!([]) && wallets["problem"].is_null()
    })
    .await;
    let (id, other) = (WalletId::new(), WalletId::new());
    let unused = look(&page, id, "an unused wallet", |wallet| !wallet["postgres"].is_null()).await;
    assert_eq!((&unused["postgres"]["version"], &unused["postgres"]["balance"]), (&json!(0), &json!("0.00")));

    write_event(world.client(), other, (1, 10_000_000_000), 10_000_000_000, None).await;
    let overdrawn = "debit of 5 rejected; would cause balance of -5 (overdrawn)";
    write_event(world.client(), id, (0, 0), -500, Some(overdrawn)).await;
    write_event(world.client(), id, (1, 500), 500, None).await;
    wait_until("both wallets are listed, the newest first", async || {
        let newest = wallets(&page).await["newest"].take();
        let ids = [0, 1].map(|index| newest[index]["wallet_id"].clone());
        ids == [id, other].map(|id| json!(id.as_str())) && newest[0]["balance"] == "5.00"
    })
    .await;
    let shown = look(&page, id, "the credit", |wallet| wallet["postgres"]["version"] == 1).await;
    let events = shown["postgres"]["events"].as_array().unwrap();
    let told = |index: usize| ["accepted", "reason", "amount"].map(|name| events[index][name].clone());
    assert_eq!(events.len(), 2, "{shown}");
    assert_eq!(told(0), [json!(true), Value::Null, json!("5.00")]);
    assert_eq!(told(1), [json!(false), json!(overdrawn), json!("-5.00")]);
    assert_eq!(shown["agreement"], "unmarked");
    wait_until("the money is counted again", async || {
        let money = wallets(&page).await["money"].take();
        let counts = ["wallet_count", "accepted_count", "rejected_count"].map(|name| money[name].as_i64());
        counts == [Some(2), Some(2), Some(1)] && money["balances"] == "100000005.00" && money["adds_up"] == true
    })
    .await;
    page.process.stop().await;
}

/// The api, the streamer and the projector as they are: their metrics have the names that the page looks for.
#[tokio::test]
async fn wallets_of_the_api_are_shown_with_their_reads_and_the_projector() {
    let world = World::new().await;
    let api_port = tests::free_port().to_string();
    let api = Watched::start(&world, "api", &["--api-port", &api_port]).await;
    let streamer = Process::start(&world, "streamer", &[]);
    let projector = Watched::start(&world, "consumer", &["wallets", "--fold", "wallets"]).await;
    let watched = format!("api={},wallets={}", api.address(), projector.address());
    let page = Page::start(&world, &["--watch", &watched]).await;
    wait_until("the model is built", async || {
        let wallets = wallets(&page).await;
        wallets["model"]["state"] == "marked" && wallets["told"]["is_rebuilding"] == false
    })
    .await;
    let id = WalletId::new();
    let (wallet, amount) = (format!("http://127.0.0.1:{api_port}/wallet/{id}"), json!({ "amount": 5 }));
    for (command, status) in [("debit", 400), ("credit", 200), ("debit", 200)] {
        let answer = page.client.post(format!("{wallet}/{command}")).json(&amount).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{command}");
    }
    let is_shown = |shown: &Value| shown["postgres"]["version"] == 2 && shown["agreement"] == "equal";
    let shown = look(&page, id, "both debits and the credit", is_shown).await;
    let reason = "debit of 5 rejected; would cause balance of -5 (overdrawn)";
    assert_eq!(shown["postgres"]["events"][2]["reason"], reason, "{shown}");
    wait_until("reads from Redis are counted, and the projector is at the head", async || {
        assert_eq!(page.client.get(format!("{wallet}/balance")).send().await.unwrap().status().as_u16(), 200);
        let state = page.state().await.unwrap();
        let projector = |consumer: &Value| consumer["fold"] == "wallets" && consumer["lag_records"] == 0;
        state["wallets"]["told"]["redis_reads_per_s"].as_f64() > Some(0.0)
            && state["wallets"]["told"]["postgres_reads_per_s"].is_number()
            && state["log"]["head"] == 3
            && state["log"]["consumers"].as_array().unwrap().iter().any(projector)
    })
    .await;
    for process in [page.process, api.process, projector.process, streamer] {
        process.stop().await;
    }
}

#[tokio::test]
async fn a_wallet_is_compared_with_its_document_in_redis() {
    let mut redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let page = Page::start(&world, &[]).await;
    let mut model = Model::of(&world).await;
    let (id, [epoch, another]) = (WalletId::new(), EPOCHS);
    let first = write_event(world.client(), id, (1, 500), 500, None).await;
    model.mark(epoch).await;
    let agrees = async |agreement: &str| {
        look(&page, id, agreement, |wallet| wallet["agreement"] == agreement).await;
    };
    agrees("absent").await;
    model.put(id, epoch, 1, first, 500).await;
    agrees("equal").await;
    assert_eq!(wallets(&page).await["model"], json!({ "state": "marked", "epoch": epoch, "offset": 7 }));

    let second = write_event(world.client(), id, (2, 300), -200, None).await;
    agrees("behind").await;
    model.put(id, epoch, 2, second, 300).await;
    agrees("equal").await;
    model.put(id, epoch, 2, second, 301).await;
    agrees("differs").await;
    model.put(id, epoch, 2, first, 300).await;
    agrees("differs").await;
    // Postgres was put back to an older state.
    model.put(id, epoch, 3, EventId::new(), 300).await;
    agrees("differs").await;
    model.put(id, another, 2, second, 300).await;
    agrees("other_epoch").await;
    model.delete(&format!("wallet.{id}")).await;
    agrees("absent").await;
    model.unmark().await;
    agrees("unmarked").await;

    redis.kill().await;
    agrees("unknown").await;
    let state = page.state().await.unwrap();
    assert_eq!(state["wallets"]["model"]["state"], "unknown");
    assert!(state["wallets"]["problem"].is_null() && state["log"].is_object(), "the rest goes on: {state}");
    redis.start_again().await;
    agrees("unmarked").await;
    page.process.stop().await;
}

/// Postgres counts the rows that statements read. The count of the money reads all, so here it may not read the wallets.
#[tokio::test]
async fn a_sample_reads_few_rows_however_many_events_there_are() {
    const EVENT_COUNT: i64 = 10_000;
    let world = World::new().await;
    let id = WalletId::new();
    write_event(world.client(), id, (1, 500), 500, None).await;
    let rejected = "INSERT INTO wallet_events
                        (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor)
                    SELECT '2' || lpad(n::text, 26, '0'), $1::text, 1, 500, false, 'no', 'debit', -600
                    FROM generate_series(1, $2::bigint) AS n";
    world.client().execute(rejected, &[&id.as_str(), &EVENT_COUNT]).await.unwrap();
    world.client().batch_execute("REVOKE SELECT ON wallet_locks FROM rocket_dashboard").await.unwrap();
    let page = Page::start(&world, &[]).await;
    let sample_count = Cell::new(0);
    look(&page, id, "six samples", |wallet| {
        sample_count.set(sample_count.get() + i32::from(wallet["postgres"]["events"][11].is_object()));
        sample_count.get() == 6
    })
    .await;
    // A session tells its counts at the latest when it ends.
    page.process.stop().await;
    let read = "SELECT (COALESCE(idx_tup_fetch, 0) + COALESCE(seq_tup_read, 0))::bigint FROM pg_stat_user_tables
                WHERE relname = 'wallet_events'";
    wait_until("the counts are told", async || world.number(read).await > 600).await;
    let read_count = world.number(read).await;
    assert!(read_count < EVENT_COUNT, "{read_count} rows");
}

#[tokio::test]
async fn tables_that_cannot_be_read_cost_only_the_panel() {
    let world = World::new().await;
    world.write_rides(3).await;
    write_event(world.client(), WalletId::new(), (1, 500), 500, None).await;
    let page = Page::start(&world, &[]).await;
    let tells = async |problem: Value| {
        wait_until(&format!("the panel tells {problem}"), async || {
            let state = page.state().await.unwrap_or_default();
            state["wallets"]["problem"] == problem && state["postgres"]["is_up"] == true && state["log"].is_object()
        })
        .await;
    };
    tells(Value::Null).await;
    world.client().batch_execute("REVOKE ALL ON wallet_events FROM rocket_dashboard").await.unwrap();
    tells(json!("This page may not read the tables of wallets: apply ops/roles.sql.")).await;
    assert_eq!(wallets(&page).await["newest"][0]["balance"], "5.00", "the last known events stay");
    world.client().batch_execute("DROP TABLE wallet_events CASCADE").await.unwrap();
    tells(json!("This database has no tables of wallets: apply schema.sql.")).await;
    launcher::apply_schema(world.client()).await.unwrap();
    launcher::apply_roles(world.client()).await.unwrap();
    tells(Value::Null).await;
    page.process.stop().await;
}

#[tokio::test]
async fn an_outage_of_postgres_leaves_the_last_known_wallets() {
    let (mut postgres, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    let id = WalletId::new();
    write_event(world.client(), id, (1, 500), 500, None).await;
    let page = Page::start(&world, &[]).await;
    wait_until("the wallet is known", async || wallets(&page).await["money"]["balances"] == "5.00").await;
    let before = wallets(&page).await;
    postgres.kill().await;
    wait_until("the outage is told", async || wallets(&page).await["problem"] == "Postgres does not answer.").await;
    let after = wallets(&page).await;
    assert_eq!((&after["newest"], &after["money"]), (&before["newest"], &before["money"]));
    assert!(after["at_ms"].as_i64() >= before["at_ms"].as_i64(), "{after}");
    let shown = look(&page, id, "an outage", |wallet| wallet["agreement"] == "unknown").await;
    assert!(shown["postgres"].is_null(), "{shown}");
    postgres.start_again().await;
    look(&page, id, "it is back", |wallet| wallet["postgres"]["version"] == 1).await;
    page.process.stop().await;
}

#[tokio::test]
async fn only_ids_are_looked_up() {
    let world = World::new().await;
    let page = Page::start(&world, &[]).await;
    for bad in ["x", "aWgEPTl1tmebfsQzFP4bxwgy80W", "%3Cscript%3Ealert(1)%3C%2Fscript%3E", "'%20OR%20true%20--%20"] {
        let answer = page.client.get(format!("{}/wallets/{bad}", page.url)).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["content-type"]),
            (400, &"text/plain; charset=utf-8".parse().unwrap())
        );
        let text = answer.text().await.unwrap();
        assert!(text.starts_with("a KSUID has 27 characters") && !text.contains("alert"), "{bad}: {text}");
    }
    page.process.stop().await;
}

/// The browser's program prints "now: …" when it wants something done. See tests/browser/wallets.py.
#[tokio::test]
async fn a_browser_sees_wallets_as_they_change() {
    let world = World::new().await;
    let page = Page::start(&world, &[]).await;
    let (client, mut model, [id, other]) =
        (world.client(), Model::of(&world).await, [WalletId::new(), WalletId::new()]);
    let epoch = EPOCHS[0];
    model.mark(epoch).await;
    let mut command = tokio::process::Command::new(tests::python_program("python"));
    command.arg(tests::root().join("tests/browser/wallets.py")).arg(&page.url).args([id.as_str(), other.as_str()]);
    let mut browser = Process::spawn("the browser", command);

    browser.wait_for("now: credit the wallet").await;
    let first = write_event(client, id, (1, 123_456_750), 123_456_750, None).await;
    model.put(id, epoch, 1, first, 123_456_750).await;
    browser.wait_for("now: reject a debit").await;
    let reason = "debit of 5 rejected; <img src=x onerror=alert(1)>";
    write_event(client, id, (1, 123_456_750), -500, Some(reason)).await;
    browser.wait_for("now: debit the wallet").await;
    let second = write_event(client, id, (2, 123_456_700), -50, None).await;
    browser.wait_for("now: write the document").await;
    model.put(id, epoch, 2, second, 123_456_700).await;
    browser.wait_for("now: delete the document").await;
    model.delete(&format!("wallet.{id}")).await;
    browser.wait_for("now: forge the document").await;
    model.put(id, epoch, 2, second, 123_456_800).await;
    browser.wait_for("now: credit the other wallet").await;
    write_event(client, other, (1, 300), 300, None).await;
    browser.wait_for("now: forge money").await;
    write_event(client, other, (2, 400), 200, None).await;
    let output = browser.succeed().await;
    assert!(output.contains("seen everything"), "{output}");
    page.process.stop().await;
}
