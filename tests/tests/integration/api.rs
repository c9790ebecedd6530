//! The api over real HTTP.

use std::time::Duration;

use common::shutdown::CancellationToken;
use nix::sys::signal::Signal;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tests::{PrivatePostgres, Process, World, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An api for one test, on a free port, in the test's process.
pub struct Api {
    port: u16,
    client: reqwest::Client,
    shutdown: CancellationToken,
}

impl Api {
    pub async fn start(world: &World) -> Self {
        Self::start_within(&world.database_url_of("api").parse().unwrap(), api::Limits::default()).await
    }

    /// Starts an api that also books rides.
    pub async fn start_with(world: &World, stripe: payments::Stripe) -> Self {
        let postgres: tokio_postgres::Config = world.database_url_of("api").parse().unwrap();
        let desk = booking::Desk::new(api::desk_pool(&postgres).unwrap(), stripe);
        let backends = api::Backends { desk: Some(desk), ..api::Backends::default() };
        Self::start_whole(&postgres, backends, api::Limits::default()).await
    }

    pub async fn start_within(postgres: &tokio_postgres::Config, limits: api::Limits) -> Self {
        Self::start_whole(postgres, api::Backends::default(), limits).await
    }

    pub async fn start_whole(postgres: &tokio_postgres::Config, backends: api::Backends, limits: api::Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (postgres, shutdown) = (postgres.clone(), CancellationToken::new());
        let stop = shutdown.clone();
        tokio::spawn(async move {
            let (access, health) = (api::Access::default(), monitor::Health::default());
            api::serve(&postgres, backends, access, listener, limits, &health, stop).await.unwrap()
        });
        Self { port, client: reqwest::Client::new(), shutdown }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub async fn post_form(&self, body: &str) -> (u16, Value) {
        self.post("application/x-www-form-urlencoded", body).await
    }

    pub async fn post(&self, content_type: &str, body: &str) -> (u16, Value) {
        let request = self.client.post(self.url("/rides")).header("content-type", content_type).body(body.to_owned());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(self.url(path)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tokio::test]
async fn a_ride_is_answered_with_what_was_stored() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (status, body) = api.post("application/json", r#"{"distance": 123.0456}"#).await;
    assert_eq!((status, &body["ride"]["distance_mm"]), (201, &json!(123_046)));
    let (status, ride) = api.get(&format!("/rides/{}", body["ride"]["id"])).await;
    assert_eq!((status, &ride), (200, &body["ride"]));
    assert!(ride["created_at"].as_str().unwrap().ends_with('Z'));
    let staged =
        world.client().query_one("SELECT object, action, data::text FROM staged_log_records", &[]).await.unwrap();
    assert_eq!((staged.get::<_, &str>(0), staged.get::<_, &str>(1)), ("ride", "create"));
    assert_eq!(staged.get::<_, &str>(2), format!(r#"{{"id":{},"distance_mm":123046}}"#, body["ride"]["id"]));
}

#[tokio::test]
async fn form_and_json_are_understood_alike() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    for (content_type, body) in [
        ("application/x-www-form-urlencoded", "distance=1.5"),
        ("application/x-www-form-urlencoded; charset=utf-8", "a=b&distance=+1.5+"),
        ("application/json", r#"{"distance":1.5}"#),
        ("Application/JSON; charset=utf-8", r#"{"distance":"1.5","other":[1]}"#),
        ("application/vnd.rides+json", r#"{"distance":0.15e1}"#),
    ] {
        let (status, answer) = api.post(content_type, body).await;
        assert_eq!((status, &answer["ride"]["distance_mm"]), (201, &json!(1_500)), "{content_type} {body}: {answer}");
    }
}

#[tokio::test]
async fn what_is_no_distance_is_answered_with_422_and_changes_nothing() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (form, json) = ("application/x-www-form-urlencoded", "application/json");
    for (content_type, body, code) in [
        (form, "", "distance_missing"),
        (form, "distance=", "distance_missing"),
        (form, "other=1", "distance_missing"),
        (json, "{}", "distance_missing"),
        (json, r#"{"distance":null}"#, "distance_missing"),
        (json, r#"{"distance":""}"#, "distance_missing"),
        (form, "distance=foo", "distance_not_a_number"),
        (form, "distance=12abc", "distance_not_a_number"),
        (form, "distance=NaN", "distance_not_a_number"),
        (form, "distance=inf", "distance_not_a_number"),
        (json, r#"{"distance":true}"#, "distance_not_a_number"),
        (json, r#"{"distance":[1]}"#, "distance_not_a_number"),
        (json, r#"{"distance":"\ud800"}"#, "distance_not_a_number"),
        (form, "distance=0", "distance_out_of_range"),
        (form, "distance=-1", "distance_out_of_range"),
        (form, "distance=0.0004", "distance_out_of_range"),
        (form, "distance=1000000000.001", "distance_out_of_range"),
        (json, r#"{"distance":1e400}"#, "distance_out_of_range"),
        (json, r#"{"distance":-0.0}"#, "distance_out_of_range"),
    ] {
        let (status, answer) = api.post(content_type, body).await;
        assert_eq!((status, &answer["code"]), (422, &json!(code)), "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().ends_with('.'), "{answer}");
    }
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 0);
}

#[tokio::test]
async fn every_other_mistake_is_answered_in_the_same_shape() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let large = format!("distance={}", "1".repeat(20_000));
    for (method, path, content_type, body, status, code) in [
        (Method::POST, "/rides", "application/json", "{", 400, "body_malformed"),
        (Method::POST, "/rides", "application/json", "[1]", 400, "body_malformed"),
        (Method::POST, "/rides", "application/json", "", 400, "body_malformed"),
        (Method::POST, "/rides", "application/json", r#"{"distance":1,"distance":2}"#, 400, "body_malformed"),
        (Method::POST, "/rides", "application/x-www-form-urlencoded", "distance=1&distance=2", 400, "body_malformed"),
        (Method::POST, "/rides", "application/x-www-form-urlencoded", &large, 413, "body_too_large"),
        (Method::POST, "/rides", "text/plain", "distance=1", 415, "content_type_unsupported"),
        (Method::POST, "/rides", "", "distance=1", 415, "content_type_unsupported"),
        (Method::DELETE, "/rides", "", "", 405, "method_not_allowed"),
        (Method::POST, "/totals", "", "", 405, "method_not_allowed"),
        (Method::GET, "/", "", "", 404, "path_unknown"),
        (Method::GET, "/rides/1", "", "", 404, "ride_unknown"),
        (Method::GET, "/rides/x", "", "", 404, "ride_unknown"),
        (Method::GET, "/rides/99999999999999999999", "", "", 404, "ride_unknown"),
        (Method::GET, "/rides/%FF", "", "", 404, "ride_unknown"),
        (Method::GET, "/rides?after=x", "", "", 422, "parameter_invalid"),
        (Method::GET, "/rides?after=-1", "", "", 422, "parameter_invalid"),
        (Method::GET, "/rides?limit=0", "", "", 422, "parameter_invalid"),
        (Method::GET, "/rides?limit=1001", "", "", 422, "parameter_invalid"),
        (Method::GET, "/rides?limit=1&limit=2", "", "", 400, "body_malformed"),
    ] {
        let mut request = api.client.request(method.clone(), api.url(path)).body(body.to_owned());
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let response = request.send().await.unwrap();
        let (is, headers) = (response.status().as_u16(), response.headers().clone());
        let answer: Value = response.json().await.unwrap_or_else(|error| panic!("{method} {path}: {is} {error}"));
        assert_eq!((is, &answer["code"]), (status, &json!(code)), "{method} {path} {body}: {answer}");
        assert!(answer["error"].is_string(), "{answer}");
        assert_eq!(headers.contains_key("allow"), status == 405, "{method} {path}");
    }
}

#[tokio::test]
async fn rides_are_listed_page_by_page() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    world.write_rides(7).await;
    let (mut after, mut ids) = (0, Vec::new());
    loop {
        let (status, page) = api.get(&format!("/rides?after={after}&limit=3")).await;
        assert_eq!(status, 200);
        ids.extend(page["rides"].as_array().unwrap().iter().map(|ride| ride["id"].as_i64().unwrap()));
        match page["next_after"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(ids, (1..=7).collect::<Vec<_>>());
}

#[tokio::test]
async fn totals_stand_beside_each_other() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let (status, empty) = api.get("/totals").await;
    assert_eq!((status, &empty["converged"], &empty["consumers"]), (200, &json!(false), &json!([])));
    assert_eq!(empty["sql"], json!({ "ride_count": 0, "total_distance_mm": 0 }));
    world.carry_rides(5, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    let (_, totals) = api.get("/totals").await;
    assert_eq!(totals["converged"], true, "{totals}");
    assert_eq!(totals["sql"]["total_distance_mm"], totals["consumers"][0]["total_distance_mm"]);
    // The history has no total. It is not shown, and the others have converged all the same.
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    assert_eq!(api.get("/totals").await.1, totals);
    world.write_rides(2).await;
    world.drain_streamer(&mut world.streamer()).await;
    let (_, totals) = api.get("/totals").await;
    assert_eq!(
        (&totals["converged"], &totals["head"], &totals["consumers"][0]["lag"]),
        (&json!(false), &json!(7), &json!(2))
    );
}

#[tokio::test]
async fn one_bad_row_does_not_fail_its_neighbours() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    // The api checks everything that the tables check. This constraint stands for an unforeseen failure of one row.
    world
        .client()
        .batch_execute("ALTER TABLE rides ADD CONSTRAINT unlucky CHECK (distance_mm <> 13000)")
        .await
        .unwrap();
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // The first request waits for the lock. All later requests wait behind it, and are written in groups.
    let requests = (1..=100).map(|n| (n, format!("distance={}", if n % 25 == 0 { 13 } else { 100 + n })));
    let answers = requests.map(|(n, body)| {
        let api = &api;
        async move { (n, api.post_form(&body).await) }
    });
    let release = async {
        wait_until("the writer waits", async || world.waiting_count().await == 1).await;
        lock.commit().await.unwrap();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(answers), release);
    for (n, (status, answer)) in answers {
        let wanted = if n % 25 == 0 {
            (500, json!("internal"), Value::Null)
        } else {
            (201, Value::Null, json!((100 + n) * 1000))
        };
        assert_eq!((status, answer["code"].clone(), answer["ride"]["distance_mm"].clone()), wanted, "{n}: {answer}");
    }
    let transaction_count = world.number("SELECT count(DISTINCT transaction_id) FROM staged_log_records").await;
    assert!(transaction_count < 50, "neighbours are written together: {transaction_count} transactions");
    assert_eq!(world.number("SELECT count(*) FROM rides").await, 96);
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 96, "a ride and its record, or neither");
}

#[tokio::test]
async fn without_postgres_requests_get_503_and_then_all_is_well_again() {
    let mut postgres = PrivatePostgres::start().await;
    let mut world = World::on(&postgres.url(), "redis+unix:///nowhere").await;
    world.forget_database();
    let api = Api::start(&world).await;
    assert_eq!(api.post_form("distance=1").await.0, 201);
    postgres.kill().await;
    for path in ["/rides", "/rides/1", "/totals", "/healthz"] {
        let response = api.client.get(api.url(path)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(response.headers().contains_key("retry-after"));
    }
    let (status, answer) = api.post_form("distance=2").await;
    assert_eq!((status, &answer["code"]), (503, &json!("unavailable")));
    let text = answer.to_string().to_lowercase();
    assert!(["postgres", "socket", "connect", "sql"].iter().all(|word| !text.contains(word)), "{text}");
    postgres.start_again().await;
    wait_until("rides are taken again", async || api.post_form("distance=4").await.0 == 201).await;
    let (_, page) = api.get("/rides").await;
    assert_eq!(page["rides"][0]["distance_mm"], 1_000, "the ride that was confirmed with 201 is there");
}

#[tokio::test]
async fn requests_in_flight_finish_when_the_process_is_told_to_stop() {
    let world = World::new().await;
    let mut process = Process::start(&world, "api", &["--api-port", "0"]);
    process.wait_for("api started").await;
    let output = process.output();
    let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let url = format!("http://{address}/rides");
    let form = ("content-type", "application/x-www-form-urlencoded");
    let request = reqwest::Client::new().post(&url).header(form.0, form.1).body("distance=1").send();
    let request = tokio::spawn(request);
    wait_until("the request is in flight", async || world.waiting_count().await == 1).await;
    process.signal(Signal::SIGTERM);
    process.wait_for("stopping").await;
    wait_until("new connections are refused", async || TcpStream::connect(&address).await.is_err()).await;
    lock.commit().await.unwrap();
    assert_eq!(request.await.unwrap().unwrap().status(), StatusCode::CREATED);
    assert!(process.ended().await.success(), "{}", process.output());
    assert_eq!(world.sql_totals().await, (1, 1_000));
}

#[tokio::test]
async fn a_client_that_leaves_does_not_take_its_ride_along() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let mut locker = world.connect().await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", api.port())).await.unwrap();
    let request = "POST /rides HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n\
                   content-length: 10\r\n\r\ndistance=5";
    socket.write_all(request.as_bytes()).await.unwrap();
    wait_until("the request is in flight", async || world.waiting_count().await == 1).await;
    drop(socket);
    lock.commit().await.unwrap();
    wait_until("the ride is there", async || world.sql_totals().await == (1, 5_000)).await;
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 1);
}

#[tokio::test]
async fn junk_on_the_socket_does_not_disturb_anybody() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    for junk in [&b"\0\0\0\0\r\n\r\n"[..], b"GET\r\n\r\n", b"POST /rides HTTP/9.9\r\n\r\n", &[0xff; 70_000]] {
        let mut socket = TcpStream::connect(("127.0.0.1", api.port())).await.unwrap();
        // The server may close the connection before it has read everything.
        let _ = socket.write_all(junk).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(api.post_form("distance=1").await.0, 201);
}
