//! Consumers of another service. Their checkpoints and states are in a database of their own, committed together there (I4, I5),
//! and the log is told how far they are for certain (I8).

use deadpool_postgres::ClientWrapper as Client;
use tests::{PrivatePostgres, Process, World, wait_until};

/// The database of a service.
pub struct Service {
    pub url: String,
    pub client: Client,
}

impl Service {
    /// A database beside that of the world.
    pub async fn beside(world: &World) -> Self {
        let name = format!("s_{:016x}", rand::random::<u64>());
        world.client().batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let (server, _) = world.database_url().rsplit_once('/').unwrap();
        Self::at(format!("{server}/{name}")).await
    }

    /// The maintenance database of a server that the test may kill.
    async fn on(postgres: &PrivatePostgres) -> Self {
        Self::at(postgres.url()).await
    }

    async fn at(url: String) -> Self {
        let client = connect::postgres::connect(&url.parse().unwrap(), "test", || {}).await.unwrap();
        consumer::apply_home_schema(&client).await.unwrap();
        Self { url, client }
    }

    /// Starts a consumer of the service.
    pub fn start(&self, world: &World, name: &str, args: &[&str]) -> Process {
        let own = [name, "--state-database-url", &self.url];
        Process::start(world, "consumer", &[&own, args].concat())
    }

    /// Rides and millimetres that a consumer of the service has folded.
    pub async fn totals(&self, name: &str) -> (i64, i64) {
        let sql = "SELECT COALESCE(sum((state->>'ride_count')::bigint), 0)::bigint,
                          COALESCE(sum((state->>'total_distance_mm')::bigint), 0)::bigint FROM checkpoints WHERE name = $1";
        let row = self.client.query_one(sql, &[&name]).await.unwrap();
        (row.get(0), row.get(1))
    }

    pub async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until the consumer has SQL's own totals.
    pub async fn has_everything(&self, world: &World, name: &str) {
        wait_until("the service has SQL's totals", async || {
            world.settled_head().await.is_some() && self.totals(name).await == world.sql_totals().await
        })
        .await;
    }
}

/// Starts a streamer, and waits until every record has an offset.
pub async fn start_streamer(world: &World) -> Process {
    let streamer = Process::start(world, "streamer", &[]);
    all_have_offsets(world).await;
    streamer
}

/// Waits until every record has an offset: a consumer that drains the log ends at its head.
pub async fn all_have_offsets(world: &World) {
    let waiting = "SELECT (SELECT count(*) FROM staged_log_records)
                          - (SELECT COALESCE(sum(record_count), 0)::bigint FROM log_batches)";
    wait_until("all records have offsets", async || world.number(waiting).await == 0).await;
}

/// The offsets that the log was told, summed over the partitions.
pub async fn told(world: &World, name: &str) -> i64 {
    let sql = format!("SELECT COALESCE(sum(last_offset), 0)::bigint FROM checkpoints WHERE name = '{name}'");
    world.number(&sql).await
}

#[tokio::test]
async fn a_consumer_with_a_database_of_its_own_comes_to_the_same_state_whatever_is_killed() {
    let world = World::cut(8).await;
    let service = Service::beside(&world).await;
    let streamer = Process::start(&world, "streamer", &["--fault-rate", "0.2"]);
    let inside = Process::start(&world, "consumer", &["c0"]);
    for round in 0..4 {
        let mut outside = service.start(&world, "s0", &["--fault-rate", "0.2"]);
        outside.wait_for("consumer started").await;
        world.write_rides(200).await;
        wait_until("it goes on", async || service.totals("s0").await.0 > round * 100).await;
        outside.kill().await;
    }
    let outside = service.start(&world, "s0", &["--fault-rate", "0.2"]);
    service.has_everything(&world, "s0").await;
    let inside_totals = "SELECT sum(ride_count)::bigint FROM consumer_states WHERE name = 'c0'";
    wait_until("the other has everything", async || world.number(inside_totals).await == 800).await;
    let digests =
        "SELECT string_agg(concat(partition, ' ', last_offset, ' ', state->>'digest'), ', ' ORDER BY partition)
                   FROM checkpoints WHERE name = $1";
    let ours: String = service.client.query_one(digests, &[&"s0"]).await.unwrap().get(0);
    let theirs: String = world.client().query_one(digests, &[&"c0"]).await.unwrap().get(0);
    assert_eq!(ours, theirs, "the same records at the same offsets (I9)");
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE name = 's0' AND state IS NOT NULL").await, 0);
    let head = world.number("SELECT sum(record_count)::bigint FROM log_batches").await;
    wait_until("the log is told", async || told(&world, "s0").await == head).await;
    for process in [streamer, inside, outside] {
        process.stop().await;
    }
    let audit = Process::start(&world, "audit", &[]).succeed().await;
    assert!(audit.contains("s0: not compared: its state is in a database of its own"), "{audit}");
}

