//! `GET /history` as server-sent events: each record once and in order, each hole told, until the api stops.

use std::time::Duration;

use api::Limits;
use nix::sys::signal::Signal;
use reqwest::Response;
use serde_json::{Value, json};
use tests::{World, wait_until};
use tokio::time::timeout;

use crate::api::Api;
use crate::history_http::{archive, world_with_parts};
use crate::manners::start_api;

/// How long an event may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client that watches.
struct Events {
    response: Response,
    text: String,
    /// The offset after which the stream begins, as its first event says.
    begins_after: i64,
}

impl Events {
    async fn open(url: String, last_event_id: Option<&str>) -> Self {
        let mut request = reqwest::Client::new().get(url).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = request.header("accept-encoding", "gzip").send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers().get("content-encoding")), (200, None));
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = Self { response, text: String::new(), begins_after: 0 };
        let (name, id, data) = events.next().await.unwrap();
        assert_eq!(
            (name.as_str(), data),
            ("", Value::Null),
            "an id without data: a client that reconnects begins there"
        );
        events.begins_after = id;
        events
    }

    /// The next event: name, id and data. A comment is none. `None`: the stream has ended.
    async fn next(&mut self) -> Option<(String, i64, Value)> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                if let Some(id) = field("id") {
                    let data = field("data").map_or(Value::Null, |data| serde_json::from_str(data).unwrap());
                    return Some((field("event").unwrap_or("").to_owned(), id.parse().unwrap(), data));
                }
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("an event in time");
            self.text.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    /// Asserts that the next events are the records `first` … `last`.
    async fn expect_records(&mut self, first: i64, last: i64) {
        for offset in first..=last {
            let (name, id, data) = self.next().await.unwrap();
            assert_eq!((name.as_str(), id, &data["offset"]), ("record", offset, &json!(offset)), "{data}");
        }
    }

    /// Asserts that the next event tells a hole.
    async fn expect_gap(&mut self, first: i64, last: i64) {
        let gap = json!({ "partition": 0, "first": first, "last": last });
        assert_eq!(self.next().await, Some(("gap".to_owned(), last, gap)));
    }
}

async fn start(world: &World, limits: Limits) -> Api {
    Api::start_within(&world.database_url_of("api").parse().unwrap(), limits).await
}

#[tokio::test]
async fn a_client_that_watches_gets_each_record_and_each_hole_in_order() {
    let world = world_with_parts(1_000, 4_000).await;
    let api = Api::start(&world).await;
    archive(&world, 11, 50).await;
    archive(&world, 52, 2_500).await;
    let mut events = Events::open(api.url("/history?after=0"), None).await;
    events.expect_gap(1, 10).await;
    events.expect_records(11, 50).await;
    events.expect_gap(51, 51).await;
    events.expect_records(52, 2_500).await;
    archive(&world, 2_501, 2_502).await;
    events.expect_records(2_501, 2_502).await;
    archive(&world, 2_510, 2_511).await;
    events.expect_gap(2_503, 2_509).await;
    events.expect_records(2_510, 2_511).await;
    world.client().batch_execute("ALTER TABLE history DETACH PARTITION history_1").await.unwrap();
    let mut again = Events::open(api.url("/history?after=998"), None).await;
    again.expect_records(999, 999).await;
    again.expect_gap(1_000, 1_999).await;
    again.expect_records(2_000, 2_502).await;
}

#[tokio::test]
async fn a_client_that_names_no_offset_gets_later_records_only() {
    let world = world_with_parts(1_000, 100).await;
    let api = Api::start(&world).await;
    archive(&world, 1, 5).await;
    let mut events = Events::open(api.url("/history"), None).await;
    assert_eq!(events.begins_after, 5);
    archive(&world, 6, 7).await;
    events.expect_records(6, 7).await;
}

#[tokio::test]
async fn a_client_that_reconnects_goes_on_after_its_last_event() {
    let world = world_with_parts(1_000, 100).await;
    let api = Api::start(&world).await;
    archive(&world, 1, 5).await;
    archive(&world, 9, 12).await;
    let url = || api.url("/history?after=1");
    Events::open(url(), None).await.expect_records(2, 5).await;
    Events::open(url(), Some("5")).await.expect_gap(6, 8).await;
    Events::open(url(), Some("8")).await.expect_records(9, 12).await;
    // The id of an event without data is that of the last record that a filter has left out.
    let mut filtered = Events::open(api.url("/history?after=8&object=wallet"), None).await;
    assert_eq!(filtered.next().await, Some((String::new(), 12, Value::Null)));
    let insert = "INSERT INTO history VALUES (0, 13, 'wallet', 'credit', E'{\"a\":\\n1}', now())";
    world.client().batch_execute(insert).await.unwrap();
    let block = async |mut events: Events| {
        while !events.text.ends_with("\n\n") {
            events.text.push_str(std::str::from_utf8(&events.response.chunk().await.unwrap().unwrap()).unwrap());
        }
        events.text
    };
    let text = timeout(PATIENCE, block(filtered)).await.unwrap();
    assert!(text.contains("\"data\":{\"a\":\ndata: 1}"), "a line break in the data begins a further line: {text}");
}

#[tokio::test]
async fn a_stream_outlasts_an_outage_and_the_limit_of_a_request() {
    let world = world_with_parts(1_000, 100).await;
    let mut limits = Limits { answer_wait: Duration::from_millis(500), ..Limits::default() };
    limits.http.request_wait = Duration::from_secs(2);
    let api = start(&world, limits).await;
    archive(&world, 1, 2).await;
    let mut events = Events::open(api.url("/history?after=0"), None).await;
    events.expect_records(1, 2).await;
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE history IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // The api waits, gives up, and tries again.
    let reads = "query LIKE '-- api::history_page%'";
    for count in [1, 0, 1] {
        wait_until("the api waits, or has given up", async || world.waiting_count_where(reads).await == count).await;
    }
    lock.commit().await.unwrap();
    archive(&world, 3, 3).await;
    events.expect_records(3, 3).await;
}

#[tokio::test]
async fn no_more_clients_watch_than_the_api_allows() {
    let world = World::new().await;
    let api = start(&world, Limits { watcher_count_max: 2, ..Limits::default() }).await;
    let url = || api.url("/history");
    let watching = [Events::open(url(), None).await, Events::open(url(), None).await];
    let client = reqwest::Client::new();
    let try_to_watch = async || client.get(url()).header("accept", "text/event-stream").send().await.unwrap();
    let refused = try_to_watch().await;
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "too_many_watchers");
    assert_eq!(api.get("/history").await.0, 200, "pages are still served");
    drop(watching);
    wait_until("there is room again", async || try_to_watch().await.status() == 200).await;
}

#[tokio::test]
async fn a_stream_ends_when_the_api_stops() {
    let world = World::new().await;
    let (mut api, base) = start_api(&world, &[]).await;
    let mut events = Events::open(format!("{base}/history"), None).await;
    api.signal(Signal::SIGTERM);
    assert_eq!(events.next().await, None);
    assert!(api.ended().await.success());
}
