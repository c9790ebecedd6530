//! The live page over HTTP: its figures, its events, and requests that it must refuse. browser.rs looks at it in a browser.

use serde_json::{Value, json};
use tests::{PrivatePostgres, PrivateRedis, Process, Watched, World, falsify, wait_until};

/// A process that serves the page.
pub struct Page {
    pub process: Process,
    pub url: String,
    pub client: reqwest::Client,
}

impl Page {
    pub async fn start(world: &World, args: &[&str]) -> Self {
        Self::start_on(world, tests::free_port(), args).await
    }

    pub async fn start_on(world: &World, port: u16, args: &[&str]) -> Self {
        let port = port.to_string();
        let mut process = Process::start(world, "dashboard", &[&["--dashboard-port", &port], args].concat());
        let url = format!("http://{}", process.address_after("dashboard started").await);
        Self { process, url, client: reqwest::Client::new() }
    }

    pub async fn state(&self) -> Option<Value> {
        let response = self.client.get(format!("{}/state", self.url)).send().await.unwrap();
        if !response.status().is_success() {
            return None;
        }
        Some(response.json().await.unwrap())
    }

    async fn says(&self, verdict: &str) -> bool {
        self.state().await.is_some_and(|state| state["verdict"] == verdict)
    }

    /// The events that a page receives when it is opened, up to the first sample: name and data of each.
    async fn first_events(&self) -> Vec<(String, Value)> {
        let mut response = self.client.get(format!("{}/events", self.url)).send().await.unwrap();
        let mut text = String::new();
        while !text.contains("event: sample") || !text.ends_with("\n\n") {
            text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
        }
        let event = |text: &str| {
            let (name, data) = text.strip_prefix("event: ")?.split_once("\ndata: ")?;
            Some((name.to_owned(), serde_json::from_str(data).unwrap()))
        };
        text.split("\n\n").filter_map(event).collect()
    }

    /// The texts of the list of incidents.
    pub async fn incidents(&self) -> Vec<String> {
        let events = self.first_events().await;
        let (_, incidents) = events.iter().find(|(name, _)| name == "incidents").unwrap();
        let text = |incident: &Value| incident["text"].as_str().unwrap().to_owned();
        incidents.as_array().unwrap().iter().map(text).collect()
    }

    pub async fn token(&self) -> Option<String> {
        let answer: Value = self.client.get(format!("{}/faults", self.url)).send().await.unwrap().json().await.unwrap();
        answer["token"].as_str().map(str::to_owned)
    }

    pub async fn order(&self, headers: &[(&str, &str)], order: &Value) -> (u16, Value) {
        let request =
            headers.iter().fold(self.client.post(format!("{}/faults", self.url)), |request, (name, value)| {
                request.header(*name, *value)
            });
        let response = request.json(order).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or_default())
    }
}

#[tokio::test]
async fn converged_is_never_shown_on_a_consumers_own_word() {
    let world = World::new().await;
    let page = Page::start(&world, &[]).await;
    wait_until("there is no consumer", async || page.says("nobody").await).await;
    world.write_rides(20).await;
    world.drain_streamer(&mut world.streamer()).await;
    let (mut first, mut second) = (world.consumer("consumer0"), world.consumer("consumer1"));
    world.drain_consumer(&mut first).await;
    let progress = second.run_once(consumer::Fault::None, None).await.unwrap();
    assert!(progress.record_count() > 0);
    world.drain_consumer(&mut second).await;
    wait_until("both have converged", async || page.says("converged").await).await;

    world.write_rides(1).await;
    wait_until("a ride without an offset is no convergence", async || page.says("behind").await).await;
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut first).await;
    world.drain_consumer(&mut second).await;
    // The history has no total, and keeps the others from nothing once it is at the head.
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    wait_until("the history is shown without a total", async || {
        let state = page.state().await.unwrap();
        let consumers = state["log"]["consumers"].as_array().unwrap();
        let is_archive =
            |line: &Value| line["name"] == "history" && line["last_offset"] == 21 && line["total"].is_null();
        consumers.iter().any(is_archive) && state["verdict"] == "converged"
    })
    .await;

    let spoil = falsify("consumer1", "total_distance_mm", 1);
    world.client().batch_execute(&spoil).await.unwrap();
    wait_until("a millimetre too much shows", async || page.says("differs").await).await;
    let state = page.state().await.unwrap();
    let (ride_count, distance_mm) = world.sql_totals().await;
    assert_eq!(state["recount"]["ride_count"], ride_count);
    assert_eq!(state["recount"]["distance_mm"], distance_mm.to_string());
    let mend = falsify("consumer1", "total_distance_mm", -1);
    world.client().batch_execute(&mend).await.unwrap();
    wait_until("it is mended", async || page.says("converged").await).await;

    // Both have the same sum and count, and did not fold the same rides.
    let swap = falsify("consumer1", "digest", 1);
    world.client().batch_execute(&swap).await.unwrap();
    wait_until("other rides of the same sum show", async || page.says("differs").await).await;
    page.process.stop().await;
}

