//! The doctor: each check on a server with the fault that it looks for, and all checks on healthy servers.

use serde_json::Value;
use tests::{PrivatePostgres, PrivateRedis, Process, World};
use tokio::process::Command;

use crate::reaper::reap;

/// Runs the doctor and asserts that its exit status fits its findings. Returns the findings.
pub async fn findings(world: &World, args: &[&str]) -> Findings {
    let mut process = Process::start(world, "doctor", &[&["--json"][..], args].concat());
    let status = process.ended().await;
    let output = process.read_to_end().await;
    let list: Vec<Value> = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
    let has_failed = list.iter().any(|finding| finding["verdict"] == "fail");
    assert_eq!(status.code(), Some(i32::from(has_failed)), "{output}");
    Findings(list)
}

pub struct Findings(Vec<Value>);

impl Findings {
    pub fn get(&self, check: &str) -> &Value {
        self.0.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check} in {:?}", self.0))
    }

    /// Asserts verdict and text of a check, and that it gives a reason and a fix.
    #[track_caller]
    pub fn assert(&self, check: &str, verdict: &str, what: &str, fix: &str) {
        let finding = self.get(check);
        let text = |name: &str| finding[name].as_str().unwrap_or_default();
        assert_eq!(text("verdict"), verdict, "{finding}");
        assert!(text("what").contains(what) && text("fix").contains(fix), "{finding}");
        assert!(!text("why").is_empty(), "{finding}");
    }

    #[track_caller]
    pub fn assert_ok(&self, check: &str) {
        assert_eq!(self.get(check)["verdict"], "ok", "{}", self.get(check));
    }
}

async fn configure(world: &World, setting: &str, value: &str) {
    let mut redis = world.redis().await;
    let _: () = redis::cmd("CONFIG").arg("SET").arg(setting).arg(value).query_async(&mut redis).await.unwrap();
}

#[tokio::test]
async fn a_healthy_pair_passes() {
    let postgres = PrivatePostgres::start_with(&[]).await;
    let redis = PrivateRedis::start(&[]).await;
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    world.carry_rides(10, &mut world.streamer(), &mut world.consumer("c0")).await;
    let all = findings(&world, &[]).await;
    let unwell: Vec<&Value> = all.0.iter().filter(|finding| finding["verdict"] != "ok").collect();
    assert!(unwell.is_empty(), "{unwell:?}");
    assert!(all.0.len() >= 19, "{:?}", all.0);
    let text = Process::start(&world, "doctor", &[]).succeed().await;
    assert!(text.contains("ok   redis.role: it is a primary\n"), "{text}");
}

#[tokio::test]
async fn servers_that_are_away_fail() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let nowhere = ["--redis-url", "redis://127.0.0.1:1", "--database-url", "postgres://127.0.0.1:1/x"];
    let all = findings(&world, &nowhere).await;
    all.assert("redis.reachable", "fail", "", "REDIS_URL");
    all.assert("postgres.reachable", "fail", "", "DATABASE_URL");
}

#[tokio::test]
async fn what_redis_does_with_the_stream_is_seen() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    configure(&world, "appendfsync", "no").await;
    findings(&world, &[]).await.assert("redis.appendfsync", "warn", "appendfsync is no", "everysec");
    configure(&world, "appendonly", "no").await;
    configure(&world, "maxmemory-policy", "allkeys-lru").await;
    configure(&world, "maxmemory", "1").await;
    let all = findings(&world, &[]).await;
    all.assert("redis.appendonly", "warn", "appendonly is off", "appendonly yes");
    all.assert("redis.eviction", "warn", "allkeys-lru", "noeviction");
    all.assert("redis.memory", "warn", "of maxmemory 1 ", "maxmemory");
    configure(&world, "maxmemory-policy", "noeviction").await;
    findings(&world, &[]).await.assert("redis.memory", "fail", "of maxmemory 1 ", "maxmemory");
    configure(&world, "maxmemory", "0").await;
    // A folder in the place of the snapshot makes saving fail.
    let mut admin = world.redis().await;
    let folder: Vec<String> = redis::cmd("CONFIG").arg("GET").arg("dir").query_async(&mut admin).await.unwrap();
    std::fs::create_dir_all(format!("{}/dump.rdb/in-the-way", folder[1])).unwrap();
    let _: Result<String, _> = redis::cmd("SAVE").query_async(&mut admin).await;
    let _: Result<String, _> = redis::cmd("BGSAVE").query_async(&mut admin).await;
    tests::wait_until("the failure is seen", async || {
        findings(&world, &[]).await.get("redis.disk")["verdict"] == "fail"
    })
    .await;
    findings(&world, &[]).await.assert("redis.disk", "fail", "rdb_last_bgsave_status", "BGSAVE");
}

