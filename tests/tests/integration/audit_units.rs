//! The audit of the container's units: true ones pass, and each difference is named with its unit.

use nix::sys::signal::Signal;
use tests::{Process, free_port};

use crate::audit_wallets::{different, equal};
use crate::container_fixture::{Scene, config, manifest};
use crate::container_relay::{Relay, Treatment};
use crate::reaper::reap;

/// Units 1 and 2 are committed, unit 3 is rejected, and unit 4 waits for its second attempt. The container is stopped.
async fn stopped_scene() -> Scene {
    let port = free_port();
    let relay = Relay::start(port, Treatment::Pass, Treatment::Pass).await;
    let mut scene = Scene::start_with(port, &config(&relay.url, "")).await;
    for (ride_id, store, status, state) in [
        (7, Treatment::Pass, 200, "committed"),
        (8, Treatment::Pass, 200, "committed"),
        (9, Treatment::Refuse(422), 422, "rejected"),
        (10, Treatment::Refuse(503), 503, "fail_queued"),
    ] {
        relay.treat(store, Treatment::Pass);
        let response = scene.post(&manifest(ride_id, &["Ada"])).send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{state}");
    }
    scene.container.signal(Signal::SIGTERM);
    scene.container.ended().await;
    scene
}

#[tokio::test]
async fn true_units_are_equal_before_and_after_their_records_are_reaped() {
    let scene = stopped_scene().await;
    let world = &scene.world;
    // The second attempt of unit 4 may have failed before the container stopped.
    let verdict_count = world.number("SELECT count(*) FROM staged_log_records WHERE object = 'unit'").await;
    assert!(verdict_count >= 4, "{verdict_count}");
    let counts = "units: 4, 2 of them committed and 1 not settled; 2 rows";
    let line = format!("{counts}, and {verdict_count} verdicts in the log: equal");
    let output = equal(world, &[]).await;
    assert!(output.contains(&line), "{output}");
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("c0")).await;
    Process::start(world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    reap(world, &["--keep", "0s"]).await;
    let output = equal(world, &[]).await;
    assert!(output.contains("2 rows, and 0 verdicts in the log: equal"), "{output}");
    assert!(equal(world, &["--from", "start"]).await.contains(&line), "the history has the records");
    // A verdict that is later than all that was reaped must be in the log.
    let later = "UPDATE units SET settled_at = now() + INTERVAL '1 hour' WHERE uow = 3";
    world.client().batch_execute(later).await.unwrap();
    different(world, &[("unit 3: ", "it is rejected, and the log has no record of that verdict")]).await;
}

#[tokio::test]
async fn each_false_unit_is_named() {
    let scene = stopped_scene().await;
    let world = &scene.world;
    let record = "INSERT INTO staged_log_records (object, action, data)
                  SELECT object, 'ACTION', data FROM staged_log_records WHERE data->>'uow' = 'UOW'";
    let record = |action: &str, uow: &str| record.replace("ACTION", action).replace("UOW", uow);
    let newest = "DELETE FROM staged_log_records WHERE id = (SELECT max(id) FROM staged_log_records)";
    for (harm, remedy, unit, words) in [
        (
            "CREATE TABLE kept AS SELECT * FROM manifests WHERE uow = 1; DELETE FROM manifests WHERE uow = 1",
            "INSERT INTO manifests SELECT * FROM kept; DROP TABLE kept",
            "unit 1: ",
            "it is committed, and manifests has 0 rows of it (C3)",
        ),
        (
            "INSERT INTO manifests VALUES (4, '10', '{}')",
            "DELETE FROM manifests WHERE uow = 4",
            "unit 4: ",
            "it is fail_queued, and manifests has 1 rows of it (C3)",
        ),
        (
            "INSERT INTO manifests VALUES (3, '9', '{}')",
            "DELETE FROM manifests WHERE uow = 3",
            "unit 3: ",
            "it is rejected, and manifests has 1 rows of it (C3)",
        ),
        (
            "UPDATE manifests SET subject = '9' WHERE uow = 2",
            "UPDATE manifests SET subject = '8' WHERE uow = 2",
            "unit 2: ",
            "its row in manifests is about another subject",
        ),
        (
            "UPDATE unit_parts SET state = 'undone' WHERE uow = 1 AND destination = 'board'",
            "UPDATE unit_parts SET state = 'stored' WHERE uow = 1 AND destination = 'board'",
            "unit 1: ",
            "it is committed, and its part board is undone (C2)",
        ),
        (
            "UPDATE unit_parts SET state = 'stored' WHERE uow = 3 AND destination = 'board'",
            "UPDATE unit_parts SET state = 'undone' WHERE uow = 3 AND destination = 'board'",
            "unit 3: ",
            "it is rejected, and its part board is stored (C2)",
        ),
        (&record("commit", "2"), newest, "unit 2: ", "the log has of its attempt 1: commit, commit (C2)"),
        (&record("commit", "3"), newest, "unit 3: ", "the log has of its attempt 1: commit, rejected (C2)"),
        (
            "CREATE TABLE kept AS SELECT data FROM staged_log_records WHERE data->>'uow' = '2';
             DELETE FROM staged_log_records WHERE data->>'uow' = '2'",
            "INSERT INTO staged_log_records (object, action, data) SELECT 'unit', 'commit', data FROM kept; DROP TABLE kept",
            "unit 2: ",
            "it is committed, and the log has no record of that verdict",
        ),
    ] {
        world.client().batch_execute(harm).await.unwrap();
        different(world, &[(unit, words)]).await;
        world.client().batch_execute(remedy).await.unwrap();
    }
    equal(world, &[]).await;
    // Records that the container does not stage. Postgres cannot read the first.
    for data in [r#"{"uow":"\u0000"}"#, "[1]", r#"{"uow":999}"#] {
        let stage =
            format!("INSERT INTO staged_log_records (object, action, data) VALUES ('unit', 'commit', '{data}')");
        world.client().batch_execute(&stage).await.unwrap();
    }
    equal(world, &[]).await;
    world.client().batch_execute("DROP TABLE unit_parts CASCADE").await.unwrap();
    let output = equal(world, &[]).await;
    assert!(output.contains("note: units were not compared"), "{output}");
}
