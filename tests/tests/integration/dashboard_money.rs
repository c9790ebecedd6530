//! The live page counts the money of all wallets, and tells whether it adds up.

use serde_json::json;
use tests::{World, wait_until};
use wallet::WalletId;

use crate::dashboard::Page;
use crate::dashboard_wallets::{wallets, write_event};

#[tokio::test]
async fn money_that_does_not_add_up_is_told() {
    let world = World::new().await;
    let mut page = Page::start(&world, &[]).await;
    let id = WalletId::new();
    write_event(world.client(), id, (1, 500), 500, None).await;
    let adds_up = async |expected: [&str; 2], adds_up: bool| {
        wait_until(&format!("the sums are {expected:?}"), async || {
            let money = wallets(&page).await["money"].take();
            ["balances", "from_world"].map(|name| money[name].clone()) == expected.map(|sum| json!(sum))
                && money["adds_up"] == adds_up
        })
        .await;
    };
    adds_up(["5.00", "5.00"], true).await;
    // A forged event: the balance has a cent that came from nowhere.
    write_event(world.client(), id, (2, 601), 100, None).await;
    adds_up(["6.01", "6.00"], false).await;
    page.process.wait_for("the balances of the wallets do not sum to accepted credits minus debits").await;
    page.process.stop().await;
}

/// Postgres ends a count at its time limit as it does here, because another session asks for it.
#[tokio::test]
async fn a_count_that_takes_too_long_is_told_and_not_begun_again_at_once() {
    const COUNTING: &str = "query LIKE '-- dashboard::count_money%' AND state = 'active'";
    let world = World::new().await;
    write_event(world.client(), WalletId::new(), (1, 500), 500, None).await;
    let mut holder = world.connect().await;
    let held = holder.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE wallet_locks IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let page = Page::start(&world, &[]).await;
    let counting = format!("{COUNTING} AND clock_timestamp() > query_start + interval '3 seconds'");
    wait_until("the count has taken a while", async || world.waiting_count_where(&counting).await == 1).await;
    let cancel = format!("SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE {COUNTING}");
    assert_eq!(world.number(&cancel).await, 1);
    held.rollback().await.unwrap();
    wait_until("the page tells it", async || {
        let wallets = wallets(&page).await;
        let problem = wallets["money_problem"].as_str().unwrap_or_default().to_owned();
        problem.starts_with("Postgres needs more than a minute") && wallets["problem"].is_null()
    })
    .await;
    let told_at = wallets(&page).await["at_ms"].as_i64().unwrap();
    wait_until("two more seconds are sampled", async || {
        let wallets = wallets(&page).await;
        assert!(wallets["money"].is_null(), "it was counted again at once: {wallets}");
        wallets["at_ms"].as_i64() > Some(told_at + 2000)
    })
    .await;
    page.process.stop().await;
}
