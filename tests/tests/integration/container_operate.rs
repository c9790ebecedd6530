//! `container units` as a person runs it, and what becomes of the units.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{Process, World, binary, free_port, wait_until};
use tokio::process::Command;

use crate::container_fixture::{Scene, config, manifest};
use crate::container_relay::{Relay, Treatment};

/// The command under the role of an operator.
fn units(world: &World, args: &[&str]) -> Process {
    let mut command = Command::new(binary("container"));
    command.arg("units").args(args).env("DATABASE_URL", world.database_url_of("operator"));
    Process::spawn("units", command)
}

/// A container whose receiver is away, and this many units that are dead.
async fn with_dead_units(count: i64) -> Scene {
    let mut scene = Scene::start().await;
    scene.notices.signal(Signal::SIGKILL);
    scene.notices.ended().await;
    for ride_id in 1..=count {
        scene.post(&manifest(ride_id, &["Ada"])).send().await.unwrap();
    }
    // As if each had failed seven times before. The breaker holds some of them back, so it is closed.
    wait_until("all are dead", async || {
        let age = "UPDATE units SET attempt = 8, due_at = now() WHERE state IN ('queued', 'fail_queued')";
        scene.world.client().batch_execute(age).await.unwrap();
        scene.world.client().batch_execute("UPDATE destinations SET open_until = NULL, canary = NULL").await.unwrap();
        scene.world.number("SELECT count(*) FROM units WHERE state = 'dead'").await == count
    })
    .await;
    scene
}

