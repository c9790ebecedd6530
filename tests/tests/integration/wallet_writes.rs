//! Credits, debits and transfers: each attempt is an event, decided on the newest state, by one or several apis (W1 to W4).

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use tests::{BeginProxy, World, wait_until};
use wallet::{BALANCE_MAX, EventId, WalletId};

use crate::wallet_fixture::{Bank, assert_sound};

#[tokio::test]
async fn every_attempt_is_an_event_with_its_record_in_one_transaction() {
    let world = World::new().await;
    let (_api, bank) = Bank::start(&world).await;
    let (payer, receiver) = (WalletId::new(), WalletId::new());
    assert_eq!(bank.debit(payer, 5).await.rejected().body["error"], OVERDRAWN);
    assert_eq!(bank.credit(payer, 8).await.accepted().version(), 1);
    assert_eq!(bank.debit(payer, 5).await.accepted().version(), 2);
    assert_eq!(bank.transfer(payer, receiver, 4).await.rejected().status, StatusCode::BAD_REQUEST);
    let sent = bank.transfer(payer, receiver, 3).await.accepted();
    assert_eq!((sent.version(), &sent.body["balance"]), (3, &json!(0.0)));

    let rows = world
        .client()
        .query(
            "SELECT wallet_id = $1::text, action, amount_minor, version, balance_minor, accepted, counterparty,
                    host(origin_ip) FROM wallet_events ORDER BY created_at, wallet_id <> $1::text",
            &[&payer.as_str()],
        )
        .await
        .unwrap();
    let events: Vec<_> = rows
        .iter()
        .map(|row| {
            let counterparty: String = row.get(6);
            let of = if counterparty == "world" { "world" } else { "a wallet" };
            assert_eq!(row.get::<_, Option<String>>(7).as_deref(), Some("127.0.0.1"));
            (row.get(0), row.get::<_, String>(1), row.get(2), row.get(3), row.get(4), row.get(5), of)
        })
        .collect();
    let event = |is_payer, action: &str, amount: i64, version: i64, balance: i64, accepted, of| {
        (is_payer, action.to_owned(), amount, version, balance, accepted, of)
    };
    assert_eq!(
        events,
        [
            event(true, "debit", -500, 0, 0, false, "world"),
            event(true, "credit", 800, 1, 800, true, "world"),
            event(true, "debit", -500, 2, 300, true, "world"),
            event(true, "transfer", -400, 2, 300, false, "a wallet"),
            event(true, "transfer", -300, 3, 0, true, "a wallet"),
            event(false, "transfer", 300, 1, 300, true, "a wallet"),
        ]
    );
    let apart = "SELECT count(*) FROM wallet_events AS e, staged_log_records AS r
                 WHERE r.data->>'event_id' = e.event_id::text AND r.xmin::text <> e.xmin::text";
    assert_eq!(world.number(apart).await, 0, "each record is of its event's transaction (W1)");
    assert_sound(&world).await;
}

const OVERDRAWN: &str =
    "failed to handle endpoint=\"debit\": debit of 5 rejected; would cause balance of -5 (overdrawn)";

