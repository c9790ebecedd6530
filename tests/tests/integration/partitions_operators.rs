//! A log of eight partitions, as the operators' tests need it: rides under their keys, and the processes of all
//! partitions.

use pglog::{Partition, PartitionCount};
use stream::Stream;
use tests::{Process, World};

/// The number of partitions in these tests.
pub const COUNT: i32 = 8;

/// The partition of this number.
pub fn partition(number: i32) -> Partition {
    Partition::new(number).unwrap()
}

/// All partitions.
pub fn partitions() -> impl Iterator<Item = Partition> {
    PartitionCount::new(COUNT).unwrap().partitions()
}

/// Writes rides with their records under their own ids, in one transaction, as the api does.
pub async fn write_rides(world: &World, count: i64) {
    let write = "WITH written AS (
            INSERT INTO rides (distance_mm) SELECT 1 + (random() * 1000000)::bigint FROM generate_series(1, $1::bigint)
            RETURNING id, distance_mm)
        INSERT INTO staged_log_records (partition, object, action, data)
        SELECT partition_of(id::text), 'ride', 'create',
               format('{\"id\":%s,\"distance_mm\":%s}', id, distance_mm)::json FROM written";
    world.client().execute(write, &[&count]).await.unwrap();
}

/// Stages a record in a partition.
pub async fn stage(world: &World, partition: Partition, object: &str, action: &str, data: &str) {
    let stage = "INSERT INTO staged_log_records (partition, object, action, data) VALUES ($1, $2, $3, $4::text::json)";
    world.client().execute(stage, &[&partition, &object, &action, &data]).await.unwrap();
}

/// The names of the streams.
pub async fn stream_of(world: &World) -> Stream {
    let log_id = pglog::identity(world.client()).await.unwrap().log_id;
    Stream { name: world.stream_name().to_owned(), log_id }
}

/// Gives every staged record its offset, and appends it to the stream of its partition.
pub async fn publish(world: &World) {
    Process::start(world, "streamer", &["--drain"]).succeed().await;
}

/// Folds everything in these partitions, as the consumer `name`.
pub async fn fold_in(world: &World, name: &str, partitions: impl Iterator<Item = Partition>) {
    let partitions: Vec<String> = partitions.map(|partition| partition.to_string()).collect();
    let args = [name, "--drain", "--partitions", &partitions.join(",")];
    Process::start(world, "consumer", &args).succeed().await;
}

/// Folds everything, as the consumer `name`.
pub async fn fold(world: &World, name: &str) {
    Process::start(world, "consumer", &[name, "--drain"]).succeed().await;
}

/// Writes rides, publishes them, and folds them as each of these consumers.
pub async fn carry_rides(world: &World, count: i64, names: &[&str]) {
    write_rides(world, count).await;
    publish(world).await;
    for name in names {
        fold(world, name).await;
    }
}

/// Count and sum of a consumer's rides over all partitions, by one statement.
pub async fn sum_of(world: &World, name: &str) -> (i64, i64) {
    let sum = "SELECT sum(ride_count)::bigint, sum(total_distance_mm)::bigint FROM consumer_states WHERE name = $1";
    let row = world.client().query_one(sum, &[&name]).await.unwrap();
    (row.get(0), row.get(1))
}
