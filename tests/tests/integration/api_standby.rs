//! The api reads totals and the history from a hot standby as old as it is, and from the primary while the standby cannot be read.

use serde_json::Value;
use tests::{PrivatePostgres, PrivateRedis, Process, World, wait_until};

/// An api with a hot standby.
struct Api {
    url: String,
    process: Process,
}

impl Api {
    async fn start(world: &World, standby: &PrivatePostgres) -> Self {
        let standby_url = standby.url_of(world.database_name());
        let args = ["--api-port", "0", "--standby-database-url", &standby_url];
        let mut process = Process::start(world, "api", &args);
        Self { url: format!("http://{}", process.address_after("api started").await), process }
    }

    async fn get(&self, path: &str) -> Value {
        let response = reqwest::get(format!("{}{path}", self.url)).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.unwrap()
    }

    /// The number of rides by `GET /totals`.
    async fn ride_count(&self) -> i64 {
        self.get("/totals").await["sql"]["ride_count"].as_i64().unwrap()
    }

    /// The number of records by `GET /history`.
    async fn record_count(&self) -> usize {
        self.get("/history").await["records"].as_array().unwrap().len()
    }

    async fn write_ride(&self) -> i64 {
        let request = reqwest::Client::new().post(format!("{}/rides", self.url)).body(r#"{"distance":1}"#);
        let response = request.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(response.status(), 201);
        response.json::<Value>().await.unwrap()["ride"]["id"].as_i64().unwrap()
    }
}

#[tokio::test]
async fn totals_and_history_are_those_of_the_standby_and_a_ride_is_read_from_the_primary() {
    let (primary, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let (world, standby) = World::with_standby(&primary, &redis).await;
    let api = Api::start(&world, &standby).await;
    let streamer = Process::start(&world, "streamer", &[]);
    let archivist = Process::start(&world, "consumer", &["history", "--fold", "history"]);
    world.write_rides(3).await;
    wait_until("the standby shows all", async || (api.ride_count().await, api.record_count().await) == (3, 3)).await;
    standby.run("postgres", "SELECT pg_wal_replay_pause()").await;
    let id = api.write_ride().await;
    let archived = "SELECT count(*) FROM history";
    wait_until("the record is archived", async || world.number(archived).await == 4).await;
    assert_eq!((api.ride_count().await, api.record_count().await), (3, 3), "as old as the standby");
    assert_eq!(api.get(&format!("/rides/{id}")).await["id"], id, "a client finds what it has written");
    standby.run("postgres", "SELECT pg_wal_replay_resume()").await;
    wait_until("the standby shows all", async || (api.ride_count().await, api.record_count().await) == (4, 4)).await;
    for process in [api.process, streamer, archivist] {
        process.stop().await;
    }
}

#[tokio::test]
async fn without_the_standby_the_primary_is_read() {
    let (primary, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let (world, mut standby) = World::with_standby(&primary, &redis).await;
    let mut api = Api::start(&world, &standby).await;
    standby.follows(&primary).await;
    assert_eq!(api.ride_count().await, 0);
    standby.stop_following().await;
    api.write_ride().await;
    assert_eq!(api.ride_count().await, 0, "the standby was read");

    // While a reading takes long, the one before is shown, with its age.
    standby.hang("api").await;
    wait_until("the primary is read", async || api.ride_count().await == 1).await;
    api.write_ride().await;
    wait_until("the primary is read", async || api.ride_count().await == 2).await;
    standby.kill().await;
    api.write_ride().await;
    wait_until("the primary is read", async || api.ride_count().await == 3).await;
    standby.start_again().await;
    wait_until("the standby is read again", async || api.ride_count().await == 0).await;
    assert!(api.process.is_running());
    assert!(api.process.output().contains("the standby cannot be read"), "{}", api.process.output());
    api.process.stop().await;
}
