//! The container as its monitor shows it: metrics, readiness, and outages that a person orders.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Monitor, PrivatePostgres, PrivateRedis, World, free_port, wait_until};

use crate::container_fixture::{Scene, base_of, config, manifest};
use crate::container_relay::{Relay, Treatment};

/// A container with a monitor.
pub struct WatchedScene {
    pub scene: Scene,
    pub monitor: Monitor,
}

impl WatchedScene {
    /// Starts a container with the destinations of the demo, and with further flags.
    pub async fn start(world: World, flags: &[&str]) -> Self {
        let port = free_port();
        Self::start_with(world, (port, &format!("http://127.0.0.1:{port}/notices")), flags).await
    }

    /// The same with another address of the receiver, which has a port of its own.
    async fn start_with(world: World, (port, webhook): (u16, &str), flags: &[&str]) -> Self {
        let mut scene = Scene::start_on(world, port, &config(webhook, "")).await;
        let next = scene.spawn(&[&["--monitor-port", "0"], flags].concat());
        std::mem::replace(&mut scene.container, next).stop().await;
        let monitor = Monitor::of(&mut scene.container).await;
        scene.base = base_of(&mut scene.container).await;
        Self { scene, monitor }
    }

    /// Posts a manifest. Returns the status and the unit.
    pub async fn post(&self, ride_id: i64) -> (u16, Value) {
        let response = self.scene.post(&manifest(ride_id, &["Ada", "Bob"])).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn is(&self, metric: &str, value: f64) {
        wait_until(&format!("{metric} is {value}"), async || self.monitor.metrics().await.get(metric) == Some(&value))
            .await;
    }
}

const OPEN: &str = r#"rocket_rides_destination_breaker_open{destination="notices"}"#;
const WAITING: &str = r#"rocket_rides_destination_waiting_units{destination="notices"}"#;

#[tokio::test]
async fn the_metrics_of_a_container_say_what_happened() {
    let mut watched = WatchedScene::start(World::new().await, &[]).await;
    assert_eq!(watched.post(7).await.0, 200);
    watched.is(r#"rocket_rides_unit_verdicts_total{state="committed"}"#, 1.0).await;
    watched.is("rocket_rides_unit_oldest_seconds", 0.0).await;
    watched.monitor.assert_every_metric_has_help().await;
    let metrics = watched.monitor.metrics().await;
    for (metric, value) in [
        ("rocket_rides_units_accepted_total", 1.0),
        ("rocket_rides_unit_attempts_total", 1.0),
        ("rocket_rides_unit_seconds_count", 1.0),
        (r#"rocket_rides_destination_stores_total{destination="board",outcome="stored"}"#, 1.0),
        (r#"rocket_rides_destination_stores_total{destination="photos",outcome="declined"}"#, 1.0),
        (r#"rocket_rides_destination_stores_total{destination="notices",outcome="stored"}"#, 1.0),
        (r#"rocket_rides_destination_seconds_count{destination="notices"}"#, 1.0),
        (r#"rocket_rides_unit_verdicts_total{state="fail_queued"}"#, 0.0),
        (r#"rocket_rides_units{state="dead"}"#, 0.0),
        (OPEN, 0.0),
        (WAITING, 0.0),
    ] {
        assert_eq!(metrics.get(metric), Some(&value), "{metric}");
    }
    assert!((0.0..1.0).contains(&metrics["rocket_rides_spool_free_ratio"]), "{metrics:?}");

    watched.scene.notices.signal(Signal::SIGKILL);
    watched.scene.notices.ended().await;
    // Its breaker opens after five failures. The units that it delays are counted for it, and for no other destination.
    wait_until("the breaker is open", async || {
        watched.post(8).await;
        watched.monitor.metric(OPEN).await == 1.0
    })
    .await;
    wait_until("the units that wait are counted", async || {
        let metrics = watched.monitor.metrics().await;
        let waiting =
            metrics[r#"rocket_rides_units{state="queued"}"#] + metrics[r#"rocket_rides_units{state="fail_queued"}"#];
        waiting > 1.0 && metrics[WAITING] == waiting && metrics["rocket_rides_unit_oldest_seconds"] > 0.0
    })
    .await;
    let metrics = watched.monitor.metrics().await;
    assert_eq!(metrics[r#"rocket_rides_destination_waiting_units{destination="board"}"#], 0.0);
    assert!(metrics[r#"rocket_rides_unit_verdicts_total{state="fail_queued"}"#] >= 1.0);
    // The receiver is told last, so its failures are those of units which all others have stored.
    assert!(metrics[r#"rocket_rides_destination_stores_total{destination="notices",outcome="failed_5xx"}"#] >= 1.0);

    watched.scene.start_notices_again();
    watched.is(WAITING, 0.0).await;
    watched.is(OPEN, 0.0).await;
    watched.is(r#"rocket_rides_units{state="fail_queued"}"#, 0.0).await;
    let (accepted, committed) =
        ("rocket_rides_units_accepted_total", r#"rocket_rides_unit_verdicts_total{state="committed"}"#);
    wait_until("all units are committed", async || {
        let metrics = watched.monitor.metrics().await;
        metrics[accepted] > 2.0 && metrics[accepted] == metrics[committed]
    })
    .await;
}

/// The container takes files without a unit up, and counts those that it cannot read.
#[tokio::test]
async fn files_that_a_sweep_finds_are_counted() {
    let mut watched = WatchedScene::start(World::new().await, &[]).await;
    assert_eq!(watched.post(7).await.0, 200);
    let folder = watched.scene.folder.join("spool/files");
    std::fs::write(folder.join("4bf92f35-77b3-4da6-a3ce-929d0e0e4736"), "no envelope").unwrap();
    watched.scene.container.signal(Signal::SIGTERM);
    watched.scene.container.ended().await;
    watched.scene.make_spool_old();
    // The first sweep of a process is at its start.
    watched.scene.container = watched.scene.spawn(&["--monitor-port", "0"]);
    watched.monitor = Monitor::of(&mut watched.scene.container).await;
    watched.is("rocket_rides_spool_unusable_files", 1.0).await;
    assert!(watched.monitor.metric("rocket_rides_spool_files").await >= 1.0);
}

#[tokio::test]
async fn undos_that_fail_are_counted_until_they_succeed() {
    let port = free_port();
    let relay = Relay::start(port, Treatment::Lose, Treatment::Refuse(503)).await;
    let watched = WatchedScene::start_with(World::new().await, (port, &relay.url), &[]).await;
    let posting = watched.post(7);
    let counting = async {
        watched.is(r#"rocket_rides_units{state="rolling_back"}"#, 1.0).await;
        wait_until("a failed undo is counted", async || {
            let metrics = watched.monitor.metrics().await;
            metrics[r#"rocket_rides_destination_undos_failed_total{destination="notices"}"#] >= 1.0
                && metrics["rocket_rides_unit_rollback_seconds"] > 0.0
        })
        .await;
        relay.treat(Treatment::Pass, Treatment::Pass);
        watched.is(r#"rocket_rides_units{state="rolling_back"}"#, 0.0).await;
        watched.is("rocket_rides_unit_rollback_seconds", 0.0).await;
        watched.is(r#"rocket_rides_unit_verdicts_total{state="committed"}"#, 1.0).await;
    };
    tokio::join!(posting, counting);
}

async fn is_late(monitor: &Monitor, part: &str) -> bool {
    let (status, text) = monitor.get("/readyz").await;
    status == 503 && text.contains(&format!(r#"{{"name":"{part}","ready":false"#))
}

async fn is_ready_again(monitor: &Monitor) {
    wait_until("the container is ready", async || monitor.is_ready().await).await;
    assert_eq!(monitor.metric("rocket_rides_ready").await, 1.0);
}

#[tokio::test]
async fn a_container_is_ready_while_it_accepts_units() {
    let (mut postgres, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    let WatchedScene { scene, monitor } = WatchedScene::start(world, &[]).await;
    is_ready_again(&monitor).await;

    // A folder that is not mounted is another folder, or none.
    let (folder, away): (PathBuf, PathBuf) = (scene.folder.join("spool"), scene.folder.join("away"));
    std::fs::rename(&folder, &away).unwrap();
    wait_until("the container misses its spool", async || is_late(&monitor, "spool").await).await;
    assert_eq!(scene.post(&manifest(1, &[])).send().await.unwrap().status(), 503);
    std::fs::rename(&away, &folder).unwrap();
    is_ready_again(&monitor).await;
    for (harm, remedy) in [
        ("REVOKE INSERT ON unit_parts FROM rocket_container", "GRANT INSERT ON unit_parts TO rocket_container"),
        ("ALTER TABLE manifests RENAME TO hidden", "ALTER TABLE hidden RENAME TO manifests"),
    ] {
        scene.world.client().batch_execute(harm).await.unwrap();
        wait_until(harm, async || is_late(&monitor, "postgres").await).await;
        scene.world.client().batch_execute(remedy).await.unwrap();
        is_ready_again(&monitor).await;
    }

    postgres.kill().await;
    wait_until("the container misses Postgres", async || is_late(&monitor, "postgres").await).await;
    assert_eq!(monitor.get("/livez").await.0, 200);
    postgres.start_again().await;
    is_ready_again(&monitor).await;
    assert_eq!(scene.post(&manifest(1, &[])).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_ordered_outage_passes_and_is_one_of_the_named_destination() {
    let watched = WatchedScene::start(World::new().await, &["--fault-orders"]).await;
    for path in ["/fault", "/fault?at=rows", "/fault?at=nowhere"] {
        let (status, text) = watched.monitor.order(path).await;
        assert_eq!((status, text.as_str()), (422, "give ?at= with one of board, notices, photos\n"), "{path}");
    }
    assert_eq!(watched.post(7).await.0, 200);
    assert_eq!(watched.monitor.order("/fault?at=board").await.0, 202);
    let (status, unit) = watched.post(8).await;
    assert_eq!((status, &unit["state"]), (503, &"fail_queued".into()));
    let uow = unit["uow"].as_i64().unwrap();
    wait_until("the outage has ended", async || watched.scene.unit(uow).await["state"] == "committed").await;
    let unit = watched.scene.unit(uow).await;
    let report: Vec<&Value> =
        unit["report"]["1"].as_array().unwrap().iter().filter(|part| !part["status"].is_null()).collect();
    assert_eq!(report.len(), 1, "{unit}");
    assert_eq!((&report[0]["destination"], &report[0]["status"]), (&"board".into(), &503.into()));
    assert_eq!(watched.scene.on_board(8).await, Some(2.0));

    let without = WatchedScene::start(World::new().await, &[]).await;
    assert_eq!(without.monitor.order("/fault?at=board").await.0, 404);
    assert_eq!(without.post(7).await.0, 200);
}
