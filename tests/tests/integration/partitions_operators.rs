//! A log of eight partitions, as the operators' tests need it: rides under their keys, offsets and streams as a streamer makes
//! them, and consumers of all partitions.

use std::time::Duration;

use futures_util::future::join_all;
use pglog::{Partition, PartitionCount, Reader};
use stream::codec::{EntryId, EntryWriter, Fields};
use stream::end::StreamEnd;
use stream::resp::Commands;
use stream::{Servers, Stream};
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

/// Gives every staged record its offset.
pub async fn assign(world: &World) {
    for partition in partitions() {
        while pglog::assign(world.client(), partition, rand::random::<i64>() & i64::MAX).await.unwrap().is_some() {}
    }
}

/// Gives every staged record its offset, and appends it to the stream of its partition.
pub async fn publish(world: &World) {
    assign(world).await;
    let (servers, stream) = (world.redis_url().parse::<Servers>().unwrap(), stream_of(world).await);
    for partition in partitions() {
        let key = stream.key(partition);
        let mut wire = servers.wire(&key, Duration::ZERO).await.unwrap();
        let end = StreamEnd::read(&mut wire, &key).await.unwrap().offset;
        if end >= pglog::head(world.client(), partition).await.unwrap() {
            continue;
        }
        let mut reader = Reader::at(world.client(), partition, end + 1).await.unwrap();
        loop {
            let page = reader.next_page(world.client(), 1000).await.unwrap();
            if page.is_empty() {
                break;
            }
            let (mut commands, mut writer) = (Commands::default(), EntryWriter::new(&key));
            for record in page.records() {
                let (object, action, data) = (record.object, record.action, record.data);
                let (staged_at_us, token, traceparent) = (record.staged_at_us, record.token, record.traceparent);
                let fields = Fields { object, action, data, staged_at_us, token, traceparent };
                writer.add(&mut commands, EntryId { offset: record.offset, copy: 0 }, &fields);
            }
            wire.send(&commands).await.unwrap();
            let replies = wire.read(commands.count()).await.unwrap();
            assert!(replies.starts_with(b"$"), "{}", String::from_utf8_lossy(&replies[..replies.len().min(200)]));
        }
    }
}

/// Folds everything in these partitions, as the consumer `name`.
pub async fn fold_in(world: &World, name: &str, partitions: impl Iterator<Item = Partition>) {
    let folding = partitions.map(async |partition| {
        let args = [name, "--drain", "--partitions", &partition.to_string()];
        Process::start(world, "consumer", &args).succeed().await;
    });
    join_all(folding).await;
}

/// Folds everything, as the consumer `name`.
pub async fn fold(world: &World, name: &str) {
    fold_in(world, name, partitions()).await;
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