#[tokio::test]
async fn a_held_wallet_stops_no_other_command() {
    let world = World::new().await;
    let (_api, bank) = Bank::start(&world).await;
    let (held, unborn) = (WalletId::new(), WalletId::new());
    bank.credit(held, 1).await.accepted();

    // Another session holds a lock row, and has inserted another one.
    let mut holder = world.connect().await;
    let transaction = holder.transaction().await.unwrap();
    let lock = "SELECT FROM wallet_locks WHERE wallet_id = $1::text FOR UPDATE";
    transaction.query(lock, &[&held.as_str()]).await.unwrap();
    transaction.execute("INSERT INTO wallet_locks VALUES ($1::text)", &[&unborn.as_str()]).await.unwrap();

    let others: Vec<WalletId> = (0..40).map(|_| WalletId::new()).collect();
    let (of_held, of_unborn, of_others) = tokio::join!(
        join_all((0..20).map(|_| bank.credit(held, 1))),
        bank.credit(unborn, 1),
        join_all(others.iter().map(|wallet| async {
            bank.credit(*wallet, 5).await.accepted();
            bank.transfer(*wallet, held, 1).await.refused("wallet_busy");
            bank.debit(*wallet, 5).await.accepted();
        }))
    );
    assert_eq!(of_others.len(), 40);
    of_held.into_iter().chain([of_unborn]).for_each(|answer| drop(answer.refused("wallet_busy")));
    assert_eq!(world.number("SELECT count(*) FROM wallet_events").await, 81, "nothing was written for a held wallet");

    // A wallet that is held for a moment only delays the commands.
    let (answers, ()) = tokio::join!(join_all((0..20).map(|_| bank.credit(held, 1))), async {
        wait_until("a transaction waits for the wallet", async || world.waiting_count().await > 0).await;
        transaction.commit().await.unwrap();
    });
    let mut versions: Vec<i64> = answers.into_iter().map(|answer| answer.accepted().version()).collect();
    versions.sort_unstable();
    assert_eq!(versions, (2..=21).collect::<Vec<_>>());
    bank.credit(unborn, 1).await.accepted();
    assert_sound(&world).await;
}

#[tokio::test]
async fn two_processes_share_a_hot_wallet_and_neither_starves() {
    const COMMAND_COUNT: i64 = 30;
    let world = World::new().await;
    let ((_one, first), (_two, second)) = tokio::join!(Bank::start(&world), Bank::start(&world));
    let hot = WalletId::new();
    let clients = [&first, &second].map(|bank| {
        join_all((0..16).map(|_| async {
            for _ in 0..COMMAND_COUNT {
                bank.credit(hot, 1).await.accepted();
            }
        }))
    });
    join_all(clients).await;
    let state = world.client().query_one("SELECT version, balance_minor FROM wallets", &[]).await.unwrap();
    let count = 2 * 16 * COMMAND_COUNT;
    assert_eq!((state.get::<_, i64>(0), state.get::<_, i64>(1)), (count, count * 100));
    assert_sound(&world).await;
}

#[tokio::test]
async fn transfers_in_both_directions_do_not_deadlock() {
    let world = World::new().await;
    let ((_one, first), (_two, second)) = tokio::join!(Bank::start(&world), Bank::start(&world));
    let (left, right) = (WalletId::new(), WalletId::new());
    tokio::join!(async { first.credit(left, 1000).await.accepted() }, async {
        second.credit(right, 1000).await.accepted()
    });
    let clients = (0..16).map(|number| {
        let bank = if number % 2 == 0 { &first } else { &second };
        let (from, to) = if number % 4 < 2 { (left, right) } else { (right, left) };
        async move {
            for _ in 0..20 {
                bank.transfer(from, to, 1).await.accepted();
            }
        }
    });
    join_all(clients).await;
    assert_eq!(world.number("SELECT sum(balance_minor)::bigint FROM wallets").await, 200_000);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(world.number(deadlocks).await, 0);
    assert_sound(&world).await;
}