#[tokio::test]
async fn a_replica_and_a_redis_that_forbids_config_are_seen() {
    let redis = PrivateRedis::start(&[]).await;
    let world = World::with_redis(&redis.url()).await;
    let mut admin = world.redis().await;
    let forbid = ["SETUSER", "default", "-config"];
    let _: () = redis::cmd("ACL").arg(&forbid).query_async(&mut admin).await.unwrap();
    findings(&world, &[]).await.assert("redis.appendfsync", "warn", "cannot see", "");
    let _: () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async(&mut admin).await.unwrap();
    findings(&world, &[]).await.assert("redis.role", "fail", "replica of 127.0.0.1", "REDIS_URL");
}

#[tokio::test]
async fn a_strange_stream_is_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("redis.stream");
    let mut redis = world.redis().await;
    let key = world.stream_name();
    let _: String = redis::cmd("XADD").arg(key).arg("7-0").arg("a").arg("b").query_async(&mut redis).await.unwrap();
    findings(&world, &[]).await.assert("redis.stream", "warn", "ends at 7-0, and the head of the log is 0", "RESTORE");
    let _: () = redis::cmd("SET").arg(key).arg("x").query_async(&mut redis).await.unwrap();
    findings(&world, &[]).await.assert("redis.stream", "fail", "holds a string", "STREAM_NAME");
}

#[tokio::test]
async fn a_postgres_that_does_not_keep_what_it_confirms_is_seen() {
    let mut postgres = PrivatePostgres::start_with(&[]).await;
    let redis = PrivateRedis::start(&[]).await;
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    let alter = async |world: &World, setting: &str| {
        let client = world.connect().await;
        client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
    };
    for setting in ["fsync = off", "full_page_writes = off", "synchronous_commit = off", "autovacuum = off"] {
        alter(&world, setting).await;
    }
    alter(&world, "max_prepared_transactions = 5").await;
    postgres.kill().await;
    postgres.start_again().await;
    let world = world.reconnected().await;
    let prepare = "BEGIN; INSERT INTO rides (distance_mm) VALUES (1); PREPARE TRANSACTION 'forgotten'";
    world.client().batch_execute(prepare).await.unwrap();
    let all = findings(&world, &["--patience", "0s"]).await;
    all.assert("postgres.fsync", "fail", "fsync is off", "fsync = on");
    all.assert("postgres.full_page_writes", "fail", "full_page_writes is off", "full_page_writes = on");
    all.assert("postgres.synchronous_commit", "warn", "is off", "synchronous_commit = on");
    all.assert("postgres.autovacuum", "warn", "autovacuum is off", "autovacuum = on");
    all.assert("postgres.prepared", "warn", "forgotten", "ROLLBACK PREPARED 'forgotten'");
    findings(&world, &[]).await.assert_ok("postgres.prepared");
}

#[tokio::test]
async fn a_table_without_autovacuum_and_an_open_transaction_are_seen() {
    let world = World::new().await;
    world.client().batch_execute("ALTER TABLE checkpoints SET (autovacuum_enabled = false)").await.unwrap();
    let client = world.connect().await;
    client.batch_execute("BEGIN; SET application_name = 'sleeper'; SELECT 1").await.unwrap();
    let all = findings(&world, &["--patience", "0s"]).await;
    all.assert("postgres.autovacuum", "warn", "off on checkpoints", "autovacuum_enabled");
    all.assert("postgres.open", "warn", "sleeper", "pg_terminate_backend(");
    for check in ["postgres.session", "postgres.listen", "clock.postgres", "clock.redis", "postgres.wraparound"] {
        all.assert_ok(check);
    }
    findings(&world, &[]).await.assert_ok("postgres.open");
}

#[tokio::test]
async fn a_log_of_another_cluster_or_version_and_one_that_is_missing_are_seen() {
    let world = World::new().await;
    let client = world.client();
    client.execute("UPDATE log_identity SET system_identifier = 1", &[]).await.unwrap();
    findings(&world, &[]).await.assert("log.identity", "fail", "belongs to the cluster 1", "`adopt`");
    client.execute("UPDATE log_identity SET schema_version = 1", &[]).await.unwrap();
    findings(&world, &[]).await.assert("log.identity", "fail", "of version 1", "schema.sql");
    client.execute("UPDATE log_identity SET schema_version = 99", &[]).await.unwrap();
    findings(&world, &[]).await.assert("log.identity", "fail", "of version 99", "upgrade");
    let drop = "DROP VIEW consumer_states; DROP TABLE log_identity, log_batches, dead_letters, checkpoints";
    client.batch_execute(drop).await.unwrap();
    findings(&world, &[]).await.assert("log.identity", "fail", "missing", "schema.sql");
}

