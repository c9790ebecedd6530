//! Reads of wallets over HTTP: never less than a reader asks for (W5), page by page, and the api's health.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Watched, World, mark, wait_until};
use wallet::WalletId;
use wallet::model::{Epoch, Model};

use crate::wallet_http::Teller;

/// Writes `count` credits of 1.00 behind the api's back, on top of those that the wallet has: as another api would.
async fn credit_behind_the_back(world: &World, wallet: &WalletId, count: i64) {
    let insert = "WITH newest AS (
                      SELECT COALESCE(max(version), 0) AS version, COALESCE(max(balance_minor), 0) AS balance_minor
                      FROM wallet_events WHERE wallet_id = $1 AND accepted
                  )
                  INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, action, amount_minor)
                  SELECT lpad((random() * 1e15)::bigint::text, 27, '0'), $1, version + n, balance_minor + 100 * n, true,
                         'credit', 100
                  FROM newest, generate_series(1, $2::bigint) AS n";
    world.client().execute(insert, &[&wallet.as_str(), &count]).await.unwrap();
}

/// A read model with a mark, as a projector leaves it.
async fn begin_model(world: &World) -> Model {
    let client = stream::redis::client(world.redis_url()).unwrap();
    let model = Model::start(client, world.stream_name(), Duration::from_secs(10));
    wait_until("the model is connected", async || model.mark().await.is_ok()).await;
    assert!(model.begin(None, &mark(Epoch::random(), 0, 1)).await.unwrap());
    // A reply has the mark from before its commands. The model knows the epoch from the next one on.
    assert!(model.mark().await.unwrap().is_some());
    model
}

#[tokio::test]
async fn w5_a_reader_with_min_version_never_sees_less() {
    let world = World::new().await;
    let teller = Teller::start(&world, &[]).await;
    let model = begin_model(&world).await;
    let read = async |wallet: &WalletId, path: &str| {
        let (status, headers, body) = teller.get(&format!("/wallet/{wallet}{path}")).await;
        let source = headers.get("read-from").map_or("", |source| source.to_str().unwrap()).to_owned();
        (status, source, body)
    };
    let first = WalletId::new();
    assert_eq!(teller.command(&first, "credit", &json!({"amount": 1})).await.0, 200);
    wait_until("the document is in Redis", async || read(&first, "/balance").await.1 == "redis").await;
    for path in ["", "/balance", "/transactions?limit=20", "/transactions?limit=21", "/transactions?before=9&limit=1"] {
        // Redis has version 1 and Postgres version 2.
        let wallet = WalletId::new();
        credit_behind_the_back(&world, &wallet, 2).await;
        model.put(model.epoch(), &[old_document(wallet)]).await.unwrap();
        assert_eq!(model.head(wallet).await.unwrap().unwrap().version, 1);
        let with = |version: i64| format!("{path}{}min_version={version}", if path.contains('?') { '&' } else { '?' });
        let (status, source, body) = read(&wallet, &with(2)).await;
        assert_eq!((status, &*source), (200, "postgres"), "{path}");
        let newest = if path.starts_with("/tr") { &body["transactions"][0]["version"] } else { &body["version"] };
        assert_eq!(newest, 2, "{path}: {body}");
        let (status, _, body) = read(&wallet, &with(3)).await;
        assert_eq!((status, &body["code"]), (409, &json!("version_not_reached")), "{path}");
        let text = "the wallet has version 2, and min_version=3 was asked for: ask for at most 2";
        assert_eq!(body["error"], text);
    }
}

/// A document of version 1, as Redis still has it when another api has written version 2.
fn old_document(wallet: WalletId) -> wallet::documents::Document {
    let (timestamp, event_id) = ("2026-11-21T08:19:04Z".parse().unwrap(), wallet::EventId::new());
    let transaction =
        wallet::documents::Transaction { timestamp, counterparty: None, amount_minor: 100, version: 1, event_id };
    let transactions = vec![transaction];
    wallet::documents::Document { wallet, version: 1, event_id, timestamp, balance_minor: 100, transactions }
}

