//! The container is killed, and its destinations lose responses (AC-T5, AC-T6, AC-T7 and AC-T9).

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{free_port, wait_until};

use crate::container_fixture::{Scene, config, manifest};
use crate::container_relay::{Relay, Treatment};

/// A container that tells its receiver through a relay.
async fn start(store: Treatment, undo: Treatment) -> (Scene, Relay) {
    let port = free_port();
    let relay = Relay::start(port, store, undo).await;
    (Scene::start_with(port, &config(&relay.url, "")).await, relay)
}

/// Sends a manifest with a photo. The container may be killed before it responds.
fn post(scene: &Scene) -> tokio::task::JoinHandle<Option<u16>> {
    let request = scene.post_with_photo(&manifest(7, &["Ada"]), &[7; 100]);
    tokio::spawn(async move { request.send().await.ok().map(|response| response.status().as_u16()) })
}

async fn kill(scene: &mut Scene) {
    scene.container.signal(Signal::SIGKILL);
    scene.container.ended().await;
}

/// Lets the lease of the killed process run out.
async fn end_leases(scene: &Scene) {
    let changed = scene.world.client().execute("UPDATE units SET due_at = now() WHERE state = 'fanned_out'", &[]).await;
    assert_eq!(changed.unwrap(), 1, "the unit is leased");
}

async fn wait_for_state(scene: &Scene, state: &str) -> Value {
    wait_until(state, async || scene.unit(1).await["state"] == state).await;
    scene.unit(1).await
}

/// All destinations have the attempt, and nothing else is left.
async fn assert_whole(scene: &Scene, told: &[(i64, &str)], tombstones: usize) {
    assert_eq!(scene.current(7).await, Some(manifest(7, &["Ada"])));
    assert_eq!(scene.world.number("SELECT count(*) FROM manifests").await, 1);
    assert_eq!(scene.on_board(7).await, Some(1.0));
    let mut photos = scene.photos();
    photos.sort_unstable();
    let expected: Vec<u64> = std::iter::repeat_n(0, tombstones).chain([100]).collect();
    assert_eq!(photos, expected);
    assert_told(scene, told).await;
    wait_until("the file is gone", async || scene.spooled() == 0).await;
}

async fn assert_told(scene: &Scene, told: &[(i64, &str)]) {
    let told: Vec<_> = told.iter().map(|(attempt, state)| (*attempt, (*state).to_owned())).collect();
    assert_eq!(scene.told(1).await, told);
}

/// No destination has a part of the unit.
async fn assert_nothing_stored(scene: &Scene) {
    assert_eq!((scene.current(7).await, scene.on_board(7).await), (None, None));
    assert!(scene.photos().iter().all(|len| *len == 0), "tombstones alone");
}

#[tokio::test]
async fn ac_t5_a_rollback_that_is_sent_twice_changes_nothing() {
    let (scene, relay) = start(Treatment::Lose, Treatment::Lose).await;
    let posted = post(&scene);
    // No undo of the receiver is known to have succeeded, so all destinations are sent theirs again.
    wait_until("the undo is sent twice", async || relay.seen("undo").len() >= 2).await;
    assert_nothing_stored(&scene).await;
    assert_eq!(scene.photos(), [0]);
    assert_told(&scene, &[(1, "undone")]).await;

    relay.treat(Treatment::Pass, Treatment::Pass);
    wait_for_state(&scene, "committed").await;
    let told = [(1, "undone"), (2, "stored")];
    assert_whole(&scene, &told, 1).await;
    assert_eq!(scene.records(1).await, ["fail_queued", "commit"]);
    posted.await.unwrap();

    // An undo of attempt 1 that comes late leaves attempt 2 alone, and a store of attempt 1 is refused.
    let (undo, store) = (&relay.seen("undo")[0], &relay.seen("store")[0]);
    assert_eq!((undo.attempt, store.attempt), (1, 1));
    assert_eq!(relay.tell(undo).await.0, 200);
    assert_eq!(relay.tell(store).await.0, 409);
    assert_whole(&scene, &told, 1).await;
}

#[tokio::test]
async fn ac_t6_a_container_that_is_killed_after_some_stores_ends_the_unit_when_it_is_back() {
    let (mut scene, relay) = start(Treatment::Hang, Treatment::Pass).await;
    let posted = post(&scene);
    wait_until("the receiver is told", async || relay.seen("store").len() == 1).await;
    assert_eq!((scene.photos(), scene.on_board(7).await), (vec![100], Some(1.0)), "webhooks are told last");
    kill(&mut scene).await;
    assert_eq!(posted.await.unwrap(), None);
    assert_eq!(scene.world.number("SELECT count(*) FROM manifests").await, 0);
    assert_eq!(scene.spooled(), 1);

    relay.treat(Treatment::Pass, Treatment::Pass);
    end_leases(&scene).await;
    scene.start_again(None).await;
    let unit = wait_for_state(&scene, "committed").await;
    assert_eq!(unit["attempt"], 1, "the same attempt goes on");
    assert_whole(&scene, &[(1, "stored")], 0).await;
    assert_eq!(scene.records(1).await, ["commit"]);
}

