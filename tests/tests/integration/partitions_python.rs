//! Readers in other languages of a log with several partitions: the example in Python, and the test vectors in SQL.

use launcher::{RedisCluster, find_redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{Process, World, scratch_folder, wait_until};

use crate::partitions_page::stream_keys;
use crate::python::python;

/// The longest ride over all partitions, and the counts of lengths, are those of SQL.
async fn assert_folded(world: &World) {
    let longest = "SELECT (sum((state->>'ride_count')::bigint), max((state->>'distance_mm')::bigint))
                          = (SELECT count(*), max(distance_mm) FROM rides) AND count(*) = log_partitions()
                   FROM checkpoints WHERE name = 'longest0'";
    assert!(world.client().query_one(longest, &[]).await.unwrap().get::<_, bool>(0));
    let differing = "SELECT count(*) FROM (SELECT distance_mm / 100000 * 100 AS metres, count(*) AS count FROM rides GROUP BY 1) AS sql
         FULL JOIN (SELECT metres, sum(ride_count)::bigint AS count FROM ride_lengths GROUP BY 1) AS derived USING (metres)
         WHERE sql.count IS DISTINCT FROM derived.count";
    assert_eq!(world.number(differing).await, 0);
}

async fn fold(world: &World) {
    let output = python(world, "consumer", &["fold.py", "longest0", "--drain"]).succeed().await;
    assert!(output.contains("longest of "), "{output}");
    python(world, "consumer", &["lengths.py", "lengths0", "--drain"]).succeed().await;
    assert_folded(world).await;
}

async fn wait_until_cut(world: &World) {
    let staged = "SELECT (SELECT count(*) FROM staged_log_records)
                         - (SELECT COALESCE(sum(record_count), 0)::bigint FROM log_batches)";
    wait_until("all records have offsets", async || world.number(staged).await == 0).await;
}

#[tokio::test]
async fn python_takes_all_partitions_whatever_their_streams_do() {
    let world = World::cut(8).await;
    world.client().batch_execute(include_str!("../../../examples/python/lengths.sql")).await.unwrap();
    python(&world, "owner", &["stage.py", "12.5", "7", "980.001"]).succeed().await;
    world.write_rides(2000).await;
    let streamer = Process::start(&world, "streamer", &[]);
    wait_until_cut(&world).await;
    fold(&world).await;
    let used = "SELECT count(*) FROM checkpoints WHERE name = 'longest0' AND last_offset > 0";
    assert_eq!(world.number(used).await, 8, "the records are spread");

    // One stream is lost, and all lack the newest records.
    streamer.stop().await;
    world.write_rides(500).await;
    for partition in 0..8 {
        let partition = pglog::Partition::new(partition).unwrap();
        pglog::assign(world.client(), partition, rand::random()).await.unwrap();
    }
    let keys = stream_keys(&world).await;
    redis::cmd("DEL").arg(&keys[2]).exec_async(&mut world.redis().await).await.unwrap();
    fold(&world).await;
    python(&world, "consumer", &["fold.py", "longest0", "--unregister"]).succeed().await;
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE name = 'longest0'").await, 0);
}

#[tokio::test]
async fn python_reads_a_redis_cluster_and_goes_on_while_a_node_hangs() {
    let folder = scratch_folder();
    let cluster = RedisCluster::start_masters(&find_redis().unwrap(), &folder, &[]).await.unwrap();
    let world = World::cut_on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(), 8).await;
    world.client().batch_execute(include_str!("../../../examples/python/lengths.sql")).await.unwrap();
    let streamer = Process::start(&world, "streamer", &[]);
    world.write_rides(500).await;
    wait_until_cut(&world).await;
    fold(&world).await;
    let pid = Pid::from_raw(cluster.nodes()[0].pid().unwrap() as i32);
    kill(pid, Signal::SIGSTOP).unwrap();
    world.write_rides(500).await;
    wait_until_cut(&world).await;
    fold(&world).await;
    kill(pid, Signal::SIGCONT).unwrap();
    streamer.stop().await;
    cluster.stop().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn sql_computes_partitions_and_keys_as_the_vectors_say() {
    let vectors: Value = serde_json::from_str(include_str!("../../../libs/stream/vectors.json")).unwrap();
    let world = World::cut(8).await;
    for vector in vectors["partitions"].as_array().unwrap() {
        let key = vector["key"].as_str().unwrap();
        for (count, wanted) in vector["of"].as_object().unwrap() {
            let count: i32 = count.parse().unwrap();
            let row = world.client().query_one("SELECT partition_of($1, $2), partition_of($1)", &[&key, &count]).await;
            let row = row.unwrap();
            assert_eq!(i64::from(row.get::<_, i32>(0)), wanted.as_i64().unwrap(), "{vector}");
            assert_eq!(i64::from(row.get::<_, i32>(1)), vector["of"]["8"].as_i64().unwrap(), "{vector}");
        }
    }
    for vector in vectors["stream_keys"].as_array().unwrap() {
        let (name, partition) = (vector["name"].as_str().unwrap(), vector["partition"].as_i64().unwrap() as i32);
        world.client().execute("UPDATE log_identity SET log_id = $1", &[&vector["log_id"].as_str()]).await.unwrap();
        let key: String =
            world.client().query_one("SELECT stream_key($1, $2)", &[&partition, &name]).await.unwrap().get(0);
        assert_eq!(Some(key.as_str()), vector["key"].as_str(), "{vector}");
    }
}

#[tokio::test]
async fn plain_sql_refuses_a_partition_that_the_log_lacks() {
    let world = World::cut(8).await;
    assert!(world.client().query("SELECT * FROM log_records_after(0, 10, 7)", &[]).await.unwrap().is_empty());
    for partition in [8, -1] {
        let read = "SELECT * FROM log_records_after(0, 10, $1)";
        let error = world.client().query(read, &[&partition]).await.unwrap_err();
        let told = error.as_db_error().unwrap().message();
        assert_eq!(told, format!("the log has 8 partition(s), and partition {partition} is not one of them"));
    }
}