#[tokio::test]
async fn the_log_is_told_only_of_commits_that_are_on_the_disk_of_the_service() {
    let world = World::new().await;
    // Commits that do not wait for the disk are lost in a crash.
    let mut postgres =
        PrivatePostgres::start_with(&["fsync=off", "wal_writer_delay=10s", "synchronous_commit=off"]).await;
    let service = Service::on(&postgres).await;
    let _streamer = start_streamer(&world).await;
    let outside = service.start(&world, "s0", &[]);
    for _ in 0..20 {
        world.write_rides(5).await;
        let before = told(&world, "s0").await;
        wait_until("the log is told more", async || told(&world, "s0").await > before).await;
    }
    postgres.kill().await;
    drop(outside);
    let told = told(&world, "s0").await;
    postgres.start_again().await;
    let service = Service::on(&postgres).await;
    let kept = service.number("SELECT last_offset FROM checkpoints").await;
    assert!(kept >= told, "the log was told {told}, and the service has {kept}");
}

#[tokio::test]
async fn the_reaper_waits_for_a_consumer_of_another_service() {
    let world = World::new().await;
    let service = Service::beside(&world).await;
    let _streamer = start_streamer(&world).await;
    let _inside = Process::start(&world, "consumer", &["c0"]);
    let outside = service.start(&world, "s0", &[]);
    world.write_rides(50).await;
    service.has_everything(&world, "s0").await;
    wait_until("the log is told", async || told(&world, "s0").await == 50).await;
    outside.kill().await;
    world.write_rides(50).await;
    wait_until("the other one goes on", async || told(&world, "c0").await == 100).await;
    let _reaper = Process::start(&world, "reaper", &["--keep", "0s", "--interval", "100ms"]);
    let retained = "SELECT COALESCE(min(first_offset), 0) FROM log_batches WHERE reaped_at IS NULL";
    wait_until("what both have passed is reaped", async || world.number(retained).await == 51).await;
    let outside = service.start(&world, "s0", &[]);
    service.has_everything(&world, "s0").await;
    outside.stop().await;
}