#[tokio::test]
async fn consumers_that_are_missing_or_stand_still_and_dead_letters_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert("log.consumers", "warn", "no consumer is registered", "consumer0");
    world.stage(1, -5).await;
    pglog::assign(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
    world.drain_consumer(&mut world.consumer("c0")).await;
    let all = findings(&world, &["--patience", "0s"]).await;
    all.assert_ok("log.consumers");
    all.assert("log.dead_letters", "warn", "1 of c0", "dead-letters list");
    Process::start(&world, "dead-letters", &["drop", "c0", "1"]).succeed().await;
    let settled = findings(&world, &[]).await;
    settled.assert_ok("log.dead_letters");
    assert_eq!(settled.get("log.dead_letters")["what"], "none that is not settled; 1 are dropped");
    world.stage(2, 5).await;
    pglog::assign(world.client(), pglog::Partition::FIRST, 2).await.unwrap();
    let all = findings(&world, &["--patience", "0s"]).await;
    all.assert("log.consumers", "warn", "c0 (1 records behind", "consumer c0 --unregister");
    findings(&world, &[]).await.assert_ok("log.consumers");
}

#[tokio::test]
async fn a_history_that_lacks_records_and_a_consumer_without_a_fold_are_seen() {
    let world = World::new().await;
    let mut consumer = world.consumer("c0");
    let archive = ["history", "--fold", "history", "--drain"];
    world.carry_rides(10, &mut world.streamer(), &mut consumer).await;
    findings(&world, &[]).await.assert_ok("log.history");
    reap(&world, &["--keep", "0s"]).await;
    let all = findings(&world, &[]).await;
    all.assert("log.history", "warn", "it lacks the reaped records 1 to 10", "--fold history");
    world.carry_rides(10, &mut world.streamer(), &mut consumer).await;
    Process::start(&world, "consumer", &archive).succeed().await;
    let all = findings(&world, &[]).await;
    all.assert_ok("log.history");
    let what = "a consumer writes it, it ends at offset 20, and it lacks the reaped records 1 to 10";
    assert_eq!(all.get("log.history")["what"], what);
    assert_eq!(all.get("log.folds")["what"], "each consumer is registered with its fold");
    let change = "ALTER TABLE history DETACH PARTITION history_1; INSERT INTO checkpoints (name) VALUES ('x')";
    world.client().batch_execute(change).await.unwrap();
    let all = findings(&world, &[]).await;
    all.assert("log.history", "warn", "the part for the offsets after", "make_history_parts(0, 20, 20)");
    assert!(all.get("log.folds")["what"].as_str().unwrap().starts_with("registered without a fold: x"));
}

#[tokio::test]
async fn a_role_that_may_not_do_what_its_process_does_is_told_what_to_grant() {
    let world = World::new().await;
    let role = format!("r_{:016x}", rand::random::<u64>());
    let grants = format!(
        "CREATE ROLE {role} LOGIN;
         GRANT SELECT ON staged_log_records, log_batches, checkpoints, log_identity TO {role};
         GRANT INSERT ON log_batches TO {role}"
    );
    world.client().batch_execute(&grants).await.unwrap();
    let url = world.database_url().replacen("app@", &format!("{role}@"), 1);
    let all = async |process: &str| findings(&world, &["--for", process, "--database-url", &url]).await;
    all("streamer").await.assert_ok("postgres.privileges");
    all("consumer").await.assert(
        "postgres.privileges",
        "fail",
        &role,
        &format!("GRANT UPDATE ON checkpoints TO {role}"),
    );
    all("reaper").await.assert("postgres.privileges", "fail", &role, "GRANT DELETE ON staged_log_records");
    all("api").await.assert("postgres.privileges", "fail", &role, "GRANT INSERT ON rides");
    // Rights on single columns, as an older roles.sql granted them before there were traces.
    let older = format!("GRANT INSERT (object, action, data) ON staged_log_records TO {role}");
    world.client().batch_execute(&older).await.unwrap();
    let wanted = "GRANT INSERT (partition, traceparent) ON staged_log_records";
    all("completer").await.assert("postgres.privileges", "fail", &role, wanted);
    findings(&world, &[]).await.assert_ok("postgres.privileges");
    // The rights that the doctor accepts suffice for the process.
    world.write_rides(3).await;
    let mut flags = world.flags("operator");
    flags[1] = url.clone();
    let mut command = Command::new(tests::binary("streamer"));
    command.arg("--drain").args(flags);
    Process::spawn("streamer", command).succeed().await;
    world.client().batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

/// Under a role without USAGE on the schema, every table looks as if it did not exist.
#[tokio::test]
async fn a_role_that_may_not_use_the_schema_is_told_so() {
    let world = World::new().await;
    let role = format!("r_{:016x}", rand::random::<u64>());
    let grants = format!(
        "CREATE ROLE {role} LOGIN;
         GRANT SELECT ON staged_log_records, log_batches, checkpoints, log_identity TO {role};
         GRANT INSERT ON log_batches TO {role};
         REVOKE USAGE ON SCHEMA public FROM PUBLIC"
    );
    world.client().batch_execute(&grants).await.unwrap();
    let url = world.database_url().replacen("app@", &format!("{role}@"), 1);
    let all = findings(&world, &["--for", "streamer", "--database-url", &url]).await;
    all.assert("postgres.privileges", "fail", &role, &format!("GRANT USAGE ON SCHEMA public TO {role}"));
    world.client().batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}
