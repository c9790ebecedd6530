//! Redis loses documents of wallets in every way. Readers go on, no reader is shown an older version over a newer one, and the
//! projector makes all documents equal Postgres again (W6).

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::{
    PrivateRedis, Process, WalletReader, WalletTraffic, World, change_wallets, new_wallets, scratch_folder, wait_until,
};
use wallet::WalletId;

use crate::wallet_projector::PROJECTOR;

/// A world with a private Redis, processes, traffic and a reader.
struct Scene {
    world: World,
    redis: PrivateRedis,
    folder: PathBuf,
    wallets: Vec<WalletId>,
    streamer: Process,
    projector: Process,
    reader: WalletReader,
}

impl Scene {
    async fn start(settings: &[&str]) -> Self {
        let folder = scratch_folder();
        let redis = PrivateRedis::start_in(folder.clone(), settings).await;
        let world = World::with_redis(&redis.url()).await;
        let wallets = new_wallets(300);
        change_wallets(world.client(), &wallets, 90_000).await;
        let streamer = Process::start(&world, "streamer", &[]);
        let projector = Process::start(&world, "consumer", &[&PROJECTOR[..], &["--fault-rate", "0.05"]].concat());
        world.wait_until_wallets_equal("wallets").await;
        let reader = WalletReader::start(&world, &wallets);
        Self { world, redis, folder, wallets, streamer, projector, reader }
    }

    /// All is well again, without help. Returns the output of the projector.
    async fn end(mut self) -> String {
        self.world.wait_until_wallets_equal("wallets").await;
        let read_count = self.reader.read_count();
        wait_until("readers read Redis again", async || self.reader.read_count() > read_count + 300).await;
        self.reader.assert_never_older();
        assert!(self.streamer.is_running() && self.projector.is_running(), "every process still runs");
        let output = self.projector.output();
        self.projector.stop().await;
        self.streamer.stop().await;
        output
    }

    /// The copy of a file, or of a folder, that Redis keeps.
    fn copy(&self, from: &Path, to: &Path) {
        let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(copied.success());
    }
}

#[tokio::test]
async fn flushall_under_traffic_begins_a_new_epoch() {
    let scene = Scene::start(&[]).await;
    let traffic = WalletTraffic::start(&scene.world, &scene.wallets).await;
    let first = scene.world.wallets_epoch().await;
    for _ in 0..4 {
        traffic.passes(40).await;
        scene.world.forget_wallets().await;
    }
    traffic.passes(100).await;
    traffic.stop().await;
    assert_ne!(scene.world.wallets_epoch().await, first);
    let output = scene.end().await;
    assert!(output.contains("Redis has no mark"), "{output}");
}

/// Only the documents and the mark are put back, on a server that runs on.
#[tokio::test]
async fn keys_put_back_to_an_older_state_are_found_by_the_mark() {
    let scene = Scene::start(&[]).await;
    let mut redis = scene.world.redis().await;
    let keys = async |redis: &mut redis::aio::MultiplexedConnection| -> Vec<String> {
        let wallets: Vec<String> = scene.wallets.iter().map(|wallet| format!("wallet.{wallet}")).collect();
        let mark = scene.world.wallets_mark_key();
        redis::cmd("MGET").arg(&wallets).arg(mark).query_async(redis).await.unwrap()
    };
    let old = keys(&mut redis).await;
    change_wallets(scene.world.client(), &scene.wallets, 100).await;
    scene.world.wait_until_wallets_equal("wallets").await;
    let mut put_back = redis::pipe();
    put_back.atomic();
    let (mark, documents) = old.split_last().unwrap();
    put_back.set(scene.world.wallets_mark_key(), mark).ignore();
    for (wallet, document) in scene.wallets.iter().zip(documents) {
        put_back.set(format!("wallet.{wallet}"), document).ignore();
    }
    let () = put_back.query_async(&mut redis).await.unwrap();
    let output = scene.end().await;
    assert!(output.contains("the mark in Redis is behind the checkpoint"), "{output}");
}

#[tokio::test]
async fn a_redis_restarted_from_an_old_snapshot_is_not_believed() {
    let mut scene = Scene::start(&["--appendonly", "no"]).await;
    let snapshot = scene.folder.join("dump.rdb");
    let () = redis::cmd("SAVE").query_async(&mut scene.world.redis().await).await.unwrap();
    let aside = scratch_folder().join("dump.rdb");
    scene.copy(&snapshot, &aside);
    let traffic = WalletTraffic::start(&scene.world, &scene.wallets).await;
    traffic.passes(400).await;
    scene.redis.kill().await;
    scene.copy(&aside, &snapshot);
    scene.redis.start_again().await;
    traffic.passes(100).await;
    traffic.stop().await;
    let output = scene.end().await;
    assert!(output.contains("Redis was restarted"), "{output}");
    std::fs::remove_dir_all(aside.parent().unwrap()).unwrap();
}

