//! `GET /totals` under load: one reading for all who ask, and no figure of another snapshot.

use futures_util::future::join_all;
use serde_json::Value;
use tests::{World, wait_until};

use crate::api::Api;

const READING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '-- api::totals::show%'";

#[tokio::test]
async fn a_hundred_requests_read_the_rides_once() {
    let world = World::new().await;
    world.write_rides(3).await;
    let api = Api::start(&world).await;
    let mut blocker = world.connect().await;
    let lock = blocker.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE rides IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let asking = tokio::spawn(join_all((0..100).map(|_| {
        let url = api.url("/totals");
        async move { reqwest::get(url).await.unwrap().json::<Value>().await.unwrap() }
    })));
    wait_until("the rides are being read", async || world.number(READING).await == 1).await;
    for _ in 0..50 {
        // The api goes on with its other work meanwhile, and takes up the requests that have arrived.
        assert_eq!(reqwest::get(api.url("/openapi.json")).await.unwrap().status(), 200);
        assert_eq!(world.number(READING).await, 1, "one at a time");
    }
    lock.rollback().await.unwrap();
    for totals in asking.await.unwrap() {
        assert_eq!((&totals["sql"]["ride_count"], &totals["converged"]), (&3.into(), &false.into()));
    }
}

/// A client that has written a ride finds it in the totals, and sees no verdict from before it.
#[tokio::test]
async fn totals_are_not_older_than_the_request() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    for ride_count in 1..=10 {
        assert_eq!(api.post_form("distance=1").await.0, 201);
        let response = reqwest::get(api.url("/totals")).await.unwrap();
        assert!(response.headers()["age"].to_str().unwrap().parse::<u32>().is_ok());
        let totals: Value = response.json().await.unwrap();
        assert_eq!(totals["sql"]["ride_count"], ride_count);
    }
}
