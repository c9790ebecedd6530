//! The projector step by step: what is certain at each checkpoint, and which rounds the scrubber makes.

use common::shutdown::CancellationToken;
use consumer::{Consumer, Fault, Interruption, Model, Progress, WalletsFold};
use monitor::Health;
use stream::resp::Commands;
use tests::{Process, WalletTraffic, World, change_wallets, new_wallets, wait_until};
use wallet::{WalletId, WalletsArgs};

use crate::wallet_projector::PROJECTOR;

/// A projector that the test drives.
fn projector(world: &World) -> Consumer<Model<WalletsFold>> {
    let config = world.consumer_config("wallets");
    let (args, health) = (WalletsArgs::default(), Health::default());
    let fold = WalletsFold::with_model(&args, &config.postgres, &config.stream, &health).unwrap();
    Consumer::new(&config, Model(fold), CancellationToken::new())
}

/// Runs steps until nothing is left to do at once.
async fn rest(projector: &mut Consumer<Model<WalletsFold>>) {
    while projector.run_once(Fault::None, None).await.unwrap() != Progress::default() {}
}

/// More wallets than the scrubber reaches within seconds, compared once. Returns the last ones in its order.
async fn many_wallets(world: &World, projector: &mut Consumer<Model<WalletsFold>>) -> Vec<WalletId> {
    let mut wallets = new_wallets(4500);
    wallets.sort();
    change_wallets(world.client(), &wallets, 500).await;
    world.drain_streamer(&mut world.streamer()).await;
    rest(projector).await;
    assert!(world.outdated_wallets().await.is_empty(), "all documents are built before the projector rests");
    wallets.split_off(4480)
}

#[tokio::test]
async fn documents_are_certain_before_the_checkpoint_moves() {
    let world = World::new().await;
    let mut projector = projector(&world);
    let last = many_wallets(&world, &mut projector).await;
    let before = projector.state().unwrap().0;
    change_wallets(world.client(), &last, 100).await;
    world.drain_streamer(&mut world.streamer()).await;
    let crash = projector.run_once(Fault::CrashBeforeCommit, None).await.unwrap_err();
    assert!(matches!(crash.downcast_ref(), Some(Interruption::Crash)), "{crash:#}");
    let checkpoint = "SELECT last_offset FROM checkpoints WHERE name = 'wallets'";
    assert_eq!(world.number(checkpoint).await, before, "the checkpoint has not moved");
    assert!(world.outdated_wallets().await.is_empty(), "the documents are certain all the same");
    let epoch = world.wallets_epoch().await;
    let progress = projector.run_once(Fault::None, None).await.unwrap();
    assert_eq!((progress.applied_count, world.number(checkpoint).await), (20, before + 20));
    assert_eq!(world.wallets_epoch().await, epoch);
}

/// A document that is written while both are read is newer in Redis than in Postgres, if Postgres is read first.
#[tokio::test]
async fn documents_that_are_written_while_wallets_are_compared_raise_no_doubt() {
    let world = World::new().await;
    let wallets = new_wallets(300);
    change_wallets(world.client(), &wallets, 90_000).await;
    rest(&mut projector(&world)).await;
    let epoch = world.wallets_epoch().await;
    let traffic = WalletTraffic::start(&world, &wallets).await;
    for _ in 0..40 {
        // A new session begins a round at full speed.
        rest(&mut projector(&world)).await;
    }
    traffic.stop().await;
    assert!(epoch.is_some() && world.wallets_epoch().await == epoch, "no document is given up");
}

/// A foreign entry must neither change a document nor move the mark, which no batch would have the token of.
#[tokio::test]
async fn an_entry_that_is_not_of_this_log_leaves_the_model_alone() {
    let world = World::new().await;
    let mut projector = projector(&world);
    let last = many_wallets(&world, &mut projector).await;
    let epoch = world.wallets_epoch().await;
    change_wallets(world.client(), &last, 100).await;
    // The records have offsets, and the stream has other entries there.
    let before = projector.state().unwrap().0;
    world.drain_streamer(&mut world.streamer()).await;
    let mut redis = world.redis().await;
    let () = redis::cmd("DEL").arg(world.stream_name()).query_async(&mut redis).await.unwrap();
    let mut adding = Commands::default();
    let mut adder = stream::codec::EntryWriter::new(world.stream_name());
    for (number, wallet) in last.iter().enumerate() {
        let data = format!(r#"{{"wallet_id":"{wallet}","version":99,"event_id":"{wallet}"}}"#);
        let id = stream::codec::EntryId { offset: before + 1 + number as i64, copy: 0 };
        let fields = stream::codec::Fields {
            object: "wallet",
            action: "credit",
            data: &data,
            staged_at_us: 1,
            token: 7,
            traceparent: None,
        };
        adder.add(&mut adding, id, &fields);
    }
    let mut wire = world.wire().await;
    wire.send(&adding).await.unwrap();
    wire.read(adding.count()).await.unwrap();
    rest(&mut projector).await;
    assert!(world.outdated_wallets().await.is_empty());
    assert_eq!(world.wallets_epoch().await, epoch, "no document is given up");
    assert_eq!(projector.state().unwrap().0, before + 20);
}

/// A text with the right version and event, and a wrong balance.
#[tokio::test]
async fn a_document_that_a_person_changed_is_replaced() {
    let world = World::new().await;
    let wallets = new_wallets(3);
    change_wallets(world.client(), &wallets, 500).await;
    let mut projector = projector(&world);
    rest(&mut projector).await;
    let (mut redis, key) = (world.redis().await, format!("wallet.{}", wallets[0]));
    let text: String = redis::cmd("GET").arg(&key).query_async(&mut redis).await.unwrap();
    let wrong = text.replace(r#""balance":5.00"#, r#""balance":6.00"#);
    assert_ne!(wrong, text);
    let () = redis::cmd("SET").arg(&key).arg(wrong).query_async(&mut redis).await.unwrap();
    wait_until("the scrubber has replaced it", async || {
        rest(&mut projector).await;
        world.outdated_wallets().await.is_empty()
    })
    .await;
}

/// A session that ends may be the sign of a fault.
#[tokio::test]
async fn after_each_new_session_all_wallets_are_compared_at_full_speed() {
    let world = World::new().await;
    change_wallets(world.client(), &new_wallets(4500), 500).await;
    let mut projector = Process::start(&world, "consumer", &PROJECTOR);
    projector.wait_for("compared_count=4500 mended_count=4500").await;
    let epoch = world.wallets_epoch().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'consumer wallets'";
    assert_eq!(world.number(end).await, 1);
    projector.wait_for("compared_count=4500 mended_count=0").await;
    assert_eq!(world.wallets_epoch().await, epoch, "nothing was lost, and no document is given up");
    projector.stop().await;
}