/// The append-only file ends in the middle of a command, some hundred commands before the last one. The projector has committed
/// nothing since, so the mark alone would be believed.
#[tokio::test]
async fn a_redis_killed_with_its_last_second_lost_is_not_believed() {
    let mut scene = Scene::start(&["--appendfsync", "everysec"]).await;
    for round in 0..3 {
        let traffic = WalletTraffic::start(&scene.world, &scene.wallets).await;
        traffic.passes(200).await;
        // Until the projector goes on, only the readers know that Redis was restarted.
        scene.projector.signal(Signal::SIGSTOP);
        scene.redis.kill().await;
        let log = std::fs::read_dir(scene.folder.join("appendonlydir")).unwrap().map(|entry| entry.unwrap().path());
        let log = log.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().unwrap();
        let file = std::fs::File::options().write(true).open(log).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(150_000 + round)).unwrap();
        scene.redis.start_again().await;
        let model = scene.world.wallet_model();
        assert!(model.mark().await.unwrap().is_some(), "the mark of the first life is there");
        for wallet in &scene.wallets {
            assert_eq!(model.document(*wallet).await, Ok(None), "it is not believed");
        }
        scene.projector.signal(Signal::SIGCONT);
        traffic.passes(50).await;
        traffic.stop().await;
        scene.world.wait_until_wallets_equal("wallets").await;
    }
    scene.end().await;
}

/// The documents lie in a Redis of their own, so that stream and reaper go on without it.
#[tokio::test]
async fn while_redis_is_away_the_reaper_waits_and_the_projector_says_that_it_is_not_ready() {
    let (log, mut redis, wallets) = (World::new().await, PrivateRedis::start(&[]).await, new_wallets(300));
    let documents = World::at(log.database_url(), &redis.url(), log.stream_name()).await;
    let streamer = Process::start(&log, "streamer", &[]);
    let port = tests::free_port().to_string();
    let place = ["--wallets-redis-url", &redis.url(), "--monitor-port", &port];
    let projector = Process::start(&log, "consumer", &[&PROJECTOR[..], &place].concat());
    change_wallets(log.client(), &wallets, 500).await;
    documents.wait_until_wallets_equal("wallets").await;
    let reader = WalletReader::start(&documents, &wallets);
    let url = format!("http://127.0.0.1:{port}/readyz");
    let status = async || reqwest::get(&url).await.ok().map(|response| response.status().as_u16());
    wait_until("it is ready", async || status().await == Some(200)).await;
    let checkpoint = "SELECT last_offset FROM checkpoints WHERE name = 'wallets'";
    let before = log.number(checkpoint).await;
    redis.kill().await;
    for _ in 0..5 {
        change_wallets(log.client(), &wallets, 100).await;
    }
    wait_until("it is not ready", async || status().await == Some(503)).await;
    wait_until("the records have offsets", async || log.settled_head().await == Some(before + 1500)).await;
    Process::start(&log, "reaper", &["--once", "--keep", "0s"]).succeed().await;
    assert_eq!(log.number(checkpoint).await, before, "no record is passed while the model cannot be changed");
    let retained = log.number("SELECT count(*) FROM staged_log_records").await;
    assert!(retained >= 1500, "no record is reaped that it needs");
    let output = projector.output();
    assert!(output.contains("the wallets' read model is away") && output.contains("trying again"), "{output}");
    redis.start_again().await;
    wait_until("it is ready again", async || status().await == Some(200)).await;
    documents.wait_until_wallets_equal("wallets").await;
    reader.assert_never_older();
    projector.stop().await;
    streamer.stop().await;
}

/// Documents that Redis cannot store are deleted, so that no old one stays.
#[tokio::test]
async fn out_of_memory_costs_documents_and_no_truth() {
    let scene = Scene::start(&[]).await;
    let mut redis = scene.world.redis().await;
    let limit = async |redis: &mut redis::aio::MultiplexedConnection, bytes: &str| {
        let () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).query_async(redis).await.unwrap();
    };
    let traffic = WalletTraffic::start(&scene.world, &scene.wallets).await;
    traffic.passes(20).await;
    limit(&mut redis, "1mb").await;
    traffic.passes(300).await;
    traffic.stop().await;
    // Each document that is there is the newest. The projector goes on, from Postgres, because the stream is full too.
    let at_head = async || {
        let head = scene.world.settled_head().await;
        head == Some(scene.world.number("SELECT last_offset FROM checkpoints").await)
    };
    wait_until("the projector is at the head", at_head).await;
    let outdated = scene.world.outdated_wallets().await;
    assert!(!outdated.is_empty(), "Redis was full");
    let keys: Vec<String> = outdated.iter().map(|id| format!("wallet.{id}")).collect();
    let found: i64 = redis::cmd("EXISTS").arg(keys).query_async(&mut redis).await.unwrap();
    assert_eq!(found, 0, "a document that is outdated is not there");
    limit(&mut redis, "0").await;
    scene.end().await;
}

#[tokio::test]
async fn deleted_documents_come_back_and_evictions_are_mended() {
    let scene = Scene::start(&[]).await;
    let traffic = WalletTraffic::start(&scene.world, &scene.wallets).await;
    let mut redis = scene.world.redis().await;
    for wallet in &scene.wallets {
        let () = redis::cmd("DEL").arg(format!("wallet.{wallet}")).query_async(&mut redis).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    traffic.stop().await;
    let first = scene.world.wallets_epoch().await;
    scene.world.wait_until_wallets_equal("wallets").await;
    assert_eq!(
        scene.world.wallets_epoch().await,
        first,
        "a document that is missing is no reason to give up the others"
    );
    scene.end().await;
}
