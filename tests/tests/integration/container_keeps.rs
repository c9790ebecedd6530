//! The container forgets units that are old, and finds again what it has kept: files without a unit, and units without a file.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{free_port, wait_until};

use crate::container_fixture::{Scene, config, manifest};
use crate::container_relay::{Relay, Treatment};

async fn start() -> (Scene, Relay) {
    let port = free_port();
    let relay = Relay::start(port, Treatment::Pass, Treatment::Pass).await;
    (Scene::start_with(port, &config(&relay.url, "")).await, relay)
}

async fn stop(scene: &mut Scene) {
    scene.container.signal(Signal::SIGTERM);
    assert!(scene.container.ended().await.success());
}

/// Stops and starts the container, which then looks for everything at once.
async fn restart(scene: &mut Scene) {
    stop(scene).await;
    scene.start_again(None).await;
}

async fn units(scene: &Scene, state: &str) -> i64 {
    scene.world.number(&format!("SELECT count(*) FROM units WHERE state = '{state}'")).await
}

async fn run(scene: &Scene, statement: &str) -> u64 {
    scene.world.client().execute(statement, &[]).await.unwrap()
}

/// The registers of units in Redis.
async fn registers(scene: &Scene) -> usize {
    let mut keys = redis::cmd("KEYS");
    keys.arg(format!("{}:unit:*", scene.world.stream_name()));
    keys.query_async::<Vec<String>>(&mut scene.world.redis().await).await.unwrap().len()
}

/// A unit that commits with its second attempt, one that is rejected, and one that is dead.
async fn settle_some(scene: &Scene, relay: &Relay) {
    relay.treat(Treatment::Lose, Treatment::Pass);
    let sent = scene.post_with_photo(&manifest(7, &["Ada"]), &[7; 100]).send().await.unwrap();
    assert_eq!(sent.status(), 503);
    relay.treat(Treatment::Pass, Treatment::Pass);
    wait_until("it is committed", async || units(scene, "committed").await == 1).await;
    relay.treat(Treatment::Refuse(422), Treatment::Pass);
    let sent = scene.post_with_photo(&manifest(8, &["Bo"]), &[8; 50]).send().await.unwrap();
    assert_eq!(sent.status(), 422);
    relay.treat(Treatment::Lose, Treatment::Pass);
    scene.post_with_photo(&manifest(9, &["Cy"]), &[9; 10]).send().await.unwrap();
    wait_until("it waits", async || units(scene, "fail_queued").await == 1).await;
    run(scene, "UPDATE units SET attempt = 8, due_at = now() WHERE state = 'fail_queued'").await;
    wait_until("it is dead", async || units(scene, "dead").await == 1).await;
}

const MAKE_OLD: &str = "UPDATE units SET settled_at = settled_at - INTERVAL '73 hours' WHERE settled_at IS NOT NULL";

#[tokio::test]
async fn an_old_unit_is_forgotten_by_its_destinations_and_by_postgres() {
    let (mut scene, relay) = start().await;
    settle_some(&scene, &relay).await;
    // The dead unit has a photo's tombstone for its attempts 1 and 8.
    let photos = async |scene: &Scene| {
        let mut photos = scene.photos();
        photos.sort_unstable();
        photos
    };
    assert_eq!((photos(&scene).await, registers(&scene).await), (vec![0, 0, 0, 0, 100], 3));
    restart(&mut scene).await;
    let gone = "SELECT count(*) FROM units WHERE file_gone_at IS NOT NULL";
    wait_until("the files are known to be gone", async || scene.world.number(gone).await == 2).await;
    restart(&mut scene).await;
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 3, "nothing is old enough");

    // A unit that is not settled stays, however old it is.
    run(&scene, "UPDATE units SET created_at = now() - INTERVAL '1 year'").await;
    run(&scene, "UPDATE units SET settled_at = now() - INTERVAL '73 hours' WHERE state = 'committed'").await;
    restart(&mut scene).await;
    wait_until("the unit goes", async || units(&scene, "committed").await == 0).await;
    assert_eq!((units(&scene, "rejected").await, units(&scene, "dead").await), (1, 1));
    assert_eq!((photos(&scene).await, registers(&scene).await), (vec![0, 0, 0, 100], 2), "its tombstone is gone");
    assert_eq!(scene.current(7).await, Some(manifest(7, &["Ada"])), "what it has stored stays");
    assert_eq!(scene.on_board(7).await, Some(1.0));
    for table in ["unit_parts", "unit_reports"] {
        let left = format!("SELECT count(*) FROM {table} WHERE uow NOT IN (SELECT uow FROM units)");
        assert_eq!(scene.world.number(&left).await, 0, "{table}");
    }
}