#[tokio::test]
async fn a_state_that_was_lost_is_not_begun_anew_by_itself() {
    let world = World::new().await;
    let service = Service::beside(&world).await;
    world.write_rides(10).await;
    let _streamer = start_streamer(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.has_everything(&world, "s0").await;
    service.client.batch_execute("DELETE FROM checkpoints").await.unwrap();
    let refused = service.start(&world, "s0", &["--drain"]).fail(1).await;
    assert!(refused.contains("its state is not in STATE_DATABASE_URL"), "{refused}");
    assert!(refused.contains("s0 --unregister"), "{refused}");
    service.start(&world, "s0", &["--unregister"]).succeed().await;
    service.start(&world, "s0", &["--register"]).succeed().await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.has_everything(&world, "s0").await;
}

#[tokio::test]
async fn a_consumer_does_not_mistake_the_place_of_its_state() {
    let world = World::new().await;
    let service = Service::beside(&world).await;
    world.write_rides(10).await;
    let _streamer = start_streamer(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    let inside = Process::start(&world, "consumer", &["s0", "--drain"]).fail(1).await;
    assert!(inside.contains("STATE_DATABASE_URL"), "{inside}");
    Process::start(&world, "consumer", &["c0", "--drain"]).succeed().await;
    let outside = service.start(&world, "c0", &["--drain"]).fail(1).await;
    assert!(outside.contains("STATE_DATABASE_URL"), "{outside}");
    let log = consumer::apply_home_schema(world.client()).await.unwrap_err();
    assert!(log.as_db_error().unwrap().message().contains("this schema has a log"), "{log}");
}

#[tokio::test]
async fn a_state_that_was_put_back_is_folded_forward_again_and_holds_back_the_reaper() {
    let world = World::new().await;
    let service = Service::beside(&world).await;
    let _streamer = start_streamer(&world).await;
    world.write_rides(10).await;
    all_have_offsets(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.client.batch_execute("CREATE TABLE backup AS SELECT * FROM checkpoints").await.unwrap();
    world.write_rides(10).await;
    all_have_offsets(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    wait_until("the log is told", async || told(&world, "s0").await == 20).await;
    service
        .client
        .batch_execute("DELETE FROM checkpoints; INSERT INTO checkpoints SELECT * FROM backup")
        .await
        .unwrap();
    let outside = service.start(&world, "s0", &["--inject", "die-before-commit:1"]);
    let mut outside = outside;
    outside.ended().await;
    assert_eq!(told(&world, "s0").await, 10, "the bound goes back with the state");
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.has_everything(&world, "s0").await;
}

#[tokio::test]
async fn a_log_that_was_put_back_stops_a_consumer_of_another_service() {
    let world = World::new().await;
    let service = Service::beside(&world).await;
    let streamer = start_streamer(&world).await;
    world.write_rides(10).await;
    all_have_offsets(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.has_everything(&world, "s0").await;
    streamer.stop().await;
    // As after a restore: the same offsets, in another batch, and the log was told less.
    let restore = "CREATE TABLE now AS SELECT last_offset, told_token FROM checkpoints WHERE name = 's0';
                   UPDATE log_batches SET token = token + 1;
                   UPDATE checkpoints SET last_offset = 5, told_token = 1 WHERE name = 's0'";
    world.client().batch_execute(restore).await.unwrap();
    let refused = service.start(&world, "s0", &["--drain"]).fail(1).await;
    assert!(refused.contains("was put back to an older state"), "{refused}");
    let undo = "UPDATE log_batches SET token = token - 1;
                UPDATE checkpoints SET (last_offset, told_token) = (SELECT last_offset, told_token FROM now) WHERE name = 's0'";
    world.client().batch_execute(undo).await.unwrap();
    service.start(&world, "s0", &["--drain"]).succeed().await;
}

#[tokio::test]
async fn a_registration_that_was_cut_off_between_both_databases_is_finished() {
    let world = World::cut(8).await;
    let service = Service::beside(&world).await;
    world.write_rides(50).await;
    let _streamer = start_streamer(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    // The service has committed, and the log has not.
    world.client().batch_execute("DELETE FROM checkpoints; DELETE FROM unregistered_consumers").await.unwrap();
    service.start(&world, "s0", &["--drain"]).succeed().await;
    service.has_everything(&world, "s0").await;
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE name = 's0'").await, 8);
    // A name that was unregistered stays so.
    world.client().batch_execute("DELETE FROM checkpoints").await.unwrap();
    let refused = service.start(&world, "s0", &["--drain"]).fail(2).await;
    assert!(refused.contains("was unregistered, and does not come back by itself"), "{refused}");
}

#[tokio::test]
async fn dead_letters_lie_beside_the_state_and_are_replayed_there() {
    let world = World::new().await;
    let service = Service::beside(&world).await;
    let _streamer = start_streamer(&world).await;
    world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
    world.stage(2, 5000).await;
    all_have_offsets(&world).await;
    service.start(&world, "s0", &["--drain"]).succeed().await;
    assert_eq!(service.totals("s0").await, (1, 5000));
    assert_eq!(service.number("SELECT count(*) FROM dead_letters WHERE name = 's0'").await, 1);
    let fixed = r#"UPDATE dead_letters SET data = '{"id":1,"distance_mm":7}'"#;
    service.client.batch_execute(fixed).await.unwrap();
    let replay = ["replay", "s0", "1", "--state-database-url", &service.url];
    Process::start(&world, "dead-letters", &replay).succeed().await;
    assert_eq!(service.totals("s0").await, (2, 5007));
    service.start(&world, "s0", &["--drain"]).succeed().await;
    assert_eq!(service.totals("s0").await, (2, 5007));
}