#[tokio::test]
async fn transactions_are_read_page_by_page_from_either_source() {
    let world = World::new().await;
    let teller = Teller::start(&world, &[]).await;
    let wallet = WalletId::new();
    let page = async |query: String| {
        let (status, headers, body) = teller.get(&format!("/wallet/{wallet}/transactions?{query}")).await;
        assert_eq!(status, 200, "{query}: {body}");
        let versions = body["transactions"].as_array().unwrap().iter().map(|one| one["version"].as_i64().unwrap());
        (headers["read-from"].to_str().unwrap().to_owned(), versions.collect::<Vec<_>>(), body["next_before"].as_i64())
    };
    assert_eq!(page("limit=20".to_owned()).await, ("postgres".to_owned(), vec![], None));
    assert_eq!(page("limit=21".to_owned()).await, ("postgres".to_owned(), vec![], None));
    begin_model(&world).await;
    credit_behind_the_back(&world, &wallet, 45).await;
    wait_until("the first page is in Redis", async || page(String::new()).await.0 == "redis").await;
    for limit in [1, 7, 20, 21, 44, 45, 46, 1000] {
        let (mut all, mut next, mut count) = (Vec::new(), None, 0);
        loop {
            let before = next.map_or_else(String::new, |before: i64| format!("&before={before}"));
            let (source, versions, next_before) = page(format!("limit={limit}{before}")).await;
            // A Redis that is slow for a moment is passed over.
            assert!(source == "postgres" || next.is_none() && limit <= 20, "{limit}{before}");
            assert!(versions.len() <= limit);
            all.extend(versions);
            (next, count) = (next_before, count + 1);
            if next.is_none() {
                break;
            }
        }
        assert_eq!(all, (1..=45).rev().collect::<Vec<i64>>(), "{limit}");
        assert_eq!(count, 45_usize.div_ceil(limit), "{limit}");
    }
    assert_eq!(page(String::new()).await.1.len(), 20, "as many as the document has");
    assert_eq!(page("before=1".to_owned()).await, ("postgres".to_owned(), vec![], None));
}

#[tokio::test]
async fn a_page_reads_its_own_events_only_even_by_a_plan_made_on_an_empty_table() {
    let world = World::new().await;
    let teller = Teller::start(&world, &[]).await;
    let wallet = WalletId::new();
    let read = async |query: &str| {
        let (status, _, body) = teller.get(&format!("/wallet/{wallet}/transactions?{query}")).await;
        assert_eq!(status, 200, "{body}");
        body["transactions"].as_array().unwrap().len()
    };
    // By then every connection keeps its plan.
    for _ in 0..60 {
        assert_eq!((read("limit=20").await, read("before=100&limit=30").await), (0, 0));
    }
    credit_behind_the_back(&world, &wallet, 20_000).await;
    let rows_read = "SELECT COALESCE(seq_tup_read, 0) + COALESCE(idx_tup_fetch, 0) FROM pg_stat_user_tables
                     WHERE relname = 'wallet_events'";
    let scans = "SELECT COALESCE(seq_scan, 0) + COALESCE(idx_scan, 0) FROM pg_stat_user_tables
                 WHERE relname = 'wallet_events'";
    let (rows_before, scans_before) = (world.number(rows_read).await, world.number(scans).await);
    // Postgres counts a little later. One reading of the whole table would be 20000 rows.
    for _ in 0..10 {
        assert_eq!((read("limit=20").await, read("before=10000&limit=30").await), (20, 30));
    }
    wait_until("the pages are counted", async || world.number(scans).await >= scans_before + 30).await;
    let row_count = world.number(rows_read).await - rows_before;
    assert!(row_count <= 2_000, "{row_count} rows for twenty pages of at most 30");
}

#[tokio::test]
async fn the_api_is_ready_without_redis_and_not_without_the_tables_or_rights_of_wallets() {
    let world = World::new().await;
    let nowhere = ["--api-port", "0", "--redis-url", "redis+unix:///nowhere"];
    let mut api = Watched::start(&world, "api", &nowhere).await;
    let address = api.process.address_after("api started").await;
    let health = async || reqwest::get(format!("http://{address}/healthz")).await.unwrap().status().as_u16();
    let balance = async || {
        let response = reqwest::get(format!("http://{address}/wallet/{}/balance", WalletId::new())).await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap()["balance"].clone())
    };
    wait_until("the api is ready without Redis", async || api.is_ready().await && health().await == 200).await;
    assert_eq!(balance().await, (200, json!(0.0)));
    for (broken, mended) in [
        ("ALTER TABLE wallet_events RENAME TO gone", "ALTER TABLE gone RENAME TO wallet_events"),
        ("REVOKE INSERT ON wallet_locks FROM rocket_api", "GRANT INSERT ON wallet_locks TO rocket_api"),
        (
            "REVOKE UPDATE (wallet_id) ON wallet_locks FROM rocket_api",
            "GRANT UPDATE (wallet_id) ON wallet_locks TO rocket_api",
        ),
        ("REVOKE SELECT ON wallet_events FROM rocket_api", "GRANT SELECT ON wallet_events TO rocket_api"),
    ] {
        world.client().batch_execute(broken).await.unwrap();
        wait_until(broken, async || health().await == 503 && !api.is_ready().await).await;
        world.client().batch_execute(mended).await.unwrap();
        wait_until(mended, async || health().await == 200 && api.is_ready().await).await;
    }
    api.process.stop().await;
}