#[tokio::test]
async fn a_key_has_one_outcome_in_all_processes() {
    let world = World::new().await;
    let ((_one, first), (_two, second)) = tokio::join!(Bank::start(&world), Bank::start(&world));
    let (wallet, other) = (WalletId::new(), WalletId::new());
    let body = json!({"amount": 5});
    for (action, key) in [("debit", "a-debit-key"), ("credit", "a-credit-key"), ("debit", "a-second-debit-key")] {
        let answers =
            join_all((0..24).map(|number| [&first, &second][number % 2].send(wallet, action, &body, Some(key)))).await;
        assert_eq!(answers.iter().filter(|answer| !answer.is_replayed).count(), 1, "{action}: {answers:?}");
        assert!(answers.iter().all(|answer| answer.body == answers[0].body), "{action}: {answers:?}");
        assert_eq!(answers[0].status.is_success(), key != "a-debit-key", "{answers:?}");
    }
    assert_eq!(world.number("SELECT count(*) FROM wallet_events").await, 3);

    // The rejected debit is replayed, although it would be accepted now.
    first.credit(wallet, 50).await.accepted();
    assert!(second.send(wallet, "debit", &body, Some("a-debit-key")).await.rejected().is_replayed);

    let conflicts = [
        first.send(wallet, "credit", &json!({"amount": 6}), Some("a-credit-key")).await,
        second.send(wallet, "debit", &body, Some("a-credit-key")).await,
        first.send(wallet, "transfer", &json!({"amount": 5, "to": other.as_str()}), Some("a-credit-key")).await,
    ];
    for conflict in conflicts {
        assert_eq!(conflict.status, StatusCode::CONFLICT, "{conflict:?}");
    }
    let elsewhere = first.send(other, "credit", &json!({"amount": 6}), Some("a-credit-key")).await.accepted();
    assert!(!elsewhere.is_replayed, "a key belongs to one wallet");
    assert_eq!(world.number("SELECT count(*) FROM wallet_events").await, 5);
    assert_sound(&world).await;
}

#[tokio::test]
async fn a_full_wallet_rejects_what_does_not_fit() {
    let world = World::new().await;
    let (_api, bank) = Bank::start(&world).await;
    let (full, payer) = (WalletId::new(), WalletId::new());
    let insert =
        "INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, action, amount_minor)
                  VALUES ($1::text, $2::text, 1, $3, true, 'credit', $3)";
    let balance = BALANCE_MAX - 100;
    world.client().execute(insert, &[&EventId::new().as_str(), &full.as_str(), &balance]).await.unwrap();
    let data = json!({
        "wallet_id": full.as_str(), "version": 1, "amount_minor": balance, "balance_minor": balance,
        "counterparty": "world", "event_id": world.client().query_one("SELECT event_id::text FROM wallet_events", &[])
            .await.unwrap().get::<_, String>(0),
    });
    let data = data.to_string();
    let record = pglog::NewRecord { key: "", object: "wallet", action: "credit", data: &data, traceparent: None };
    pglog::stage(world.client(), record).await.unwrap();

    bank.credit(payer, 10).await.accepted();
    bank.credit(full, 2).await.rejected();
    bank.transfer(payer, full, 2).await.rejected();
    bank.transfer(payer, full, 1).await.accepted();
    bank.transfer(payer, full, 1).await.rejected();
    assert_eq!(bank.debit(full, 1).await.accepted().version(), 3);
    assert_eq!(world.number("SELECT count(*) FROM wallet_events WHERE NOT accepted").await, 3);
    assert_sound(&world).await;
}

#[tokio::test]
async fn no_command_takes_effect_behind_a_begin_that_fails() {
    let world = World::new().await;
    let proxy = BeginProxy::start(world.database_url()).await;
    let direct: tokio_postgres::Config = world.database_url_of("api").parse().unwrap();
    let url = proxy.url(direct.get_user().unwrap(), direct.get_dbname().unwrap());
    let (_api, bank) = Bank::start_at(&world, &["--database-url", &url]).await;
    let wallet = WalletId::new();
    let mut accepted_count = 0;
    for _ in 0..20 {
        accepted_count += i64::from(bank.credit(wallet, 1).await.status.is_success());
        assert_eq!(world.number("SELECT count(*) FROM wallet_events").await, accepted_count);
    }
    let begins = proxy.seen()["api"];
    assert!(begins.broken_count > 0 && accepted_count > 0, "{begins:?}");
    assert_eq!(accepted_count, (begins.count - begins.broken_count) as i64, "each group without a BEGIN fails");
    assert_sound(&world).await;
}
