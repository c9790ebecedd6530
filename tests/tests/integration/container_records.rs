//! The verdicts of the container in the log: they reach the history, and the folds of rides pass over them. And the manifests
//! that the simulator files.

use nix::sys::signal::Signal;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tests::{Process, World, wait_until};

use crate::api::Api;
use crate::container_fixture::{Scene, manifest};

/// The trace of the request with this number.
fn trace(number: i64) -> String {
    format!("00-{number:032x}-00f067aa0ba902b7-01")
}

/// Sends a request. Returns the status, and the number of its unit.
async fn send(request: RequestBuilder) -> (u16, i64) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let unit: Value = response.json().await.unwrap();
    (status, unit["uow"].as_i64().unwrap_or_else(|| panic!("{status}: {unit}")))
}

async fn wait_until_committed(scene: &Scene, uow: i64) {
    wait_until("it commits", async || scene.unit(uow).await["state"] == "committed").await;
}

/// Everything of the log goes through the stream, into a total and into the history.
async fn drain(world: &World) {
    world.drain_streamer(&mut world.streamer()).await;
    for args in [&["consumer0", "--drain"][..], &["history", "--fold", "history", "--drain"]] {
        Process::start(world, "consumer", args).succeed().await;
    }
}

/// The records about units: action, data and trace.
async fn unit_records(world: &World) -> Vec<(String, Value, Value)> {
    let (status, page) = Api::start(world).await.get("/history?object=unit").await;
    assert_eq!(status, 200, "{page}");
    let records = page["records"].as_array().unwrap().iter();
    records
        .map(|one| (one["action"].as_str().unwrap().to_owned(), one["data"].clone(), one["traceparent"].clone()))
        .collect()
}

#[tokio::test]
async fn each_verdict_reaches_the_history_with_its_unit_attempt_status_and_trace() {
    let mut scene = Scene::start().await;
    scene.world.write_rides(3).await;
    let committed = send(scene.post(&manifest(7, &["Ada"])).header("traceparent", trace(1))).await;
    let refused = json!({ "ride_id": 8, "passengers": "Ada" });
    let rejected = send(scene.post(&refused).header("traceparent", trace(2))).await;
    scene.notices.signal(Signal::SIGKILL);
    scene.notices.ended().await;
    let queued = send(scene.post(&manifest(9, &["Ada"])).header("traceparent", trace(3))).await;
    scene.start_notices_again();
    wait_until_committed(&scene, queued.1).await;
    // 502: no server listens there.
    assert_eq!((committed.0, rejected.0, queued.0), (200, 422, 502));
    let attempt = scene.unit(queued.1).await["attempt"].as_i64().unwrap();
    assert!(attempt > 1);

    drain(&scene.world).await;
    let unit = |(_, uow): (u16, i64), subject: &str, attempt: i64, status: i64| json!({ "uow": uow, "resource": "manifests", "subject": subject, "attempt": attempt, "status": status });
    let mut records = unit_records(&scene.world).await;
    let mut reasons = Vec::new();
    for (_, data, _) in &mut records {
        reasons.push(data.as_object_mut().unwrap().remove("error").unwrap());
    }
    let mut expected = vec![
        ("commit".to_owned(), unit(committed, "7", 1, 200), json!(trace(1))),
        ("rejected".to_owned(), unit(rejected, "8", 1, 422), json!(trace(2))),
    ];
    expected.extend((1..attempt).map(|n| ("fail_queued".to_owned(), unit(queued, "9", n, 502), json!(trace(3)))));
    expected.push(("commit".to_owned(), unit(queued, "9", attempt, 200), json!(trace(3))));
    assert_eq!(records, expected);
    assert_eq!((&reasons[0], reasons.last()), (&Value::Null, Some(&Value::Null)));
    assert!(reasons[1].as_str().unwrap().starts_with("board: "), "{reasons:?}");
    assert!(reasons[2].as_str().unwrap().starts_with("notices: "), "{reasons:?}");

    // The sum of the rides is right, and no record about a unit is a dead letter.
    assert_eq!(scene.world.number("SELECT ride_count FROM consumer_states WHERE name = 'consumer0'").await, 3);
    assert_eq!(scene.world.number("SELECT count(*) FROM dead_letters").await, 0);
}

#[tokio::test]
async fn a_malformed_trace_is_as_none() {
    let scene = Scene::start().await;
    for (ride_id, header) in [(1, "00-1-2-01"), (2, "forged"), (3, &*trace(0))] {
        let (status, _) = send(scene.post(&manifest(ride_id, &["Ada"])).header("traceparent", header)).await;
        assert_eq!(status, 200, "{header}");
    }
    // W3C: a later version is read as far as version 00 goes.
    let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more";
    assert_eq!(send(scene.post(&manifest(4, &["Ada"])).header("traceparent", later)).await.0, 200);
    drain(&scene.world).await;
    let traces: Vec<Value> = unit_records(&scene.world).await.into_iter().map(|(_, _, trace)| trace).collect();
    let known = json!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    assert_eq!(traces, [Value::Null, Value::Null, Value::Null, known]);
}

/// The number before each of these words in the line of the summary.
fn summary(output: &str) -> [i64; 5] {
    let line = output.lines().find_map(|line| line.strip_prefix("manifests: ")).unwrap_or_else(|| panic!("{output}"));
    let words: Vec<_> = line.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    ["filed", "committed", "rejected", "waiting", "unanswered"]
        .map(|word| words[words.iter().position(|other| *other == word).unwrap() + 1].parse().unwrap())
}

#[tokio::test]
async fn the_simulator_files_manifests_of_rides_and_counts_the_verdicts() {
    let scene = Scene::start().await;
    let api = Api::start(&scene.world).await;
    let (api_port, container_url) = (api.port().to_string(), scene.url(""));
    let flags = "--manifests 0.8 --rate 50 --concurrency 4 --count 60 --seed 7 --api-port";
    let flags: Vec<_> = flags.split(' ').chain([&*api_port, "--container-url", &container_url]).collect();
    let output = Process::start(&scene.world, "simulator", &flags).succeed().await;
    let [filed, committed, rejected, waiting, unanswered] = summary(&output);
    assert_eq!((waiting, unanswered), (0, 0), "{output}");
    assert!((20..=60).contains(&filed) && rejected > 0, "{output}");
    let count = async |condition: &str| {
        // Each is about a ride of the api, and about another one.
        let query = "SELECT count(DISTINCT subject) FROM units JOIN rides ON rides.id::text = subject WHERE";
        scene.world.number(&format!("{query} {condition}")).await
    };
    assert_eq!((count("state = 'committed'").await, count("state = 'rejected'").await), (committed, rejected));
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, filed, "a key has one unit");
    let photo_lens = scene.photos();
    assert!(photo_lens.iter().any(|len| *len > 0) && photo_lens.len() < filed as usize, "{photo_lens:?}");
}

#[tokio::test]
async fn without_the_flag_the_simulator_asks_no_container() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let port = api.port().to_string();
    // A simulator that asked for a container on port 9 would wait for it.
    let flags = ["--rate", "max", "--count", "5", "--container-port", "9", "--api-port", &port];
    let output = Process::start(&world, "simulator", &flags).succeed().await;
    assert!(!output.contains("container") && !output.contains("manifests"), "{output}");
}