#[tokio::test]
async fn the_page_comes_with_everything_it_needs_and_with_nothing_else() {
    let world = World::new().await;
    let page = Page::start(&world, &[]).await;
    let html = page.client.get(&page.url).send().await.unwrap();
    let policy = html.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{policy}");
    let html = html.text().await.unwrap();
    let mut asked_count = 0;
    for path in html.split(['"', '\'']).filter(|part| part.starts_with('/') && part.len() > 1) {
        let response = page.client.get(format!("{}{path}", page.url)).send().await.unwrap();
        assert!(response.status().is_success() || path == "/state", "{path}: {}", response.status());
        asked_count += 1;
    }
    assert!(asked_count >= 6, "{asked_count}");
    assert!(!html.contains("http://") && !html.contains("https://"), "the page names another host");
    let missing = page.client.get(format!("{}/nothing", page.url)).send().await.unwrap();
    assert_eq!(missing.status().as_u16(), 404);
    page.process.stop().await;
}

#[tokio::test]
async fn a_page_that_is_opened_later_gets_the_last_minutes_first() {
    let world = World::new().await;
    world.write_rides(3).await;
    let page = Page::start(&world, &[]).await;
    wait_until("there is a sample", async || page.state().await.is_some()).await;
    let events = page.first_events().await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["history", "incidents", "known", "sample"]);
    assert!(events[0].1[0]["at_ms"].is_u64(), "{}", events[0].1);
    assert_eq!(events[1].1, json!([]), "nothing happened");
    // The connection is still open when the server is told to stop: a response without end must not keep it.
    let open = page.client.get(format!("{}/events", page.url)).send().await.unwrap();
    page.process.stop().await;
    drop(open);
}

#[tokio::test]
async fn a_page_that_is_opened_during_an_outage_gets_the_last_known_figures_and_the_incidents() {
    let (mut postgres, mut redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    world.write_rides(3).await;
    world.drain_streamer(&mut world.streamer()).await;
    let page = Page::start(&world, &[]).await;
    wait_until("the figures are known", async || {
        page.state().await.is_some_and(|state| state["log"]["head"] == 3 && state["stream"]["last_offset"] == 3)
    })
    .await;
    redis.kill().await;
    postgres.kill().await;
    wait_until("both outages are told", async || {
        let incidents = page.incidents().await;
        ["Postgres", "Redis"].iter().all(|name| incidents.contains(&format!("{name} stopped answering")))
    })
    .await;
    let events = page.first_events().await;
    let (known, sample) = (&events[2].1, &events[3].1);
    assert!(sample["log"].is_null() && sample["stream"].is_null(), "{sample}");
    assert_eq!((known["log"]["head"].as_i64(), known["stream"]["last_offset"].as_i64()), (Some(3), Some(3)));
    let age_ms = |name: &str| sample["at_ms"].as_i64().unwrap() - known[name].as_i64().unwrap();
    assert!(age_ms("log_at_ms") > 500 && age_ms("stream_at_ms") > 500, "{known}");
    page.process.stop().await;
}

#[tokio::test]
async fn the_page_knows_each_process_id_and_notices_a_restart_and_a_wipe() {
    let world = World::new().await;
    let port = tests::free_port().to_string();
    let start = || Process::start(&world, "streamer", &["--monitor-port", &port]);
    let first = start();
    let page = Page::start(&world, &["--watch", &format!("streamer=127.0.0.1:{port}")]).await;
    let pid = async || page.state().await.and_then(|state| state["processes"][0]["pid"].as_i64());
    let first_pid = first.pid().as_raw();
    wait_until("the first process is known", async || pid().await == Some(first_pid.into())).await;
    world.write_rides(2).await;
    wait_until("all is published", async || {
        page.state().await.is_some_and(|state| state["stream"]["last_offset"] == 2)
    })
    .await;
    // Without a streamer: it might rebuild the stream before the next sample is taken.
    first.kill().await;
    let wiped: i64 = redis::cmd("DEL").arg(world.stream_name()).query_async(&mut world.redis().await).await.unwrap();
    assert_eq!(wiped, 1, "there was a stream");
    wait_until("the wipe is told", async || page.incidents().await.contains(&"the stream was wiped".to_owned())).await;
    let second = start();
    let restarted = format!("streamer restarted: process {} replaces {first_pid}", second.pid());
    let expected = ["the stream was rebuilt, up to offset 2".to_owned(), restarted];
    wait_until("restart and rebuilding are told", async || {
        let incidents = page.incidents().await;
        expected.iter().all(|text| incidents.contains(text))
    })
    .await;
    second.stop().await;
    page.process.stop().await;
}

#[tokio::test]
async fn no_more_watch_than_the_server_can_serve() {
    let world = World::new().await;
    let page = Page::start(&world, &[]).await;
    let events = format!("{}/events", page.url);
    let mut watching = Vec::new();
    for _ in 0..100 {
        let response = page.client.get(&events).send().await.unwrap();
        assert!(response.status().is_success());
        watching.push(response);
    }
    let refused = page.client.get(&events).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (503, "10"));
    drop(watching);
    wait_until("there is room again", async || page.client.get(&events).send().await.unwrap().status().is_success())
        .await;
    page.process.stop().await;
}