#[tokio::test]
async fn a_unit_stays_while_one_of_its_destinations_cannot_forget_it() {
    let (mut scene, relay) = start().await;
    settle_some(&scene, &relay).await;
    restart(&mut scene).await;
    let gone = "SELECT count(*) FROM units WHERE file_gone_at IS NOT NULL";
    wait_until("the files are known to be gone", async || scene.world.number(gone).await == 2).await;
    let (photos, away) = (scene.folder().join("data/photos"), scene.folder().join("away"));
    std::fs::rename(&photos, &away).unwrap();
    std::fs::create_dir(&photos).unwrap();
    run(&scene, MAKE_OLD).await;
    let later = "a destination forgets an old unit later";
    wait_until("it is tried", async || scene.container.output().contains(later)).await;
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 3);
    assert_eq!(std::fs::read_dir(&photos).unwrap().count(), 0, "nothing is written below the mount point");
    std::fs::remove_dir(&photos).unwrap();
    std::fs::rename(&away, &photos).unwrap();
    restart(&mut scene).await;
    wait_until("they go", async || scene.world.number("SELECT count(*) FROM units").await == 1).await;
    assert_eq!(units(&scene, "dead").await, 1);
}

/// Leaves a file in the spool whose request was never accepted: the container is killed before its row is there.
async fn leave_file(scene: &mut Scene, key: &str, document: &Value) {
    let before = scene.spooled();
    let mut other = scene.world.connect().await;
    let blocking = other.transaction().await.unwrap();
    blocking.batch_execute("LOCK TABLE units IN EXCLUSIVE MODE").await.unwrap();
    let request = scene.post(document).header("idempotency-key", key);
    let posted = tokio::spawn(async move { request.send().await.is_err() });
    let inserting = "query LIKE '%INSERT INTO units%'";
    wait_until("the unit is written", async || scene.world.waiting_count_where(inserting).await == 1).await;
    scene.container.signal(Signal::SIGKILL);
    scene.container.ended().await;
    assert!(posted.await.unwrap());
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND query LIKE '%INSERT INTO units%' AND pid <> pg_backend_pid()";
    scene.world.number(end).await;
    wait_until("it has ended", async || scene.world.waiting_count_where(inserting).await == 0).await;
    blocking.rollback().await.unwrap();
    assert_eq!(scene.spooled(), before + 1);
}

#[tokio::test]
async fn a_file_whose_key_belongs_to_another_unit_is_deleted() {
    let (mut scene, _relay) = start().await;
    leave_file(&mut scene, "again", &manifest(1, &["Ada"])).await;
    scene.start_again(None).await;
    leave_file(&mut scene, "other", &manifest(2, &["Bo"])).await;
    scene.start_again(None).await;
    // The client sends the same request again, and another one with the key of the second.
    for (key, document) in [("again", manifest(1, &["Ada"])), ("other", manifest(2, &["Cy"]))] {
        let sent = scene.post(&document).header("idempotency-key", key).send().await.unwrap();
        assert_eq!(sent.status(), 200);
    }
    wait_until("two files are left", async || scene.spooled() == 2).await;
    stop(&mut scene).await;
    scene.make_spool_old();
    scene.start_again(None).await;
    wait_until("they are deleted", async || scene.spooled() == 0).await;
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 2);
    assert_eq!(scene.current(2).await, Some(manifest(2, &["Cy"])));
}