async fn states(world: &World) -> Vec<String> {
    let rows = world.client().query("SELECT state FROM units ORDER BY uow", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Counts the records of drops.
const DROPS: &str = "SELECT count(*) FROM staged_log_records WHERE object = 'unit' AND action = 'dropped'
                     AND data::json ->> 'status' IS NOT NULL";

#[tokio::test]
async fn a_person_lists_shows_retries_and_drops_units() {
    let mut scene = with_dead_units(3).await;
    let listed = units(&scene.world, &["list"]).succeed().await;
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    for (uow, line) in (1..).zip(&lines) {
        assert!(line.starts_with(&format!("{uow} dead, attempt 8, since 2")), "{line}");
        assert!(
            line.contains(&format!("Z, manifests \"{uow}\", 502: \"notices: the server cannot be reached")),
            "{line}"
        );
    }
    let listed = units(&scene.world, &["list", "--state", "dead", "--json"]).succeed().await;
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    assert_eq!((listed.len(), &listed[2]["uow"], &listed[2]["status"]), (3, &json!(3), &json!(502)), "{listed:?}");
    assert_eq!(units(&scene.world, &["list", "--state", "queued"]).succeed().await, "");
    let shown: Value = serde_json::from_str(&units(&scene.world, &["show", "2"]).succeed().await).unwrap();
    assert_eq!(shown, scene.unit(2).await, "it is what a client sees");
    assert_eq!(shown["report"]["8"].as_array().unwrap().len(), 4, "{shown}");

    assert_eq!(units(&scene.world, &["drop", "2"]).succeed().await, "1 unit is dropped\n");
    let again = units(&scene.world, &["drop", "2"]).fail(1).await;
    assert!(again.contains("unit 2 is not dead: see container units show 2"), "{again}");
    wait_until("its file is gone", async || scene.spooled() == 2).await;

    scene.start_notices_again();
    assert_eq!(units(&scene.world, &["retry", "1"]).succeed().await, "1 unit is due again\n");
    wait_until("it is committed", async || scene.unit(1).await["state"] == "committed").await;
    assert_eq!(scene.unit(1).await["attempt"], 9);
    assert_eq!(units(&scene.world, &["retry", "--all"]).succeed().await, "1 unit is due again\n");
    wait_until("it is committed", async || scene.unit(3).await["state"] == "committed").await;
    assert_eq!(units(&scene.world, &["retry", "--all"]).succeed().await, "0 units are due again\n");
    assert_eq!(states(&scene.world).await, ["committed", "dropped", "committed"]);
    let settled = units(&scene.world, &["list", "--state", "committed"]).succeed().await;
    assert_eq!((settled.lines().count(), units(&scene.world, &["list"]).succeed().await), (2, String::new()));
    assert_eq!((scene.current(1).await, scene.current(2).await), (Some(manifest(1, &["Ada"])), None));
    wait_until("no file is left", async || scene.spooled() == 0).await;
}

#[tokio::test]
async fn a_person_drops_all_units_that_are_dead_and_no_other() {
    let mut scene = with_dead_units(3).await;
    assert_eq!(units(&scene.world, &["drop", "--all"]).succeed().await, "3 units are dropped\n");
    assert_eq!(states(&scene.world).await, ["dropped"; 3]);
    assert_eq!(scene.world.number(DROPS).await, 3, "the log has each drop");
    // A client that asks again gets the decision.
    scene.start_notices_again();
    let unit = scene.unit(3).await;
    assert_eq!((unit["state"].as_str(), unit["status"].as_i64()), (Some("dropped"), Some(502)), "{unit}");
    for ride_id in 1..=3 {
        assert_eq!((scene.current(ride_id).await, scene.on_board(ride_id).await), (None, None));
    }
    assert!(scene.photos().iter().all(|len| *len == 0));
}

#[tokio::test]
async fn a_person_ends_a_rollback_that_cannot_succeed() {
    let port = free_port();
    let relay = Relay::start(port, Treatment::Lose, Treatment::Refuse(500)).await;
    let scene = Scene::start_with(port, &config(&relay.url, "")).await;
    scene.post(&manifest(7, &["Ada"])).send().await.unwrap();
    wait_until("the undo has failed", async || relay.seen("undo").len() >= 2).await;
    assert_eq!(scene.unit(1).await["state"], "rolling_back");

    for (args, complaint) in [
        (&["drop", "1"][..], "unit 1 is not dead"),
        (&["drop", "1", "--not-undone", "nowhere"], "unit 1 has no part in one of these destinations"),
        (&["drop", "2", "--not-undone", "notices"], "unit 2 is not being rolled back"),
    ] {
        let output = units(&scene.world, args).fail(1).await;
        assert!(output.contains(complaint), "{args:?}: {output}");
        assert_eq!(scene.unit(1).await["state"], "rolling_back", "{args:?}");
    }
    let output = units(&scene.world, &["drop", "1", "--not-undone", "notices"]).succeed().await;
    assert_eq!(output, "unit 1 is dropped, and these destinations keep its part: notices\n");
    let unit = scene.unit(1).await;
    assert_eq!((unit["state"].as_str(), scene.world.number(DROPS).await), (Some("dropped"), 1));
    let parts: Vec<(&str, &str)> = unit["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| (part["destination"].as_str().unwrap(), part["state"].as_str().unwrap()))
        .collect();
    assert_eq!(parts, [("board", "undone"), ("notices", "failed_5xx"), ("photos", "declined"), ("rows", "pending")]);
    assert_eq!(unit["parts"][1]["error"], "a person has stated that this part is not undone");
    wait_until("its file is gone", async || scene.spooled() == 0).await;
    let undo_count = relay.seen("undo").len();
    // Another unit is done meanwhile, so the container has looked for units that are due.
    relay.treat(Treatment::Pass, Treatment::Pass);
    let stored = scene.post(&manifest(8, &["Bo"])).send().await.unwrap();
    assert!(stored.status() == 200 || stored.status() == 503, "{}", stored.status());
    wait_until("the other is committed", async || scene.unit(2).await["state"] == "committed").await;
    assert!(relay.seen("undo").len() <= undo_count + 1, "it is not undone again");
}

#[tokio::test]
async fn a_wrong_word_is_refused_with_what_to_give() {
    let world = World::new().await;
    for (args, code, complaint) in [
        (
            &["list", "--state", "bad"][..],
            2,
            "bad --state \"bad\": give one of queued, fanned_out, rolling_back, fail_queued, dead",
        ),
        (&["show", "seventeen"], 2, "bad UOW \"seventeen\""),
        (&["show", "17"], 1, "there is no unit 17"),
        (&["retry", "17"], 1, "unit 17 is not dead"),
        (&["drop"], 2, "--all"),
        (&["drop", "17", "--all"], 2, "cannot be used with"),
        (&["drop", "--all", "--not-undone", "notices"], 2, "exclude each other"),
    ] {
        let output = units(&world, args).fail(code).await;
        assert!(output.contains(complaint), "{args:?}: {output}");
    }
}
