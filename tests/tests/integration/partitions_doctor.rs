//! The doctor of a log with several partitions, and of a Redis Cluster.

use tests::{Process, World};

use crate::doctor::findings;
use crate::partitions_cluster::TestCluster;
use crate::partitions_operators::{COUNT, carry_rides, fold, fold_in, partition, partitions, stage, stream_of};

async fn execute(world: &World, statement: &str) {
    world.client().batch_execute(statement).await.unwrap();
}

#[tokio::test]
async fn a_sound_log_of_several_partitions_is_well_on_one_server() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 100, &["c0"]).await;
    let all = findings(&world, &[]).await;
    for check in ["log.partitions", "log.consumers", "log.leaders", "log.dead_letters", "log.history", "redis.stream"] {
        all.assert_ok(check);
    }
    let stream = all.get("redis.stream")["what"].as_str().unwrap().to_owned();
    assert!(stream.starts_with("well in 8 partitions; in partition 0: "), "{stream}");
    let output = Process::start(&world, "doctor", &["--partitions", "8"]).fail(2).await;
    assert!(output.contains("partition 8 is not one of them"), "{output}");
}

#[tokio::test]
async fn consumers_of_some_partitions_and_dead_ones_are_told_with_their_partitions() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 100, &["c0"]).await;
    fold_in(&world, "half", partitions().take(2)).await;
    let all = findings(&world, &[]).await;
    all.assert(
        "log.consumers",
        "warn",
        "registered in some of 8 partitions: half (the partitions 0, 1 only)",
        "--partitions",
    );
    stage(&world, partition(3), "ride", "create", r#"{"id":1,"distance_mm":-5}"#).await;
    crate::partitions_operators::publish(&world).await;
    let all = findings(&world, &["--patience", "0s"]).await;
    all.assert("log.consumers", "warn", "c0 (1 records behind in partition 3, still for", "consumer c0 --unregister");
    fold(&world, "c0").await;
    findings(&world, &[]).await.assert("log.dead_letters", "warn", "1 of c0 in partition 3", "dead-letters list;");
}

#[tokio::test]
async fn a_partition_without_a_leader_is_told() {
    let world = World::cut(COUNT).await;
    let leader = world.connect().await;
    let lead = "SELECT pg_advisory_lock($1 # log_key(), p) FROM generate_series(0, 5) AS p";
    leader.execute(lead, &[&pglog::LEADER_LOCK]).await.unwrap();
    let all = findings(&world, &[]).await;
    all.assert("log.leaders", "warn", "of 1 streamers none leads the partitions 6, 7", "--partitions");
    let lead = "SELECT pg_advisory_lock($1 # log_key(), p) FROM generate_series(6, 7) AS p";
    world.client().execute(lead, &[&pglog::LEADER_LOCK]).await.unwrap();
    let all = findings(&world, &[]).await;
    all.assert_ok("log.leaders");
    assert_eq!(all.get("log.leaders")["what"], "2 streamers lead 8 partitions");
}

#[tokio::test]
async fn tables_that_disagree_about_the_partitions_are_told() {
    let world = World::cut(COUNT).await;
    let check = "ALTER TABLE staged_log_records DROP CONSTRAINT staged_log_records_partition_known";
    execute(&world, check).await;
    let fix = "without -v partitions";
    findings(&world, &[]).await.assert(
        "log.partitions",
        "fail",
        "no CHECK keeps records out of partitions beyond 7",
        fix,
    );
    let world = World::cut(COUNT).await;
    execute(&world, "INSERT INTO checkpoints (name, partition) VALUES ('lost', 9)").await;
    findings(&world, &[]).await.assert("log.partitions", "fail", "batches or consumers in partition 9", "dump");
    execute(
        &world,
        "CREATE OR REPLACE FUNCTION partition_of(key TEXT) RETURNS INT LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN 0",
    )
    .await;
    findings(&world, &[]).await.assert("log.partitions", "fail", "is not the one of a log with 8 partition(s)", fix);
}

#[tokio::test]
async fn a_strange_stream_is_told_with_its_partition() {
    let world = World::cut(COUNT).await;
    carry_rides(&world, 100, &["c0"]).await;
    let key = stream_of(&world).await.key(partition(3));
    let mut redis = world.redis().await;
    let add = ["XADD", &key, "100000-0", "a", "b"];
    let _: String = redis::cmd(add[0]).arg(&add[1..]).query_async(&mut redis).await.unwrap();
    let what = format!("partition 3: {key} ends at 100000-0, and the head of the log is ");
    findings(&world, &[]).await.assert("redis.stream", "warn", &what, "start a streamer");
}

#[tokio::test]
async fn a_cluster_is_checked_node_by_node() {
    let mut cluster = TestCluster::start().await;
    let world = World::cut_on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(), COUNT).await;
    carry_rides(&world, 100, &["c0"]).await;
    let all = findings(&world, &[]).await;
    for check in ["redis.cluster", "redis.full_coverage", "redis.node_timeout", "redis.stream", "redis.stream_name"] {
        all.assert_ok(check);
    }
    assert_eq!(all.get("redis.cluster")["what"], "3 masters serve all slots");
    assert!(all.get("redis.node_timeout")["what"].as_str().unwrap().starts_with("2000 ms at 127.0.0.1:"));
    let role = all.get("redis.role")["what"].as_str().unwrap().to_owned();
    assert!(role.starts_with("127.0.0.1:") && role.ends_with(": it is a primary"), "{role}");
    assert!(all.get("redis.placement")["what"].as_str().unwrap().contains(" has "));
    all.assert("redis.replicas", "warn", "none for 127.0.0.1:", "--cluster-slave");

    cluster.configure("cluster-require-full-coverage", "yes").await;
    cluster.configure("maxmemory-policy", "allkeys-lru").await;
    let all = findings(&world, &[]).await;
    let yes = "cluster-require-full-coverage is yes at 127.0.0.1:";
    all.assert("redis.full_coverage", "fail", yes, "cluster-require-full-coverage no");
    all.assert("redis.eviction", "warn", ": maxmemory-policy is allkeys-lru", "noeviction");
    cluster.configure("cluster-require-full-coverage", "no").await;

    cluster.kill_first().await;
    tests::wait_until("the others know that the node is dead", async || {
        findings(&world, &[]).await.get("redis.cluster")["what"].as_str().unwrap().contains("away: 127.0.0.1:")
    })
    .await;
    let all = findings(&world, &[]).await;
    all.assert("redis.cluster", "fail", " of 16384 slots are not served; away: 127.0.0.1:", "start the nodes");
    all.assert("redis.seeds", "warn", "127.0.0.1:", "REDIS_URL");
}

#[tokio::test]
async fn a_log_without_an_id_is_warned_of_on_a_cluster() {
    let cluster = TestCluster::start().await;
    let world = World::with_redis(&cluster.url()).await;
    let what = format!("the key is just {}, because the log has no id", world.stream_name());
    findings(&world, &[]).await.assert("redis.stream_name", "warn", &what, "STREAM_NAME");
}
