//! What the tests of a log with several partitions share: records of one partition, the locks of streamers, and streams.

use pglog::{LEADER_LOCK, MEMBER_LOCK, Partition, Session};
use tests::{Process, World, wait_until};

/// A partition.
pub fn at(number: i32) -> Partition {
    Partition::new(number).unwrap()
}

/// Writes rides with their records, each in the partition of its key.
pub async fn write_rides(client: &impl Session, count: i64) {
    let write = "WITH written AS (
             INSERT INTO rides (distance_mm) SELECT 1 + (random() * 1000000)::bigint FROM generate_series(1, $1::bigint)
             RETURNING id, distance_mm)
         INSERT INTO staged_log_records (partition, object, action, data)
         SELECT partition_of(id::text), 'ride', 'create', format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json
         FROM written";
    client.execute(write, &[&count]).await.unwrap();
}

/// Stages records in one partition.
pub async fn stage(client: &impl Session, partition: i32, count: i64) {
    let stage = "INSERT INTO staged_log_records (partition, object, action, data)
                 SELECT $1, 'test', 'number', to_json(number) FROM generate_series(1, $2::bigint) AS number";
    client.execute(stage, &[&partition, &count]).await.unwrap();
}

/// The locks of the streamers of this world: how many partitions each leads, the smallest number first.
pub async fn shares(world: &World) -> Vec<i64> {
    let sql = format!("SELECT count(*) FROM ({}) AS locks GROUP BY pid ORDER BY count(*)", locks(LEADER_LOCK));
    world.client().query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The partitions that the streamer leads whose session has this lowest partition.
pub async fn led(world: &World) -> Vec<Vec<i32>> {
    let sql = format!(
        "SELECT array_agg(number ORDER BY number) FROM ({}) AS locks GROUP BY pid ORDER BY 1",
        locks(LEADER_LOCK)
    );
    world.client().query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The number of streamers that share the partitions.
pub async fn member_count(world: &World) -> i64 {
    world.number(&format!("SELECT count(*) FROM ({}) AS locks WHERE number = 0", locks(MEMBER_LOCK))).await
}

fn locks(class: i32) -> String {
    format!(
        "SELECT pid, objid::int AS number FROM pg_locks
         WHERE locktype = 'advisory' AND granted AND classid::bigint = {class}
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
}

/// Waits until the streamers lead these numbers of partitions.
pub async fn wait_for_shares(world: &World, expected: &[i64]) {
    wait_until(&format!("the streamers lead {expected:?} partitions"), async || shares(world).await == expected).await;
}

/// The keys of the streams, by partition.
pub async fn keys(world: &World) -> Vec<String> {
    let sql = "SELECT stream_key(number, $1) FROM generate_series(0, log_partitions() - 1) AS number ORDER BY number";
    world.client().query(sql, &[&world.stream_name()]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The number of entries in the stream of each partition.
pub async fn lens(world: &World) -> Vec<i64> {
    let mut redis = world.redis().await;
    let mut lens = Vec::new();
    for key in keys(world).await {
        lens.push(redis::cmd("XLEN").arg(&key).query_async(&mut redis).await.unwrap());
    }
    lens
}

/// The number of records in each partition.
pub async fn record_counts(world: &World) -> Vec<i64> {
    let sql = "SELECT (SELECT count(*) FROM staged_log_records WHERE partition = number)
               FROM generate_series(0, log_partitions() - 1) AS number ORDER BY number";
    world.client().query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Whether every record has an offset.
pub async fn is_all_cut(world: &World) -> bool {
    let cut = world.number("SELECT COALESCE(sum(record_count), 0)::bigint FROM log_batches").await;
    cut == world.number("SELECT count(*) FROM staged_log_records").await
}

/// Waits until every record is in the stream of its partition, once and in order (I2, P1).
pub async fn wait_until_published(world: &World) {
    wait_until("every record is published", async || {
        is_all_cut(world).await && lens(world).await == record_counts(world).await
    })
    .await;
    let mut redis = world.redis().await;
    for key in keys(world).await {
        let entries: Vec<(String, Vec<String>)> =
            redis::cmd("XRANGE").arg(&key).arg("-").arg("+").query_async(&mut redis).await.unwrap();
        let ids: Vec<&str> = entries.iter().map(|(id, _)| id.as_str()).collect();
        let expected: Vec<String> = (1..=ids.len()).map(|offset| format!("{offset}-0")).collect();
        assert_eq!(ids, expected, "offsets of {key} are contiguous");
    }
}

/// Starts a streamer, and waits until it listens for hints, if it is to lead.
pub async fn start_streamer(world: &World, args: &[&str]) -> Process {
    let mut streamer = Process::start(world, "streamer", args);
    streamer.wait_for("streamer started").await;
    streamer
}
