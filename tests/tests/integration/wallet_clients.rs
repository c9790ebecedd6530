//! Concurrent clients of two apis, against a naive model: every response is an event, and the events of all clients are a
//! history that a single list of balances can follow.

use std::collections::HashMap;

use futures_util::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tests::{Process, World};
use wallet::WalletId;

use crate::wallet_fixture::{Answer, Bank, assert_sound};

const WALLET_COUNT: usize = 3;

/// One command of a client.
#[derive(Debug, Clone)]
struct Step {
    action: &'static str,
    wallet: usize,
    to: usize,
    amount: i64,
    /// Few keys, so that clients share them.
    key: Option<u8>,
}

fn step() -> impl Strategy<Value = Step> {
    let actions = prop_oneof![Just("credit"), Just("debit"), Just("transfer")];
    let keys = prop_oneof![2 => Just(None), 1 => (0..20_u8).prop_map(Some)];
    (actions, 0..WALLET_COUNT, 1..WALLET_COUNT, 1..4_i64, keys).prop_map(|(action, wallet, away, amount, key)| Step {
        action,
        wallet,
        to: (wallet + away) % WALLET_COUNT,
        amount,
        key,
    })
}

proptest! {
    // Each case takes a database and two processes.
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 10, ..ProptestConfig::default() })]

    #[test]
    fn responses_and_events_agree_with_a_naive_model(clients in vec(vec(step(), 1..25), 1..8)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(check(clients));
    }
}

async fn check(clients: Vec<Vec<Step>>) {
    let world = World::new().await;
    let ((_one, first), (_two, second)) = tokio::join!(Bank::start(&world), Bank::start(&world));
    let mut streamer = Process::start(&world, "streamer", &[]);
    streamer.wait_until_publishing(1).await;
    let wallets: Vec<WalletId> = (0..WALLET_COUNT).map(|_| WalletId::new()).collect();
    let sent = join_all(clients.iter().enumerate().map(|(number, steps)| {
        let (bank, wallets) = ([&first, &second][number % 2], &wallets);
        async move {
            let mut answers = Vec::new();
            for step in steps {
                answers.push((step, send(bank, wallets, step).await));
            }
            answers
        }
    }));
    let answers: Vec<(&Step, Answer)> = sent.await.into_iter().flatten().collect();
    streamer.stop().await;
    let events = events(&world).await;
    follow(&events);
    compare(&answers, &events, &wallets);
    if !answers.is_empty() {
        assert_sound(&world).await;
    }
}

async fn send(bank: &Bank, wallets: &[WalletId], step: &Step) -> Answer {
    let body = match step.action {
        "transfer" => json!({"amount": step.amount, "to": wallets[step.to].as_str()}),
        _ => json!({"amount": step.amount}),
    };
    let key = step.key.map(|key| format!("a-key-of-all-clients-{key}"));
    bank.send(wallets[step.wallet], step.action, &body, key.as_deref()).await
}

/// An event, as the naive model needs it.
#[derive(Debug)]
struct Stored {
    wallet: String,
    version: i64,
    balance: i64,
    accepted: bool,
    amount: i64,
}

async fn events(world: &World) -> HashMap<String, Stored> {
    let query = "SELECT event_id::text, wallet_id::text, version, balance_minor, accepted, amount_minor
                 FROM wallet_events";
    let rows = world.client().query(query, &[]).await.unwrap();
    let stored = rows.iter().map(|row| {
        let stored = Stored {
            wallet: row.get(1),
            version: row.get(2),
            balance: row.get(3),
            accepted: row.get(4),
            amount: row.get(5),
        };
        (row.get(0), stored)
    });
    stored.collect()
}

/// Follows the accepted events of each wallet with a list of balances. A rejected event must be one that the balance at its
/// version could not bear.
fn follow(events: &HashMap<String, Stored>) {
    let mut balances: HashMap<&str, Vec<i64>> = HashMap::new();
    let mut in_order: Vec<&Stored> = events.values().collect();
    in_order.sort_by_key(|stored| (stored.version, !stored.accepted));
    for stored in in_order {
        let balances = balances.entry(&stored.wallet).or_insert_with(|| vec![0]);
        let before = *balances.last().unwrap();
        if stored.accepted {
            assert_eq!((stored.version, stored.balance), (balances.len() as i64, before + stored.amount), "{stored:?}");
            balances.push(stored.balance);
        } else {
            assert_eq!((stored.version, stored.balance), (balances.len() as i64 - 1, before), "{stored:?}");
            assert!(before + stored.amount < 0, "rejected although there is enough: {stored:?}");
        }
    }
}

/// Each response names its event, with its version and its balance. Each event of a command has one response that is no replay.
fn compare(answers: &[(&Step, Answer)], events: &HashMap<String, Stored>, wallets: &[WalletId]) {
    let mut first_count = 0;
    let mut accepted_of_key: HashMap<(usize, u8), &Value> = HashMap::new();
    for (step, answer) in answers {
        match (answer.status.as_u16(), answer.code()) {
            (200, _) => {
                let stored = &events[answer.event_id()];
                let balance = answer.body["balance"].as_f64().unwrap();
                assert_eq!(stored.wallet, wallets[step.wallet].as_str(), "{answer:?}");
                assert_eq!(
                    (stored.version, stored.balance),
                    (answer.version(), (balance * 100.0) as i64),
                    "{answer:?}"
                );
                assert_eq!(stored.amount.abs(), step.amount * 100, "{answer:?}");
                if let Some(key) = step.key {
                    let event_id = accepted_of_key.entry((step.wallet, key)).or_insert(&answer.body["event_id"]);
                    assert_eq!(**event_id, answer.body["event_id"], "one key, two events");
                }
            }
            (400, "rejected") => {}
            (409, _) if step.key.is_some() => continue,
            _ => panic!("{step:?}: {answer:?}"),
        }
        first_count += usize::from(!answer.is_replayed);
        assert!(!answer.is_replayed || step.key.is_some(), "{answer:?}");
    }
    let received = events.values().filter(|stored| stored.accepted && stored.amount > 0).count();
    let sent = answers
        .iter()
        .filter(|(step, answer)| answer.status.is_success() && !answer.is_replayed && step.action != "debit")
        .count();
    assert_eq!(received, sent, "each credit and each transfer adds to one wallet, once");
    let transfers = answers
        .iter()
        .filter(|(step, answer)| answer.status.is_success() && !answer.is_replayed && step.action == "transfer")
        .count();
    assert_eq!(events.len(), first_count + transfers, "each command is an event, once, and a transfer is two");
}
