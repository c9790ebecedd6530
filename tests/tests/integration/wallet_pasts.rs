//! Postgres goes back to an older state, and Redis does not. Documents of the past that is gone are given up (W6).

use nix::sys::signal::Signal;
use tests::{PrivatePostgres, PrivateRedis, Process, World, change_wallets, new_wallets, wait_until};
use wallet::WalletId;
use wallet::documents::docs;

use crate::wallet_projector::PROJECTOR;

/// Writes documents as the api does behind a commit.
async fn write_through(world: &World, wallets: &[WalletId]) {
    let model = world.wallet_model();
    model.mark().await.unwrap();
    let documents = docs(world.client(), wallets).await.unwrap();
    let written = model.put(model.epoch(), &documents).await.unwrap();
    assert_eq!(written.written_count as usize, wallets.len());
}

/// Forty wallets, and a projector that has made their documents.
async fn project_wallets(world: &World) -> (Vec<WalletId>, Process) {
    let wallets = new_wallets(40);
    change_wallets(world.client(), &wallets, 500).await;
    Process::start(world, "streamer", &["--drain"]).succeed().await;
    let projector = Process::start(world, "consumer", &PROJECTOR);
    world.wait_until_wallets_equal("wallets").await;
    (wallets, projector)
}

/// Puts Postgres back below a projector that lives on. `before` runs on the past that will be gone, `after` on the new one before
/// the projector looks at it.
async fn postgres_is_put_back(
    before: impl AsyncFnOnce(&World, &[WalletId]),
    after: impl AsyncFnOnce(&World, &[WalletId]),
) -> String {
    let mut postgres = PrivatePostgres::start().await;
    let redis = PrivateRedis::start(&[]).await;
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    let (wallets, mut projector) = project_wallets(&world).await;
    let earlier = world.wallets_epoch().await;
    let backup = postgres.stop_and_copy().await;
    postgres.start_again().await;
    let world = world.reconnected().await;
    wait_until("the restart has led to a new epoch", async || world.wallets_epoch().await != earlier).await;
    world.wait_until_wallets_equal("wallets").await;
    let first = world.wallets_epoch().await;
    before(&world, &wallets).await;
    let outdated = world.outdated_wallets().await;
    assert!(outdated.is_empty(), "the model is that of the past that will be gone: {outdated:?}");
    projector.signal(Signal::SIGSTOP);
    postgres.put_back(&backup).await;
    postgres.start_again().await;
    let world = world.reconnected().await;
    after(&world, &wallets).await;
    projector.signal(Signal::SIGCONT);
    let streamer = Process::start(&world, "streamer", &[]);
    world.wait_until_wallets_equal("wallets").await;
    assert_ne!(world.wallets_epoch().await, first, "documents of another past are given up");
    // The model goes on.
    change_wallets(world.client(), &wallets, 100).await;
    world.wait_until_wallets_equal("wallets").await;
    assert!(projector.is_running(), "it still runs");
    let output = projector.output();
    streamer.stop().await;
    projector.stop().await;
    output
}

async fn publish_and_fold(world: &World) {
    Process::start(world, "streamer", &["--drain"]).succeed().await;
    world.wait_until_wallets_equal("wallets").await;
}

#[tokio::test]
async fn a_postgres_put_back_behind_the_mark_is_found_by_the_offset() {
    let output = postgres_is_put_back(
        async |world, wallets| {
            change_wallets(world.client(), &wallets[..20], 100).await;
            publish_and_fold(world).await;
        },
        async |_, _| {},
    )
    .await;
    assert!(output.contains("the mark in Redis is beyond the log"), "{output}");
}

#[tokio::test]
async fn a_postgres_put_back_that_grew_past_the_mark_is_found_by_the_token() {
    let output = postgres_is_put_back(
        async |world, wallets| {
            change_wallets(world.client(), &wallets[..20], 100).await;
            publish_and_fold(world).await;
        },
        async |world, wallets| {
            // The same wallets, other events, and more of them.
            change_wallets(world.client(), &wallets[..20], 300).await;
            change_wallets(world.client(), &wallets[10..], 300).await;
            Process::start(world, "streamer", &["--drain"]).succeed().await;
        },
    )
    .await;
    assert!(output.contains("the mark in Redis is of another batch"), "{output}");
}

/// Documents that the api wrote behind commits whose records never got an offset. The mark tells nothing about them, and Postgres
/// has no row of the new wallets.
#[tokio::test]
async fn documents_of_before_are_given_up_when_postgres_was_restarted() {
    let output = postgres_is_put_back(
        async |world, wallets| {
            let new = new_wallets(20);
            change_wallets(world.client(), &wallets[..20], 100).await;
            change_wallets(world.client(), &new, 100).await;
            write_through(world, &wallets[..20]).await;
            write_through(world, &new).await;
        },
        async |_, _| {},
    )
    .await;
    assert!(output.contains("Postgres was restarted or is another server"), "{output}");
}

/// Redis has an event that Postgres lacks. The test forges it, because the scrubber does not ask for the reason.
#[tokio::test]
async fn a_document_newer_than_postgres_is_found_by_the_scrubber() {
    let world = World::new().await;
    let (wallets, mut projector) = project_wallets(&world).await;
    let first = world.wallets_epoch().await;
    let mut newer = docs(world.client(), &wallets[..1]).await.unwrap();
    newer[0].version += 1;
    let model = world.wallet_model();
    model.mark().await.unwrap();
    assert_eq!(model.put(model.epoch(), &newer).await.unwrap().written_count, 1);
    projector.wait_for("Redis has an event that Postgres lacks").await;
    world.wait_until_wallets_equal("wallets").await;
    assert_ne!(world.wallets_epoch().await, first);
    projector.stop().await;
}

/// The new past has the same versions, by other events.
#[tokio::test]
async fn a_document_of_the_same_version_with_another_event_is_found() {
    let output = postgres_is_put_back(
        async |world, wallets| {
            change_wallets(world.client(), &wallets[..20], 100).await;
            write_through(world, &wallets[..20]).await;
        },
        async |world, wallets| change_wallets(world.client(), &wallets[..20], 300).await,
    )
    .await;
    let doubts = ["Postgres was restarted or is another server", "Redis has no mark"];
    assert!(doubts.iter().any(|doubt| output.contains(doubt)), "{output}");
}

/// A standby that lacks the last transactions is promoted. Some of them were folded, and some were only written through.
#[tokio::test]
async fn an_asynchronous_failover_leaves_no_document_of_the_lost_transactions() {
    let (mut primary, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let (world, standby) = World::with_standby(&primary, &redis).await;
    let wallets = new_wallets(60);
    change_wallets(world.client(), &wallets, 500).await;
    let mut streamer = Process::start(&world, "streamer", &[]);
    let mut projector = Process::start(&world, "consumer", &PROJECTOR);
    world.wait_until_wallets_equal("wallets").await;
    let first = world.wallets_epoch().await;
    standby.follows(&primary).await;
    standby.stop_following().await;
    change_wallets(world.client(), &wallets[..20], 100).await;
    world.wait_until_wallets_equal("wallets").await;
    primary.kill().await;
    standby.promote().await;
    let world = world.reconnected().await;
    assert_eq!(world.number("SELECT count(*) FROM wallet_events").await, 60, "20 events are lost");
    change_wallets(world.client(), &wallets[10..30], 300).await;
    world.wait_until_wallets_equal("wallets").await;
    assert_ne!(world.wallets_epoch().await, first);
    wait_until("every process works on", async || streamer.is_running() && projector.is_running()).await;
    projector.stop().await;
    streamer.stop().await;
}
