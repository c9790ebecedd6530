//! Consumers read records that the stream lacks from a hot standby, and are held up by nothing that befalls it.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::{PrivatePostgres, PrivateRedis, Process, World, wait_long_until, wait_until};

use crate::own_database::{Service, start_streamer, told};

/// Staged rows that were fetched on a server.
const FETCHED: &str = "SELECT pg_stat_clear_snapshot(); SELECT idx_tup_fetch FROM pg_stat_user_tables
                       WHERE relname = 'staged_log_records'";

/// A log with a standby, a consumer with its state in the log, and one with a database of its own.
struct Scene {
    primary: PrivatePostgres,
    standby: PrivatePostgres,
    redis: Option<PrivateRedis>,
    world: World,
    service: Service,
    streamer: Process,
    consumers: Vec<Process>,
    args: [String; 2],
}

impl Scene {
    async fn new() -> Self {
        let (primary, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
        let (world, standby) = World::with_standby(&primary, &redis).await;
        let standby_url = standby.url_of(world.database_name());
        let service = Service::beside(&World::new().await).await;
        let streamer = start_streamer(&world).await;
        let args = ["--standby-database-url".to_owned(), standby_url];
        let redis = Some(redis);
        Self { primary, standby, redis, world, service, streamer, consumers: Vec::new(), args }
    }

    /// Starts both consumers.
    async fn with_consumers(mut self) -> Self {
        let [flag, url] = [self.args[0].as_str(), &self.args[1]];
        self.consumers.push(Process::start(&self.world, "consumer", &["c0", flag, url]));
        self.consumers.push(self.service.start(&self.world, "s0", &[flag, url]));
        self
    }

    /// Writes rides, and waits until both consumers have everything.
    async fn write_and_converge(&self, count: i64) {
        self.world.write_rides(count).await;
        self.converge().await;
    }

    async fn converge(&self) {
        self.service.has_everything(&self.world, "s0").await;
        let head = self.world.settled_head().await.unwrap();
        wait_until("both are at the head", async || {
            told(&self.world, "c0").await == head && told(&self.world, "s0").await == head
        })
        .await;
        self.world.assert_converged(&["c0"]).await;
        let rejected = "SELECT COALESCE(sum(rejected_count), 0)::bigint FROM checkpoints";
        assert_eq!(self.service.number(rejected).await + self.world.number(rejected).await, 0);
    }

    /// Without Redis everything is healed.
    fn lose_redis(&mut self) {
        self.redis = None;
    }

    async fn fetched(&self) -> i64 {
        self.standby.run(self.world.database_name(), FETCHED).await.last().unwrap().parse().unwrap()
    }

    fn warnings(&self) -> String {
        self.consumers.iter().map(Process::output).collect()
    }

    async fn end(mut self) {
        for process in &mut self.consumers {
            assert!(process.is_running(), "{}", process.output());
            process.signal(Signal::SIGTERM);
        }
        drop(self.streamer);
    }
}

#[tokio::test]
async fn a_hot_standby_heals_and_holds_up_nothing_while_it_is_behind() {
    let mut scene = Scene::new().await.with_consumers().await;
    scene.write_and_converge(20).await;
    scene.standby.run("postgres", "SELECT pg_wal_replay_pause()").await;
    scene.write_and_converge(20).await;
    let before = scene.fetched().await;
    scene.lose_redis();
    // A batch of several pages, which the standby does not show yet.
    scene.write_and_converge(2_500).await;
    scene.standby.run("postgres", "SELECT pg_wal_replay_resume()").await;
    scene.standby.follows(&scene.primary).await;
    scene.world.write_rides(20).await;
    scene.standby.follows(&scene.primary).await;
    scene.converge().await;
    // A drain reads what is behind all of it.
    let drain: [&str; 3] = [&scene.args[0], &scene.args[1], "--drain"];
    scene.service.start(&scene.world, "s1", &drain).succeed().await;
    scene.service.has_everything(&scene.world, "s1").await;
    wait_until("rows of the standby were read", async || scene.fetched().await >= before + 80).await;
    scene.standby.run("postgres", "SELECT pg_wal_replay_pause()").await;
    scene.world.write_rides(20).await;
    wait_until("all have offsets", async || scene.world.settled_head().await == Some(2_580)).await;
    scene.service.start(&scene.world, "s1", &drain).succeed().await;
    scene.service.has_everything(&scene.world, "s1").await;
    assert!(!scene.warnings().contains("the standby cannot be read"), "{}", scene.warnings());
    scene.end().await;
}

/// Its sessions hang: connections stay open and are taken, and nothing is answered.
#[tokio::test]
async fn a_standby_that_hangs_is_left_alone() {
    let mut scene = Scene::new().await.with_consumers().await;
    scene.write_and_converge(20).await;
    scene.lose_redis();
    scene.write_and_converge(20).await;
    wait_until("the standby is read", async || scene.fetched().await > 0).await;
    scene.standby.hang("consumer").await;
    for _ in 0..10 {
        scene.world.write_rides(5).await;
        // A statement there is waited for during three seconds, once.
        wait_long_until(Duration::from_secs(8), "both have everything", async || {
            scene.world.settled_head().await.is_some()
                && scene.service.totals("s0").await == scene.world.sql_totals().await
        })
        .await;
    }
    scene.converge().await;
    for consumer in &scene.consumers {
        let count = consumer.output().matches("it does not answer").count();
        assert!((1..4).contains(&count), "it is asked again now and then: {}", consumer.output());
    }
    scene.end().await;
}

/// Its log goes on by itself. Records that the primary does not have are folded by no consumer.
#[tokio::test]
async fn a_standby_that_was_promoted_beside_the_primary_is_not_believed() {
    let mut scene = Scene::new().await.with_consumers().await;
    scene.write_and_converge(20).await;
    scene.lose_redis();
    scene.write_and_converge(5).await;
    for consumer in &scene.consumers {
        consumer.signal(Signal::SIGSTOP);
    }
    scene.standby.follows(&scene.primary).await;
    scene.standby.promote().await;
    // The same offsets on both servers, with other distances.
    let head = scene.world.settled_head().await.unwrap();
    let stage = "INSERT INTO staged_log_records (object, action, data)
                 SELECT 'ride', 'create', format('{\"id\":%s,\"distance_mm\":1}', n)::json FROM generate_series(1, 10) AS n";
    scene.standby.run(scene.world.database_name(), stage).await;
    let cut = format!(
        "INSERT INTO log_batches (partition, first_offset, record_count, snapshot, token, fresh_first_id, fresh_last_id, last_id)
         SELECT 0, {head} + 1, 10, pg_current_snapshot(), 7, max(id) - 9, max(id), max(id) FROM staged_log_records"
    );
    scene.standby.run(scene.world.database_name(), &cut).await;
    scene.world.write_rides(20).await;
    wait_until("all have offsets", async || scene.world.settled_head().await == Some(head + 20)).await;
    for consumer in &scene.consumers {
        consumer.signal(Signal::SIGCONT);
    }
    scene.converge().await;
    let warnings = scene.warnings();
    assert_eq!(warnings.matches("was it promoted?").count(), 2, "{warnings}");
    scene.end().await;
}

#[tokio::test]
async fn a_promoted_standby_goes_on_serving() {
    let scene = Scene::new().await;
    let Scene { mut primary, standby, redis, world, service, streamer, args, .. } = scene;
    let outside = service.start(&world, "s0", &[&args[0], &args[1]]);
    world.write_rides(20).await;
    service.has_everything(&world, "s0").await;
    standby.follows(&primary).await;
    primary.kill().await;
    standby.promote().await;
    let world = world.reconnected().await;
    world.write_rides(20).await;
    service.has_everything(&world, "s0").await;
    wait_until("the new primary is told", async || told(&world, "s0").await == 40).await;
    outside.stop().await;
    streamer.stop().await;
    drop(redis);
}
