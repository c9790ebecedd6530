//! The fold `wallets` makes the read model certain: documents follow the events, whatever dies (W6).

use std::os::unix::process::ExitStatusExt;

use tests::{PrivateRedis, Process, WalletReader, WalletTraffic, World, change_wallets, new_wallets, wait_until};
use wallet::documents::docs;

/// The projector, under the name `wallets`.
pub const PROJECTOR: [&str; 3] = ["wallets", "--fold", "wallets"];

/// Publishes all records, and lets the projector fold them and compare every wallet once.
pub async fn drain(world: &World) {
    Process::start(world, "streamer", &["--drain"]).succeed().await;
    Process::start(world, "consumer", &[&PROJECTOR[..], &["--drain"]].concat()).succeed().await;
}

#[tokio::test]
async fn documents_follow_the_events_and_equal_postgres_in_every_byte() {
    let world = World::new().await;
    let wallets = new_wallets(30);
    let streamer = Process::start(&world, "streamer", &[]);
    let projector = Process::start(&world, "consumer", &[&PROJECTOR[..], &["--fault-rate", "0.2"]].concat());
    wait_until("the model has a mark", async || world.wallets_epoch().await.is_some()).await;
    let reader = WalletReader::start(&world, &wallets);
    for round in 0..60 {
        // Without the api, every document is written by the projector. Some debits are rejected.
        change_wallets(world.client(), &wallets[round % 7..], [1000, -900, 1, -300][round % 4]).await;
        world.write_rides(3).await;
    }
    world.wait_until_wallets_equal("wallets").await;
    reader.assert_never_older();
    let rejected = "SELECT count(*) FROM wallet_events WHERE NOT accepted";
    assert!(world.number(rejected).await > 0, "some attempts were rejected");
    projector.stop().await;
    streamer.stop().await;
}

#[tokio::test]
async fn a_new_projector_begins_at_the_head_and_builds_the_model_from_postgres() {
    let world = World::new().await;
    let wallets = new_wallets(4500);
    for _ in 0..3 {
        change_wallets(world.client(), &wallets, 500).await;
    }
    Process::start(&world, "streamer", &["--drain"]).succeed().await;
    let output = Process::start(&world, "consumer", &[&PROJECTOR[..], &["--drain"]].concat()).succeed().await;
    assert!(output.contains("built anew from Postgres"), "{output}");
    assert!(output.contains("compared_count=4500 mended_count=4500"), "{output}");
    assert!(!output.contains("batch committed"), "no record is folded: {output}");
    world.wait_until_wallets_equal("wallets").await;
    // The next one finds everything as it should be.
    let epoch = world.wallets_epoch().await;
    let output = Process::start(&world, "consumer", &[&PROJECTOR[..], &["--drain"]].concat()).succeed().await;
    assert!(output.contains("compared_count=4500 mended_count=0"), "{output}");
    assert_eq!(world.wallets_epoch().await, epoch);
}

