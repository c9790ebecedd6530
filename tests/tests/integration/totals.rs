//! `GET /totals` under load: one reading for all who ask, and no figure of another snapshot; and over several partitions.

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

/// The state that a consumer would have committed, without the consumer: its figures are the test's own.
async fn commit(world: &World, name: &str, partition: i32, last_offset: i64, rides: (i64, i64), digest: i64) {
    let state = format!(r#"{{"total_distance_mm":{},"ride_count":{},"digest":"{digest}"}}"#, rides.1, rides.0);
    let upsert = "INSERT INTO checkpoints (name, partition, last_offset, fold, fold_version, state, crash_count)
                  VALUES ($1, $2, $3, 'distance', 1, $4::text::fold_state, 1)
                  ON CONFLICT (name, partition) DO UPDATE SET generation = checkpoints.generation + 1,
                      last_offset = excluded.last_offset, state = excluded.state";
    world.client().execute(upsert, &[&name, &partition, &last_offset, &state]).await.unwrap();
}

/// A total is the sum over the partitions, in one snapshot (P3). A partition that is missing or behind keeps it from being equal.
#[tokio::test]
async fn totals_of_a_cut_log_are_sums_and_by_partition_they_are_not() {
    let world = World::cut(3).await;
    let api = Api::start(&world).await;
    let write = "INSERT INTO rides (distance_mm) VALUES (1000), (2000), (3000);
                 INSERT INTO log_batches (partition, first_offset, record_count, snapshot, token)
                 VALUES (0, 1, 5, pg_current_snapshot(), 1), (2, 1, 1, pg_current_snapshot(), 2), (2, 2, 3, pg_current_snapshot(), 3)";
    world.client().batch_execute(write).await.unwrap();
    commit(&world, "whole", 0, 5, (2, 3000), -1).await;
    commit(&world, "whole", 1, 0, (0, 0), 0).await;
    commit(&world, "whole", 2, 2, (0, 0), 0).await;

    let totals = api.get("/totals").await.1;
    assert_eq!((&totals["head"], &totals["converged"]), (&9.into(), &false.into()), "{totals}");
    assert_eq!(totals.get("partitions"), None);
    let whole = |totals: &Value| {
        totals["consumers"].as_array().unwrap().iter().find(|one| one["name"] == "whole").cloned().unwrap()
    };
    let sum = whole(&totals);
    assert_eq!((&sum["lag"], &sum["last_offset"], &sum["crash_count"]), (&2.into(), &7.into(), &3.into()), "{sum}");
    assert_eq!((sum.get("partition"), &sum["missing_partitions"]), (None, &serde_json::json!([])), "{sum}");

    commit(&world, "whole", 2, 4, (1, 3000), 3).await;
    let totals = api.get("/totals").await.1;
    assert_eq!(totals["converged"], true, "{totals}");
    assert_eq!(whole(&totals)["digest"], "0000000000000002", "it wraps");

    commit(&world, "half", 0, 5, (3, 6000), 3).await;
    let (status, totals) = api.get("/totals?by=partition").await;
    assert_eq!((status, &totals["converged"]), (200, &false.into()), "{totals}");
    let heads = serde_json::json!([{ "partition": 0, "head": 5 }, { "partition": 1, "head": 0 }, { "partition": 2, "head": 4 }]);
    assert_eq!(totals["partitions"], heads);
    let rows = totals["consumers"].as_array().unwrap().iter();
    let rows: Vec<(&str, i64)> =
        rows.map(|row| (row["name"].as_str().unwrap(), row["partition"].as_i64().unwrap())).collect();
    assert_eq!(rows, [("half", 0), ("whole", 0), ("whole", 1), ("whole", 2)]);
    assert_eq!(totals["consumers"][0]["missing_partitions"], serde_json::json!([1, 2]));
    let totals = api.get("/totals").await.1;
    assert_eq!(
        (&totals["converged"], &totals["consumers"][0]["missing_partitions"]),
        (&false.into(), &serde_json::json!([1, 2]))
    );
}

#[tokio::test]
async fn totals_refuse_a_parameter_that_they_do_not_know() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    for (query, code) in [("by=consumer", "parameter_invalid"), ("partition=0", "parameter_unknown")] {
        let (status, answer) = api.get(&format!("/totals?{query}")).await;
        assert_eq!((status, answer["code"].as_str()), (422, Some(code)), "{query}: {answer}");
    }
    assert_eq!(api.get("/totals?by=partition").await.1["partitions"][0]["head"], 0);
}
