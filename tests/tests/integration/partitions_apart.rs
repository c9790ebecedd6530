//! Partitions do not hold each other up: a stream that is refused or foreign, a huge transaction, a node that is dead or hangs
//! concern their own partitions. One statement cuts all of them, as if each was cut alone (I2, P1).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pglog::{Batch, Cut, Cutter, Cutters, Partition, Reader};
use proptest::prelude::*;
use stream::Servers;
use stream::end::StreamEnd;
use stream::wire::Wire;
use streamer::Step;
use tests::{PrivateCluster, PrivatePostgres, Process, World, wait_long_until, wait_until};

use crate::partitions_fixture::{
    at, is_all_cut, keys, lens, member_count, record_counts, shares, stage, start_streamer, wait_for_shares,
    wait_until_published, write_rides,
};

/// Records of a transaction that one statement does not count.
const HUGE_LEN: i64 = 250_000;

/// Puts another type of value under the key of a stream, so that Redis refuses to append.
async fn spoil(world: &World, key: &str) {
    let _: () = redis::cmd("SET").arg(key).arg("x").query_async(&mut world.redis().await).await.unwrap();
}

/// Removes whatever is under the key.
async fn clear(world: &World, key: &str) {
    let _: () = redis::cmd("DEL").arg(key).query_async(&mut world.redis().await).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_is_refused_holds_up_no_other_partition() {
    let world = World::cut(8).await;
    let key = &keys(&world).await[3];
    spoil(&world, key).await;
    let mut streamer = start_streamer(&world, &[]).await;
    for partition in 0..8 {
        stage(world.client(), partition, 100).await;
    }
    let others = async || {
        let mut redis = world.redis().await;
        let mut total = 0;
        for key in keys(&world).await.iter().filter(|other| *other != key) {
            total += redis::cmd("XLEN").arg(key).query_async::<i64>(&mut redis).await.unwrap();
        }
        total
    };
    wait_until("the other seven are published", async || others().await == 700).await;
    wait_until("all records have offsets", async || is_all_cut(&world).await).await;
    streamer.wait_for("WRONGTYPE").await;
    assert!(streamer.is_running(), "the others need it");
    clear(&world, key).await;
    wait_until_published(&world).await;
    streamer.stop().await;
}

#[tokio::test]
async fn a_streamer_whose_whole_share_is_refused_goes_on_because_it_may_get_others() {
    let world = World::cut(2).await;
    let key = &keys(&world).await[0];
    spoil(&world, key).await;
    let mut streamers = [start_streamer(&world, &[]).await, start_streamer(&world, &[]).await];
    wait_for_shares(&world, &[1, 1]).await;
    for partition in 0..2 {
        stage(world.client(), partition, 100).await;
    }
    wait_until("the refusal is told", async || {
        streamers.iter().any(|streamer| streamer.output().contains("WRONGTYPE"))
    })
    .await;
    stage(world.client(), 1, 100).await;
    wait_until("the other one is published", async || is_all_cut(&world).await).await;
    assert!(streamers.iter_mut().all(Process::is_running));
    wait_for_shares(&world, &[1, 1]).await;
    clear(&world, key).await;
    wait_until_published(&world).await;
    for streamer in streamers {
        streamer.stop().await;
    }
}

#[tokio::test]
async fn hints_for_a_stream_that_is_refused_keep_no_partition_from_another_streamer() {
    let world = World::cut(8).await;
    let key = &keys(&world).await[3];
    spoil(&world, key).await;
    let first = start_streamer(&world, &[]).await;
    wait_for_shares(&world, &[8]).await;
    let client = world.connect().await;
    let traffic = tokio::spawn(async move {
        loop {
            stage(&client, 3, 1).await;
            pglog::hint(&client).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let second = start_streamer(&world, &[]).await;
    wait_long_until(Duration::from_secs(20), "both lead four", async || shares(&world).await == [4, 4]).await;
    traffic.abort();
    for streamer in [first, second] {
        streamer.stop().await;
    }
}

#[tokio::test]
async fn a_foreign_stream_is_set_aside_while_the_others_go_on() {
    let world = World::cut(8).await;
    let streamer = start_streamer(&world, &[]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    let key = &keys(&world).await[5];
    let add = redis::cmd("XADD").arg(key).arg("999-0").arg("a").arg("b").to_owned();
    let _: String = add.query_async(&mut world.redis().await).await.unwrap();
    let aside = format!("{key}:set-aside:1");
    wait_until("it is set aside", async || {
        redis::cmd("EXISTS").arg(&aside).query_async::<bool>(&mut world.redis().await).await.unwrap()
    })
    .await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    assert_eq!(streamer.output().matches("the stream is not of this log").count(), 1, "{}", streamer.output());
    streamer.stop().await;
}

#[tokio::test]
async fn a_huge_transaction_in_one_partition_holds_up_no_other() {
    let world = World::cut(4).await;
    let mut streamer = world.streamer();
    world.drain_streamer(&mut streamer).await;
    stage(world.client(), 2, HUGE_LEN).await;
    let mut published: BTreeMap<Partition, usize> = BTreeMap::new();
    let (mut rounds, mut step_count_max) = (0, 0);
    while *published.get(&at(2)).unwrap_or(&0) < HUGE_LEN as usize {
        for partition in [0, 1, 3] {
            stage(world.client(), partition, 1).await;
        }
        rounds += 1;
        let mut step_count = 0;
        while [0, 1, 3].iter().any(|partition| *published.get(&at(*partition)).unwrap_or(&0) < rounds) {
            if let Step::Published(page) = world.step(&mut streamer).await.unwrap() {
                *published.entry(page.partition).or_default() += page.record_count;
            }
            step_count += 1;
        }
        step_count_max = step_count_max.max(step_count);
    }
    assert!(step_count_max <= 12, "the others waited for {step_count_max} steps");
    assert!(rounds > 20, "the others were published {rounds} times while the pages of the huge one were");
    world.drain_streamer(&mut streamer).await;
    assert_eq!(lens(&world).await, [rounds as i64, rounds as i64, HUGE_LEN, rounds as i64]);
}

/// On a server of its own: any transaction of the cluster changes the snapshot.
#[tokio::test]
async fn at_rest_no_statement_looks_for_records_and_none_is_missed() {
    let postgres = PrivatePostgres::start_with(&["fsync=off", "autovacuum=off"]).await;
    let world = World::cut_on(&postgres.url(), &std::env::var("REDIS_URL").unwrap(), 8).await;
    let streamer = start_streamer(&world, &[]).await;
    write_rides(world.client(), 100).await;
    wait_until_published(&world).await;
    // Postgres shows the last statement of a session until its next one, and the streamer sends ten a second.
    let newest =
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'streamer'";
    let newest = async || world.client().query_one(newest, &[]).await.unwrap().get::<_, String>(0);
    wait_until("it only asks for the snapshot", async || newest().await.starts_with("-- pglog::may_cut")).await;
    let (until, mut asked_count) = (Instant::now() + Duration::from_secs(3), 0);
    while Instant::now() < until {
        let query = newest().await;
        assert!(!query.starts_with("-- pglog::assign"), "it looks for records although none can have come");
        asked_count += usize::from(query.starts_with("-- pglog::may_cut"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(asked_count > 50, "it asked {asked_count} times");
    // Records of a transaction that was open meanwhile, whose end no hint tells.
    let mut late = world.connect().await;
    let late = late.transaction().await.unwrap();
    write_rides(&late, 10).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    late.commit().await.unwrap();
    wait_until_published(&world).await;
    streamer.stop().await;
}

/// Where the stream of each partition ends, on whatever node it is.
async fn ends(world: &World) -> Vec<i64> {
    let servers: Servers = world.redis_url().parse().unwrap();
    let mut ends = Vec::new();
    for key in keys(world).await {
        let end = async { StreamEnd::read(&mut servers.wire(&key, Duration::ZERO).await?, &key).await };
        ends.push(end.await.map_or(-1, |end| end.offset));
    }
    ends
}

/// The partitions of one node are held up while it hangs or is dead, and those of the others are not, although one streamer
/// leads all.
#[tokio::test]
async fn a_node_that_hangs_or_dies_holds_up_its_own_partitions_only() {
    let cluster = PrivateCluster::start().await;
    let world = World::cut_on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(), 8).await;
    let keys = keys(&world).await;
    let mut streamer = start_streamer(&world, &[]).await;
    write_rides(world.client(), 100).await;
    let is_whole = async || ends(&world).await == record_counts(&world).await;
    wait_until("all streams end at the head", is_whole).await;
    for (partition, dies) in [(0, false), (1, true)] {
        let node = cluster.writer_of(&keys[partition]).await;
        let mut untouched = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            if cluster.writer_of(key).await != node {
                untouched.push((number, key, cluster.writer_of(key).await));
            }
        }
        if dies {
            cluster.kill(node).await
        } else {
            cluster.pause(node)
        }
        for _ in 0..10 {
            write_rides(world.client(), 40).await;
            let (counts, began_at) = (record_counts(&world).await, Instant::now());
            for (number, key, holder) in &untouched {
                let client = stream::redis::client(cluster.url_of(*holder)).unwrap();
                let mut wire = Wire::connect(&client, Duration::ZERO).await.unwrap();
                while StreamEnd::read(&mut wire, key).await.unwrap().offset < counts[*number] {
                    assert!(began_at.elapsed() < Duration::from_millis(1_500), "partition {number} is held up");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        let lost_at = Instant::now();
        let writer = cluster.writer_of(&keys[partition]).await;
        assert_ne!(writer, node, "its replica has taken over");
        let written_at = Instant::now();
        wait_until("all streams end at the head", is_whole).await;
        println!("dies: {dies}, written after {:?}, published after {:?}", written_at - lost_at, written_at.elapsed());
        if !dies {
            cluster.resume(node);
            cluster.wait_whole().await;
        }
    }
    // A slot goes to another node: the old one answers that it has moved.
    let from = cluster.writer_of(&keys[2]).await;
    let mut to = from;
    for key in &keys {
        to = if to == from { cluster.writer_of(key).await } else { to };
    }
    let moving = cluster.begin_move(&keys[2], to).await;
    cluster.move_keys(moving).await;
    cluster.end_move(moving).await;
    write_rides(world.client(), 100).await;
    wait_until("all streams end at the head", is_whole).await;
    assert_eq!(cluster.writer_of(&keys[2]).await, to);
    assert_eq!((member_count(&world).await, shares(&world).await), (1, vec![8]), "no partition has moved");
    assert!(streamer.is_running());
    streamer.stop().await;
}

/// A step of writers who take turns, and of streamers.
#[derive(Debug, Clone)]
enum Act {
    Stage(usize, i64),
    End(usize, bool),
    Cut,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..3_usize, 1..4_i64).prop_map(|(writer, count)| Act::Stage(writer, count)),
        3 => (0..3_usize, prop::bool::weighted(0.8)).prop_map(|(writer, commits)| Act::End(writer, commits)),
        3 => Just(Act::Cut),
    ];
    prop::collection::vec(act, 10..60)
}

proptest! {
    // Each case is some hundred statements on a real server.
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn partitions_that_one_statement_cuts_are_cut_as_if_each_was_alone(acts in acts(), batch_len_max in prop_oneof![Just(2), Just(100_000)]) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(acts, batch_len_max));
    }
}

/// The writers stage the same records in four partitions. One statement cuts the first two; the others are cut alone.
async fn check(acts: Vec<Act>, batch_len_max: i64) {
    let world = World::cut(4).await;
    let mut writers = Vec::new();
    for _ in 0..3 {
        let writer = world.connect().await;
        writer.batch_execute("BEGIN").await.unwrap();
        writers.push(writer);
    }
    let mut together = Cutters::with_limit(batch_len_max);
    let mut alone = [2, 3].map(|number| (at(number), Cutter::with_limit(at(number), batch_len_max)));
    let (mut batches, mut number) = (BTreeMap::<Partition, Vec<Batch>>::new(), 0_i64);
    let end = (0..3).map(|writer| Act::End(writer, true)).chain([Act::Cut]);
    for act in acts.into_iter().chain(end) {
        match act {
            Act::Stage(writer, count) => {
                let stage = "INSERT INTO staged_log_records (partition, object, action, data)
                             SELECT partition, 'test', 'number', to_json(number)
                             FROM generate_series($1::bigint, $2) AS number, generate_series(0, 3) AS partition";
                writers[writer].execute(stage, &[&number, &(number + count - 1)]).await.unwrap();
                number += count;
            }
            Act::End(writer, commits) => {
                let end = if commits { "COMMIT; BEGIN" } else { "ROLLBACK; BEGIN" };
                writers[writer].batch_execute(end).await.unwrap();
            }
            Act::Cut => {
                cut_together(&world, &mut together, &mut batches).await;
                for (partition, cutter) in &mut alone {
                    cut_alone(&world, cutter, batches.entry(*partition).or_default()).await;
                }
            }
        }
    }
    let mut read = Vec::new();
    for partition in (0..4).map(at) {
        let batches = batches.remove(&partition).unwrap_or_default();
        let ranges: Vec<(i64, i64)> = batches.iter().map(|batch| (batch.first_offset, batch.record_count)).collect();
        let next_offset = ranges.iter().fold(1, |next_offset, (first_offset, record_count)| {
            assert_eq!(*first_offset, next_offset, "offsets are contiguous: {ranges:?}");
            next_offset + record_count
        });
        let data: Vec<String> =
            if next_offset == 1 { Vec::new() } else { read_all(&world, partition, next_offset).await };
        read.push((ranges, data));
    }
    let staged = "SELECT count(*) FROM staged_log_records WHERE partition = 0";
    assert_eq!(read[0].1.len() as i64, world.number(staged).await, "each committed record has an offset");
    assert!(read.iter().all(|other| *other == read[0]), "all four partitions have the same batches: {read:?}");
}

/// The data of the records before an offset.
async fn read_all(world: &World, partition: Partition, next_offset: i64) -> Vec<String> {
    let mut reader = Reader::at(world.client(), partition, 1).await.unwrap();
    let mut data = Vec::new();
    while reader.next_offset() < next_offset {
        let page = reader.next_page(world.client(), 3).await.unwrap();
        data.extend(page.records().map(|record| record.data.to_owned()));
    }
    data
}

async fn cut_together(world: &World, cutters: &mut Cutters, batches: &mut BTreeMap<Partition, Vec<Batch>>) {
    loop {
        let mut is_anything_found = false;
        let may_cut = cutters.may_cut(world.client(), &[at(0), at(1)]).await.unwrap();
        for (partition, cut) in cutters.cut(world.client(), &[(at(0), 1), (at(1), 2)], 10).await.unwrap() {
            is_anything_found |= !matches!(cut, Cut::Nothing);
            if let Cut::Batch(batch, _) = cut {
                batches.entry(partition).or_default().push(batch);
            }
        }
        assert!(may_cut || !is_anything_found, "what is found may be found");
        if !is_anything_found {
            return;
        }
    }
}

async fn cut_alone(world: &World, cutter: &mut Cutter, batches: &mut Vec<Batch>) {
    loop {
        match cutter.cut(world.client(), 3, 10).await.unwrap() {
            Cut::Nothing => return,
            Cut::Counting => {}
            Cut::Batch(batch, _) => batches.push(batch),
        }
    }
}
