//! Wallets that other sessions hold for long: commands for all other wallets go on, in every process.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use reqwest::StatusCode;
use tests::{PATIENCE, World, wait_until};
use wallet::write::{Command, write};
use wallet::{Action, Amount, WalletId};

use crate::wallet_fixture::{Bank, assert_sound};

#[tokio::test]
async fn many_held_wallets_leave_a_hot_wallet_alone_that_two_processes_share() {
    const HELD_COUNT: usize = 32;
    const CLIENT_COUNT: usize = 8;
    const COMMAND_COUNT: usize = 40;
    let world = World::new().await;
    let ((_one, first), (_two, second)) = tokio::join!(Bank::start(&world), Bank::start(&world));
    let banks = [&first, &second];
    let held: Vec<WalletId> = (0..HELD_COUNT).map(|_| WalletId::new()).collect();
    join_all(held.iter().map(|wallet| async { first.credit(*wallet, 1).await.accepted() })).await;
    let mut holder = world.connect().await;
    let transaction = holder.transaction().await.unwrap();
    transaction.query("SELECT FROM wallet_locks FOR UPDATE", &[]).await.unwrap();

    let (hot, is_over, refused_count) = (WalletId::new(), AtomicBool::new(false), AtomicUsize::new(0));
    let of_held = banks.iter().flat_map(|bank| held.iter().map(move |wallet| (bank, wallet)));
    let of_held = join_all(of_held.map(|(bank, wallet)| async {
        while !is_over.load(Ordering::Relaxed) {
            bank.credit(*wallet, 1).await.refused("wallet_busy");
            refused_count.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let of_hot = join_all((0..CLIENT_COUNT * banks.len()).map(|number| async move {
        let mut busy_count = 0;
        for _ in 0..COMMAND_COUNT {
            let answer = banks[number % banks.len()].credit(hot, 1).await;
            busy_count += usize::from(answer.status != StatusCode::OK);
        }
        busy_count
    }));
    let (_, busy_count) = tokio::join!(of_held, async {
        let refused = async || refused_count.load(Ordering::Relaxed) >= 3 * banks.len() * HELD_COUNT;
        wait_until("the held wallets are known", refused).await;
        let busy_count: usize = of_hot.await.into_iter().sum();
        is_over.store(true, Ordering::Relaxed);
        busy_count
    });
    // A machine that stands still for a moment may cost one group.
    let count = CLIENT_COUNT * banks.len() * COMMAND_COUNT;
    assert!(busy_count <= count / 20, "{busy_count} of {count} commands for a free wallet were refused");
    transaction.commit().await.unwrap();
    join_all(held.iter().map(|wallet| async { first.credit(*wallet, 1).await.accepted() })).await;
    assert_sound(&world).await;
}

#[tokio::test]
async fn a_lock_row_that_is_not_committed_delays_no_other_command_once_it_is_known() {
    const CLIENT_COUNT: usize = 8;
    const COMMAND_COUNT: usize = 3;
    let world = World::new().await;
    let (api, bank) = Bank::start_watched(&world).await;
    let unborn = WalletId::new();
    let mut holder = world.connect().await;
    let transaction = holder.transaction().await.unwrap();
    transaction.execute("INSERT INTO wallet_locks VALUES ($1::text)", &[&unborn.as_str()]).await.unwrap();
    bank.credit(unborn, 1).await.refused("wallet_busy");

    let is_over = AtomicBool::new(false);
    let of_unborn = join_all((0..CLIENT_COUNT).map(|_| async {
        for _ in 0..COMMAND_COUNT {
            bank.credit(unborn, 1).await.refused("wallet_busy");
        }
    }));
    let of_others = async {
        while !is_over.load(Ordering::Relaxed) {
            // Each needs a new row. In a group with the other row it would not be inserted, and the wallet would count as held.
            bank.credit(WalletId::new(), 1).await.accepted();
        }
    };
    tokio::join!(of_others, async {
        of_unborn.await;
        is_over.store(true, Ordering::Relaxed);
    });
    let count = (1 + CLIENT_COUNT * COMMAND_COUNT) as f64;
    assert_eq!(api.metric("rocket_rides_wallet_held_total").await, count, "commands for other wallets were delayed");
    assert_eq!(api.metric("rocket_rides_wallet_busy_total").await, count, "each of them was refused");

    transaction.rollback().await.unwrap();
    let is_free = async || bank.credit(unborn, 1).await.status == StatusCode::OK;
    wait_until("the wallet is free", is_free).await;
}

#[tokio::test]
async fn a_group_leaves_its_limits_in_no_session() {
    let world = World::new().await;
    let limits = async || {
        let show = "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')";
        let row = world.client().query_one(show, &[]).await.unwrap();
        (row.get::<_, String>(0), row.get::<_, String>(1))
    };
    let before = limits().await;
    let wallet = WalletId::new();
    let command = |minor| Command {
        wallet,
        action: Action::Debit,
        to: None,
        amount: Amount::from_minor(minor).unwrap(),
        key: Some("a-key".to_owned()),
        origin_ip: Ipv4Addr::LOCALHOST.into(),
        traceparent: None,
    };
    // Committed, and rolled back because there is nothing to write.
    for (waits_for, minor) in [(None, 100), (Some(wallet), 200)] {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let written = write(world.client(), &[command(minor)], waits_for, &HashSet::new(), deadline).await;
        assert_eq!(written.unwrap().verdicts.len(), 1);
        assert_eq!(limits().await, before);
    }
}