#[tokio::test]
async fn commands_that_make_no_sense_for_a_model_say_so() {
    let world = World::new().await;
    change_wallets(world.client(), &new_wallets(3), 500).await;
    for from in ["start", "retained"] {
        let output = Process::start(&world, "consumer", &[&PROJECTOR[..], &["--from", from]].concat()).fail(1).await;
        assert!(output.contains("leave out --from"), "{output}");
    }
    assert_eq!(world.number("SELECT count(*) FROM checkpoints").await, 0, "nothing is registered");
    world.stage_wallet_data(r#"{"wallet_id":"no ksuid","version":1,"event_id":"x"}"#).await;
    Process::start(&world, "consumer", &[&PROJECTOR[..], &["--drain"]].concat()).succeed().await;
    drain(&world).await;
    let output = Process::start(&world, "consumer", &["other", "--copy-from", "wallets"]).fail(1).await;
    assert!(output.contains("has no state in Postgres to copy"), "{output}");
    let output = Process::start(&world, "dead-letters", &["replay", "wallets", "4"]).fail(1).await;
    assert!(output.contains("Drop the dead letter"), "{output}");
    Process::start(&world, "dead-letters", &["drop", "wallets", "4"]).succeed().await;
    let output = Process::start(&world, "consumer", &["other", "--fold", "wallets", "--partition", "1"]).fail(2).await;
    assert!(output.contains("the log has 1 partition(s)"), "{output}");
    world.wait_until_wallets_equal("wallets").await;
    Process::start(&world, "consumer", &["wallets", "--unregister"]).succeed().await;
    Process::start(&world, "consumer", &PROJECTOR).fail(2).await;
    // A projector that comes back has missed records: it begins a new epoch.
    change_wallets(world.client(), &new_wallets(3), 500).await;
    Process::start(&world, "streamer", &["--drain"]).succeed().await;
    Process::start(&world, "consumer", &[&PROJECTOR[..], &["--register"]].concat()).succeed().await;
    let output = Process::start(&world, "consumer", &[&PROJECTOR[..], &["--drain"]].concat()).succeed().await;
    assert!(output.contains("Redis has no mark"), "{output}");
    world.wait_until_wallets_equal("wallets").await;
}

/// From then on no document is made certain, so no reader may believe one.
#[tokio::test]
async fn an_unregistered_projector_leaves_no_document_that_is_believed() {
    let mut redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let wallets = new_wallets(20);
    change_wallets(world.client(), &wallets, 500).await;
    drain(&world).await;
    let mut projector = Process::start(&world, "consumer", &PROJECTOR);
    projector.wait_for("compared_count=20 mended_count=0").await;
    let model = world.wallet_model();
    wait_until("readers believe it", async || matches!(model.head(wallets[0]).await, Ok(Some(_)))).await;
    Process::start(&world, "consumer", &["wallets", "--unregister"]).succeed().await;
    // The projector finds no mark. It sets no other one.
    let output = projector.fail(1).await;
    assert!(output.contains("this consumer was unregistered while it ran"), "{output}");
    assert_eq!(world.wallets_epoch().await, None);
    assert_eq!(model.head(wallets[0]).await, Ok(None));

    // Without Redis the mark stays. A person is told so.
    Process::start(&world, "consumer", &[&PROJECTOR[..], &["--register"]].concat()).succeed().await;
    redis.kill().await;
    let output = Process::start(&world, "consumer", &["wallets", "--unregister"]).fail(1).await;
    let advice = format!("delete the key {} there", world.wallets_mark_key());
    assert!(output.contains("consumer wallets is unregistered") && output.contains(&advice), "{output}");
}

/// Between the model's change and the checkpoint's there is always a moment. The process kills itself there.
#[tokio::test]
async fn a_projector_killed_at_any_named_point_goes_on_where_it_was() {
    let world = World::new().await;
    let wallets = new_wallets(40);
    change_wallets(world.client(), &wallets, 500).await;
    drain(&world).await;
    let reader = WalletReader::start(&world, &wallets);
    let epoch = world.wallets_epoch().await;
    for fault in ["die-before-commit", "die-at-commit", "die-after-commit"] {
        for _ in 0..50 {
            change_wallets(world.client(), &wallets, 100).await;
        }
        Process::start(&world, "streamer", &["--drain"]).succeed().await;
        let inject = format!("{fault}:2");
        let killed =
            Process::start(&world, "consumer", &[&PROJECTOR[..], &["--inject", &inject]].concat()).ended().await;
        assert_eq!(killed.signal(), Some(9), "{fault}");
        drain(&world).await;
        world.wait_until_wallets_equal("wallets").await;
    }
    reader.assert_never_older();
    assert_eq!(world.wallets_epoch().await, epoch, "a killed projector is no reason to build the model anew");
}

#[tokio::test]
async fn a_projector_killed_again_and_again_leaves_no_document_behind() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let wallets = new_wallets(700);
    change_wallets(world.client(), &wallets, 5000).await;
    let streamer = Process::start(&world, "streamer", &[]);
    let traffic = WalletTraffic::start(&world, &wallets).await;
    let reader = WalletReader::start(&world, &wallets);
    for round in 0..25_u64 {
        let mut projector = Process::start(&world, "consumer", &PROJECTOR);
        projector.wait_for("consumer started").await;
        if round == 12 {
            world.forget_wallets().await;
        }
        // From the first statement to the middle of its work.
        tokio::time::sleep(std::time::Duration::from_millis(round * 7)).await;
        projector.kill().await;
    }
    traffic.passes(50).await;
    traffic.stop().await;
    let projector = Process::start(&world, "consumer", &PROJECTOR);
    world.wait_until_wallets_equal("wallets").await;
    reader.assert_never_older();
    projector.stop().await;
    streamer.stop().await;
}

/// Two processes of one name take turns. Two names keep two checkpoints and one model.
#[tokio::test]
async fn two_projectors_harm_nothing_whether_they_share_a_name_or_not() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let wallets = new_wallets(200);
    change_wallets(world.client(), &wallets, 5000).await;
    let streamer = Process::start(&world, "streamer", &[]);
    let names = ["wallets", "wallets", "others"];
    let mut projectors = names.map(|name| Process::start(&world, "consumer", &[name, "--fold", "wallets"]));
    wait_until("the model has a mark", async || world.wallets_epoch().await.is_some()).await;
    let traffic = WalletTraffic::start(&world, &wallets).await;
    let reader = WalletReader::start(&world, &wallets);
    for _ in 0..3 {
        traffic.passes(60).await;
        world.forget_wallets().await;
    }
    traffic.passes(60).await;
    traffic.stop().await;
    world.wait_until_wallets_equal("wallets").await;
    world.wait_until_wallets_equal("others").await;
    reader.assert_never_older();
    assert!(projectors.iter_mut().all(Process::is_running), "every process still runs");
    for projector in projectors {
        projector.stop().await;
    }
    streamer.stop().await;
}

/// An api that was stopped between its read of Postgres and its write.
#[tokio::test]
async fn a_late_writer_is_mended_by_the_scrubber() {
    let world = World::new().await;
    let wallets = new_wallets(5);
    change_wallets(world.client(), &wallets, 500).await;
    drain(&world).await;
    let model = world.wallet_model();
    model.mark().await.unwrap();
    let (epoch, old) = (model.epoch(), docs(world.client(), &wallets).await.unwrap());
    change_wallets(world.client(), &wallets, 500).await;
    drain(&world).await;
    // Beside the newer document it is refused.
    assert_eq!(model.put(epoch, &old).await.unwrap().kept_count, 5);
    assert!(world.outdated_wallets().await.is_empty());
    // If that was deleted, the old document is written, and the scrubber finds it.
    model.forget(&wallets).await.unwrap();
    assert_eq!(model.put(epoch, &old).await.unwrap().written_count, 5);
    assert_eq!(world.outdated_wallets().await.len(), 5);
    let projector = Process::start(&world, "consumer", &PROJECTOR);
    world.wait_until_wallets_equal("wallets").await;
    // Also long after the fast round, and if a program wrote something else.
    for garbage in ["", "{}", "\u{0}"] {
        let mut redis = world.redis().await;
        let key = format!("wallet.{}", wallets[0]);
        let _: () = redis::cmd("SET").arg(key).arg(garbage).query_async(&mut redis).await.unwrap();
        world.wait_until_wallets_equal("wallets").await;
    }
    assert_eq!(world.wallets_epoch().await, epoch.map(|epoch| epoch.to_string()), "no document was given up for this");
    projector.stop().await;
}
