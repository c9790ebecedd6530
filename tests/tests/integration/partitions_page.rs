//! The live page of a log with several partitions: sums, each partition, its leader and its stream, over HTTP and in a browser.

use std::time::{Duration, Instant};

use launcher::{RedisCluster, find_redis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::{Process, Watched, World, python_program, scratch_folder, wait_until};
use tokio::process::Command;

use crate::dashboard::Page;

/// The key of each partition's stream.
pub async fn stream_keys(world: &World) -> Vec<String> {
    let keys = "SELECT stream_key(p, $1) FROM generate_series(0, log_partitions() - 1) AS p ORDER BY p";
    let rows = world.client().query(keys, &[&world.stream_name()]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn existing_keys(world: &World) -> Vec<usize> {
    let mut redis = world.redis().await;
    let mut existing = Vec::new();
    for (partition, key) in stream_keys(world).await.into_iter().enumerate() {
        let is_there: bool = redis::cmd("EXISTS").arg(key).query_async(&mut redis).await.unwrap();
        existing.extend(is_there.then_some(partition));
    }
    existing
}

/// Two streamers, which share the eight partitions of the log, and a page that watches them.
async fn start(world: &World) -> ([Watched; 2], Page) {
    let streamers = [Watched::start(world, "streamer", &[]).await, Watched::start(world, "streamer", &[]).await];
    let [first, second] = &streamers;
    let watch = format!("first={},second={}", first.address(), second.address());
    let page = Page::start(world, &["--fault-orders", "--watch", &watch]).await;
    (streamers, page)
}

/// Whether a sample holds what is to be seen.
async fn sees(page: &Page, holds: impl Fn(&Value) -> bool) -> bool {
    page.state().await.is_some_and(|state| holds(&state))
}

#[tokio::test]
async fn the_page_adds_partitions_up_and_shows_each() {
    let world = World::cut(8).await;
    let ([first, second], page) = start(&world).await;
    world.write_rides(200).await;
    let consumers = ["c0", "c1"].map(|name| Process::start(&world, "consumer", &[name]));
    wait_until("all have converged", async || {
        sees(&page, |state| state["verdict"] == "converged" && state["log"]["head"] == 200).await
    })
    .await;
    wait_until("each streamer leads four partitions", async || {
        sees(&page, |state| {
            let leads = |process: usize| state["processes"][process]["leads"].as_array().unwrap().clone();
            let mut led: Vec<i64> = [leads(0), leads(1)].concat().iter().map(|led| led.as_i64().unwrap()).collect();
            led.sort_unstable();
            leads(0).len() == 4 && led == (0..8).collect::<Vec<i64>>()
        })
        .await
    })
    .await;
    let state = page.state().await.unwrap();
    assert_eq!((&state["log"]["partition"], &state["log"]["is_whole"]), (&Value::Null, &true.into()));
    for (partition, stream) in state["log"]["partitions"].as_array().unwrap().iter().zip(0..) {
        let stream = &state["streams"][stream as usize];
        assert_eq!(partition["is_led"], true, "{partition}");
        assert_eq!(
            (&partition["partition"], &partition["head"]),
            (&stream["partition"], &stream["state"]["last_offset"])
        );
        assert_eq!((&partition["lag_records"], &partition["differs"]), (&json!(0), &false.into()), "{partition}");
    }
    assert_eq!(state["stream"]["last_offset"], 200);
    let (ride_count, distance_mm) = world.sql_totals().await;
    for consumer in state["log"]["consumers"].as_array().unwrap() {
        let total = (&consumer["total"]["ride_count"], &consumer["total"]["distance_mm"]);
        assert_eq!(total, (&ride_count.into(), &distance_mm.to_string().into()), "{consumer}");
        assert_eq!((&consumer["agrees"], &consumer["last_offset"]), (&true.into(), &json!(200)), "{consumer}");
    }

    // The sums of the digests stay equal. The partitions' own do not.
    let shift = |by: i64, partition: i32| format!("{} AND partition = {partition}", tests::falsify("c1", "digest", by));
    for statement in [shift(1, 3), shift(-1, 6)] {
        world.client().batch_execute(&statement).await.unwrap();
    }
    wait_until("the partitions that differ are shown", async || {
        sees(&page, |state| {
            let differs = |partition: usize| state["log"]["partitions"][partition]["differs"] == true;
            state["verdict"] == "differs" && (0..8).filter(|partition| differs(*partition)).eq([3, 6])
        })
        .await
    })
    .await;
    for process in consumers.into_iter().chain([first.process, second.process, page.process]) {
        process.stop().await;
    }
}

#[tokio::test]
async fn a_wipe_hits_the_stream_of_its_partition_and_no_other() {
    let world = World::cut(8).await;
    let ([first, second], page) = start(&world).await;
    world.write_rides(200).await;
    wait_until("all is published", async || sees(&page, |state| state["stream"]["last_offset"] == 200).await).await;
    // They would build the streams anew.
    first.process.stop().await;
    second.process.stop().await;
    let token = page.token().await.unwrap();
    let wipe = async |order: Value| page.order(&[("x-fault-token", &token)], &order).await;
    let (status, answer) = wipe(json!({ "kind": "wipe", "partition": 5 })).await;
    assert_eq!((status, &answer["done"]), (200, &json!("the stream of partition 5 is wiped")));
    assert_eq!(existing_keys(&world).await, [0, 1, 2, 3, 4, 6, 7]);
    wait_until("the wipe is told", async || {
        page.incidents().await.contains(&"the stream of partition 5 was wiped".to_owned())
    })
    .await;
    let (status, answer) = wipe(json!({ "kind": "wipe", "partition": 8 })).await;
    assert_eq!((status, &answer["error"]), (409, &json!("this page does not show the partition 8")));
    let (status, answer) = wipe(json!({ "kind": "wipe" })).await;
    assert_eq!((status, &answer["done"]), (200, &json!("7 streams are wiped")));
    assert!(existing_keys(&world).await.is_empty());
    page.process.stop().await;
}

#[tokio::test]
async fn a_page_of_some_partitions_compares_no_total_and_one_of_others_does_not_start() {
    let world = World::cut(4).await;
    let page = Page::start(&world, &["--partitions", "1,3"]).await;
    let streamer = Process::start(&world, "streamer", &[]);
    let consumer = Process::start(&world, "consumer", &["c0"]);
    world.write_rides(40).await;
    wait_until("both are at the head, and no more is said", async || {
        sees(&page, |state| {
            let numbers = |name: &str| {
                let parts = state[name].as_array().unwrap().iter();
                parts.map(|part| part["partition"].as_i64().unwrap()).collect::<Vec<_>>()
            };
            assert_eq!(numbers("streams").len() % 2, 0);
            state["verdict"] == "at_head" && state["log"]["is_whole"] == false && numbers("streams") == [1, 3]
        })
        .await
    })
    .await;
    let output = Process::start(&world, "dashboard", &["--dashboard-port", "0", "--partitions", "4"]).fail(2).await;
    assert!(output.contains("partition 4 is not one of them"), "{output}");
    for process in [streamer, consumer, page.process] {
        process.stop().await;
    }
}

/// Adds an entry to a stream, at the node that has it.
async fn add(servers: &stream::Servers, key: &str, offset: i64) {
    let mut redis = stream::redis::connect(&servers.node_of(key).await.unwrap()).await.unwrap();
    let () =
        redis::cmd("XADD").arg(key).arg(format!("{offset}-0")).arg("a").arg("b").query_async(&mut redis).await.unwrap();
}

#[tokio::test]
async fn a_node_that_hangs_holds_back_no_sample_of_the_other_partitions() {
    let folder = scratch_folder();
    let cluster = RedisCluster::start_masters(&find_redis().unwrap(), &folder, &[]).await.unwrap();
    let world = World::cut_on(&std::env::var("DATABASE_URL").unwrap(), &cluster.url(), 8).await;
    let (keys, servers) = (stream_keys(&world).await, cluster.url().parse().unwrap());
    for key in &keys {
        add(&servers, key, 7).await;
    }
    let page = Page::start(&world, &[]).await;
    let is_known = |state: &Value, partition: usize| state["streams"][partition]["state"].is_object();
    wait_until("all streams are seen", async || sees(&page, |state| state["stream"]["last_offset"] == 56).await).await;

    let (mut lost, mut living) = (Vec::new(), Vec::new());
    for (partition, key) in keys.iter().enumerate() {
        let address = servers.node_of(key).await.unwrap().get_connection_info().addr().to_string();
        let is_lost = address.ends_with(&format!(":{}", cluster.nodes()[1].port()));
        if is_lost { lost.push(partition) } else { living.push(partition) }
    }
    assert!(!lost.is_empty() && !living.is_empty());
    let signal = |signal: Signal| kill(Pid::from_raw(cluster.nodes()[1].pid().unwrap() as i32), signal).unwrap();
    signal(Signal::SIGSTOP);
    wait_until("exactly its streams are unknown", async || {
        sees(&page, |state| (0..8).all(|partition| is_known(state, partition) == living.contains(&partition))).await
    })
    .await;
    // Two samples a second, as ever, and what others say is in the next of them.
    let (began_at, mut times) = (Instant::now(), std::collections::BTreeSet::new());
    add(&servers, &keys[living[0]], 8).await;
    let mut seen_after = None;
    while began_at.elapsed() < Duration::from_secs(5) {
        let state = page.state().await.unwrap();
        times.insert(state["at_ms"].as_u64().unwrap());
        if state["streams"][living[0]]["state"]["last_offset"] == 8 {
            seen_after.get_or_insert_with(|| began_at.elapsed());
        }
        assert!(state["redis"]["is_up"] == true && state["stream"].is_null(), "{state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(seen_after.is_some_and(|after| after < Duration::from_secs(2)), "{seen_after:?}");
    assert!(times.len() >= 8, "{} samples in five seconds", times.len());
    wait_until("it is told", async || {
        let told = page.incidents().await;
        lost.iter().all(|partition| told.contains(&format!("the stream of partition {partition} stopped answering")))
    })
    .await;
    signal(Signal::SIGCONT);
    wait_until("all streams are seen again", async || sees(&page, |state| state["stream"]["last_offset"] == 57).await)
        .await;
    page.process.stop().await;
    cluster.stop().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_phone_shows_eight_partitions_and_each_button_wipes_its_own() {
    let world = World::cut(8).await;
    let port = tests::free_port().to_string();
    let start_streamer = || Process::start(&world, "streamer", &["--monitor-port", &port]);
    let streamer = start_streamer();
    let consumers = ["c0", "c1"].map(|name| Process::start(&world, "consumer", &[name]));
    world.write_rides(400).await;
    let page = Page::start(&world, &["--fault-orders", "--watch", &format!("streamer=127.0.0.1:{port}")]).await;
    let mut command = Command::new(python_program("python"));
    command.arg(tests::root().join("tests/browser/partitions.py")).arg(&page.url);
    let mut browser = Process::spawn("the browser", command);
    for words in ["now: write rides", "now: write more rides"] {
        browser.wait_for(words).await;
        world.write_rides(200).await;
    }
    browser.wait_for("now: stop the streamer").await;
    streamer.stop().await;
    browser.wait_for("now: start the streamer").await;
    let streamer = start_streamer();
    let output = browser.succeed().await;
    assert!(output.contains("seen everything"), "{output}");
    for process in consumers.into_iter().chain([streamer, page.process]) {
        process.stop().await;
    }
}