#[tokio::test]
async fn buttons_are_for_this_page_alone_and_for_development() {
    let world = World::new().await;
    let page = Page::start(&world, &[]).await;
    assert_eq!(page.token().await, None, "no buttons unless they are asked for");
    let wipe = json!({ "kind": "wipe" });
    assert_eq!(page.order(&[("x-fault-token", "null")], &wipe).await.0, 404);
    page.process.stop().await;

    let page = Page::start(&world, &["--fault-orders"]).await;
    let token = page.token().await.unwrap();
    // As a form, or a script, of another site would send it: it cannot know the token.
    assert_eq!(page.order(&[], &wipe).await.0, 403);
    assert_eq!(page.order(&[("x-fault-token", "guess")], &wipe).await.0, 403);
    // A name of another that was made to point here.
    let host = ("host", "rides.example.com");
    assert_eq!(page.order(&[("x-fault-token", &token), host], &wipe).await.0, 403);
    let read = page.client.get(format!("{}/faults", page.url)).header(host.0, host.1).send().await.unwrap();
    assert_eq!(read.status().as_u16(), 403, "nor can such a name read the token");
    let (status, answer) = page.order(&[("x-fault-token", &token)], &json!({ "kind": "meltdown" })).await;
    assert_eq!((status, answer["error"].as_str().unwrap()), (422, "There is no such fault."));

    world.write_rides(2).await;
    world.drain_streamer(&mut world.streamer()).await;
    let (status, answer) = page.order(&[("x-fault-token", &token)], &wipe).await;
    assert_eq!((status, answer["done"].as_str().unwrap()), (200, "the stream is wiped"));
    assert_eq!(world.stream_len().await, 0);
    let (status, answer) = page.order(&[("x-fault-token", &token)], &json!({ "kind": "crash", "consumer": "x" })).await;
    assert_eq!((status, answer["error"].as_str().unwrap()), (409, "no process is watched that consumes as x"));
    page.process.stop().await;
}

#[tokio::test]
async fn the_page_does_not_let_other_machines_press_its_buttons() {
    let world = World::new().await;
    let flags = ["--dashboard-port", "0", "--dashboard-bind", "0.0.0.0", "--fault-orders"];
    let output = Process::start(&world, "dashboard", &flags).fail(2).await;
    assert!(output.contains("other machines could press the buttons: set FAULT_ORDERS=false"), "{output}");
    let flags = ["--monitor-port", "0", "--monitor-bind", "0.0.0.0", "--fault-orders"];
    let output = Process::start(&world, "streamer", &flags).fail(2).await;
    assert!(output.contains("faults could be ordered from other machines: set FAULT_ORDERS=false"), "{output}");
}

#[tokio::test]
async fn processes_take_orders_only_where_they_are_told_to() {
    let world = World::new().await;
    let client = reqwest::Client::new();
    let closed = Watched::start(&world, "streamer", &[]).await;
    let url = format!("http://{}/fault", closed.address());
    let response = client.post(&url).header("x-fault-order", "1").send().await.unwrap();
    assert_eq!(response.status().as_u16(), 404);
    closed.process.stop().await;

    let open = Watched::start(&world, "streamer", &["--fault-orders"]).await;
    let url = format!("http://{}/fault", open.address());
    assert_eq!(client.post(&url).send().await.unwrap().status().as_u16(), 403, "without the header");
    let elsewhere = client.post(&url).header("x-fault-order", "1").header("host", "rides.example.com:5013");
    assert_eq!(elsewhere.send().await.unwrap().status().as_u16(), 403, "under a name that was made to point here");
    assert_eq!(client.post(&url).header("x-fault-order", "1").send().await.unwrap().status().as_u16(), 202);
    // A batch that was in hand when the order came is not spoilt, but one that follows is.
    let (mut written_count, injected) = (0.0, "rocket_rides_faults_injected_total");
    wait_until("a batch is sent twice", async || {
        world.write_rides(1).await;
        written_count += 1.0;
        open.metric(injected).await == 1.0
    })
    .await;
    let published = "rocket_rides_records_published_total";
    wait_until("all are published", async || open.metric(published).await == written_count).await;
    let twice_count = open.metric("rocket_rides_entries_added_total").await - written_count;
    assert!(twice_count >= 1.0, "{twice_count}");
    world.write_rides(2).await;
    wait_until("the next ones are, too", async || open.metric(published).await == written_count + 2.0).await;
    assert_eq!(open.metric("rocket_rides_entries_added_total").await, written_count + 2.0 + twice_count, "once");
    assert_eq!(open.metric(injected).await, 1.0, "one order, one fault");
    open.process.stop().await;
}