fn spool_files(scene: &Scene) -> Vec<PathBuf> {
    std::fs::read_dir(scene.folder().join("spool/files")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_file_that_cannot_become_a_unit_is_told_once_and_kept() {
    let (mut scene, relay) = start().await;
    let names = ["3f0a3f0e-0000-4000-8000-000000000001", "3f0a3f0e-0000-4000-8000-000000000002"];
    std::fs::write(scene.folder().join("spool/files").join(names[0]), "no envelope").unwrap();
    leave_file(&mut scene, "key", &manifest(1, &["Ada"])).await;
    scene.make_spool_old();
    let renamed = config(&relay.url, "").replace("name = \"manifests\"", "name = \"others\"");
    scene.start_again(Some(renamed)).await;
    let told = |scene: &Scene, name: &str| {
        let output = scene.container.output();
        output.lines().filter(|line| line.contains("cannot become a unit") && line.contains(name)).count()
    };
    wait_until("it is told", async || told(&scene, names[0]) == 1).await;
    wait_until("the other is told", async || told(&scene, "its resource manifests is not declared") == 1).await;
    std::fs::write(scene.folder().join("spool/files").join(names[1]), "no envelope").unwrap();
    scene.make_spool_old();
    // The next sweep comes half a minute later.
    wait_until("the next sweep tells of the new file", async || told(&scene, names[1]) == 1).await;
    assert_eq!(told(&scene, "cannot become a unit"), 3, "{}", scene.container.output());
    assert_eq!(scene.spooled(), 3);
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 0);
}

#[tokio::test]
async fn a_unit_whose_file_is_damaged_or_gone_is_left_to_a_person_who_may_put_it_back() {
    let (mut scene, relay) = start().await;
    relay.treat(Treatment::Lose, Treatment::Pass);
    for ride_id in [1, 2] {
        let sent = scene.post_with_photo(&manifest(ride_id, &["Ada"]), &[7; 100]).send().await.unwrap();
        assert_eq!(sent.status(), 503);
    }
    stop(&mut scene).await;
    let files = spool_files(&scene);
    let whole: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    std::fs::write(&files[0], &whole[0][..50]).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    relay.treat(Treatment::Pass, Treatment::Pass);
    run(&scene, "UPDATE units SET attempt = 8, due_at = now()").await;
    scene.start_again(None).await;
    wait_until("both are dead", async || units(&scene, "dead").await == 2).await;
    let told = "SELECT count(*) FROM units WHERE status = 500 AND error LIKE '%spool%'";
    assert_eq!(scene.world.number(told).await, 2);
    files.iter().zip(&whole).for_each(|(path, whole)| std::fs::write(path, whole).unwrap());
    run(&scene, "UPDATE units SET state = 'fail_queued', attempt = attempt + 1, due_at = now(), lease = lease + 1")
        .await;
    wait_until("both are committed", async || units(&scene, "committed").await == 2).await;
}

#[tokio::test]
async fn a_rollback_needs_no_file() {
    let (mut scene, relay) = start().await;
    relay.treat(Treatment::Lose, Treatment::Refuse(500));
    let sent = scene.post(&manifest(7, &["Ada"])).send();
    let undone = async || relay.seen("undo").len() >= 2;
    let (_, ()) = tokio::join!(sent, wait_until("the undo fails", undone));
    stop(&mut scene).await;
    std::fs::remove_file(spool_files(&scene).remove(0)).unwrap();
    relay.treat(Treatment::Pass, Treatment::Pass);
    scene.start_again(None).await;
    wait_until("it is taken back", async || scene.told(1).await.first() == Some(&(1, "undone".to_owned()))).await;
    wait_until("it waits", async || units(&scene, "rolling_back").await == 0).await;
    assert_eq!(scene.on_board(7).await, None);
}