#[tokio::test]
async fn ac_t6_the_stores_of_a_killed_container_are_taken_back_if_the_unit_then_fails() {
    let (mut scene, relay) = start(Treatment::Hang, Treatment::Pass).await;
    let posted = post(&scene);
    wait_until("the receiver is told", async || relay.seen("store").len() == 1).await;
    kill(&mut scene).await;
    posted.await.unwrap();

    // The refusal is clear, but the killed process has told the receiver.
    relay.treat(Treatment::Refuse(422), Treatment::Pass);
    end_leases(&scene).await;
    scene.start_again(None).await;
    let unit = wait_for_state(&scene, "rejected").await;
    assert_eq!(unit["status"], 422);
    assert_nothing_stored(&scene).await;
    assert_told(&scene, &[(1, "undone")]).await;
    assert_eq!(scene.records(1).await, ["rejected"]);
    wait_until("the file is gone", async || scene.spooled() == 0).await;
}

#[tokio::test]
async fn ac_t7_a_file_whose_request_was_killed_is_taken_up() {
    let (mut scene, relay) = start(Treatment::Pass, Treatment::Pass).await;
    let mut other = scene.world.connect().await;
    let blocking = other.transaction().await.unwrap();
    blocking.batch_execute("LOCK TABLE units IN EXCLUSIVE MODE").await.unwrap();
    let posted = post(&scene);
    let inserting = "query LIKE '%INSERT INTO units%'";
    wait_until("the unit is written", async || scene.world.waiting_count_where(inserting).await == 1).await;
    assert_eq!(scene.spooled(), 1, "the file comes first");
    kill(&mut scene).await;
    assert_eq!(posted.await.unwrap(), None);
    // Postgres does not see that the client is gone while the statement waits, and would run it.
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE '%INSERT INTO units%' AND pid <> pg_backend_pid()";
    assert_eq!(scene.world.number(ended).await, 1);
    wait_until("it has ended", async || scene.world.waiting_count_where(inserting).await == 0).await;
    blocking.rollback().await.unwrap();
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 0);

    scene.make_spool_old();
    scene.start_again(None).await;
    wait_until("it is taken up", async || scene.world.number("SELECT count(*) FROM units").await == 1).await;
    let uow = scene.world.number("SELECT uow FROM units").await;
    wait_until("it is committed", async || scene.unit(uow).await["state"] == "committed").await;
    assert_eq!((scene.photos(), scene.on_board(7).await), (vec![100], Some(1.0)));
    assert_eq!(scene.current(7).await, Some(manifest(7, &["Ada"])));
    assert_eq!(scene.told(uow).await, [(1, "stored".to_owned())]);
    assert_eq!(relay.seen("store").len(), 1);
    assert_eq!(scene.records(uow).await, ["commit"]);
    wait_until("the file is gone", async || scene.spooled() == 0).await;
}

#[tokio::test]
async fn ac_t9_a_rollback_that_fails_is_tried_until_it_succeeds() {
    let (scene, relay) = start(Treatment::Lose, Treatment::Refuse(500)).await;
    let posted = post(&scene);
    wait_until("the undo has failed thrice", async || relay.seen("undo").len() >= 3).await;
    let unit = scene.unit(1).await;
    assert_eq!((unit["state"].as_str(), unit["attempt"].as_i64()), (Some("rolling_back"), Some(1)), "{unit}");
    assert!(scene.records(1).await.is_empty(), "it is not reported as taken back");
    assert_told(&scene, &[(1, "stored")]).await;
    assert_nothing_stored_but_the_notice(&scene).await;
    assert_eq!(posted.await.unwrap(), Some(202), "there is no verdict to respond with");

    relay.treat(Treatment::Refuse(422), Treatment::Pass);
    let unit = wait_for_state(&scene, "rejected").await;
    assert_eq!(unit["report"].as_object().unwrap().len(), 2, "each failed attempt is in the report: {unit}");
    assert_nothing_stored(&scene).await;
    assert_told(&scene, &[(1, "undone")]).await;
    assert_eq!(scene.records(1).await, ["fail_queued", "rejected"]);
    wait_until("the file is gone", async || scene.spooled() == 0).await;
}

/// The destinations that respond have taken their parts back.
async fn assert_nothing_stored_but_the_notice(scene: &Scene) {
    assert_nothing_stored(scene).await;
    assert_eq!((scene.photos(), scene.spooled()), (vec![0], 1), "the file is kept for the next attempt");
}
