//! Folds with rows and with a model, of a log that is cut into partitions.

use std::os::unix::process::ExitStatusExt;

use tests::{
    PrivateRedis, Process, WalletReader, WalletTraffic, World, change_wallets, free_port, new_wallets, scratch_folder,
    start_streamer, wait_until,
};

use crate::wallet_projector::PROJECTOR;

/// The projector dies, and the documents are certain again.
#[tokio::test(flavor = "multi_thread")]
async fn wallets_of_eight_partitions_have_one_model() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis_cut(&redis.url(), 8).await;
    let streamers = start_streamer(&world, &world.partitions().await, &[]);
    let wallets = new_wallets(60);
    let start = || Process::start(&world, "consumer", &[&PROJECTOR[..], &["--fault-rate", "0.1"]].concat());
    let mut projector = start();
    wait_until("the model has a mark", async || world.wallets_epoch().await.is_some()).await;
    let (reader, traffic) = (WalletReader::start(&world, &wallets), WalletTraffic::start(&world, &wallets).await);
    for round in 0..40 {
        change_wallets(world.client(), &wallets[round % 7..], [1000, -900, 1, -300][round % 4]).await;
    }
    projector.signal(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(projector.ended().await.signal(), Some(9));
    projector = start();
    traffic.passes(100).await;
    traffic.stop().await;
    world.wait_until_wallets_equal("wallets").await;
    reader.assert_never_older();
    let used = "SELECT count(*) FROM checkpoints WHERE name = 'wallets' AND last_offset > 0";
    assert_eq!(world.number(used).await, 8, "the wallets are in all partitions");
    projector.stop().await;
    streamers.stop().await;
}

/// The place of one partition in the mark is put back: that is enough to doubt all documents.
#[tokio::test]
async fn a_mark_that_is_behind_in_one_partition_begins_a_new_epoch() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis_cut(&redis.url(), 8).await;
    let wallets = new_wallets(60);
    change_wallets(world.client(), &wallets, 500).await;
    world.publish(&world.partitions().await).await;
    let drain = async || Process::start(&world, "consumer", &[&PROJECTOR[..], &["--drain"]].concat()).succeed().await;
    drain().await;
    let mark = |output: &str| output.contains("the documents of all wallets are built anew");
    change_wallets(world.client(), &wallets, 500).await;
    world.publish(&world.partitions().await).await;
    let output = drain().await;
    assert!(!mark(&output), "nothing is doubted: {output}");
    let (key, mut connection) = (world.wallets_mark_key(), world.redis().await);
    let text: String = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
    let places = text.matches("\"offset\":").count();
    assert_eq!(places, 8, "{text}");
    let last = text.rfind("\"offset\":").unwrap();
    let (before, after) = text.split_at(last);
    let (_, token) = after.split_once(",\"token\":").unwrap();
    let behind = format!("{before}\"offset\":0,\"token\":{token}");
    redis::cmd("SET").arg(&key).arg(behind).exec_async(&mut connection).await.unwrap();
    let output = drain().await;
    assert!(mark(&output) && output.contains("behind the checkpoint"), "{output}");
    world.wait_until_wallets_equal("wallets").await;
}

#[tokio::test]
async fn the_model_of_wallets_wants_a_server_of_its_own_beside_a_cluster() {
    let port = free_port().to_string();
    let redis = PrivateRedis::start(&["--port", &port]).await;
    let world = World::with_redis(&redis.url()).await;
    let seeds = format!("redis://127.0.0.1:{port},redis://localhost:{port}");
    let consumer = |more: &[&str]| {
        let args = [&PROJECTOR[..], &["--drain", "--redis-url", &seeds], more].concat();
        Process::start(&world, "consumer", &args)
    };
    let output = consumer(&[]).fail(2).await;
    assert!(output.contains("REDIS_URL is a Redis Cluster") && output.contains("WALLETS_REDIS_URL"), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM checkpoints").await, 0);
    consumer(&["--wallets-redis-url", world.redis_url()]).succeed().await;
}

#[tokio::test]
async fn receipts_of_eight_partitions_are_noted_with_their_places_and_delivered() {
    let (world, folder) = (World::cut(8).await, scratch_folder());
    let stage = "INSERT INTO staged_log_records (partition, object, action, data)
        SELECT partition_of('user-' || id), 'receipt', 'create',
               json_build_object('ride_id', id, 'user_id', 1, 'amount', 2000, 'currency', 'usd')
        FROM generate_series(1, 40) AS id";
    world.client().batch_execute(stage).await.unwrap();
    world.publish(&world.partitions().await).await;
    let flags = ["receipts", "--drain", "--folder", folder.to_str().unwrap()];
    Process::start(&world, "receipts", &flags).succeed().await;
    assert_eq!(world.number("SELECT count(*) FROM receipts WHERE delivered_at IS NOT NULL").await, 40);
    assert_eq!(world.number("SELECT count(DISTINCT (partition, record_offset)) FROM receipts").await, 40);
    assert_eq!(world.number("SELECT count(DISTINCT partition) FROM receipts").await, 8);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 40);
    std::fs::remove_dir_all(&folder).unwrap();
}
