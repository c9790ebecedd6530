//! Redis forgets, and the board is built again: at rest it shows the committed units.

use std::collections::BTreeMap;

use tests::{PrivateRedis, Process, World, free_port, wait_until};

use crate::container_fixture::{Scene, config, manifest};
use crate::container_relay::{Relay, Treatment};

/// A container that tells its receiver through a relay, and whose Redis may be wiped. Redis keeps only what a test saves.
async fn start() -> (PrivateRedis, Scene, Relay) {
    let redis = PrivateRedis::start(&["--appendonly", "no"]).await;
    let port = free_port();
    let relay = Relay::start(port, Treatment::Pass, Treatment::Pass).await;
    let scene = Scene::start_on(World::with_redis(&redis.url()).await, port, &config(&relay.url, "")).await;
    (redis, scene, relay)
}

async fn redis<T: redis::FromRedisValue>(scene: &Scene, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query_async(&mut scene.world.redis().await).await.unwrap()
}

async fn board(scene: &Scene) -> BTreeMap<String, i64> {
    let key = format!("{}:board", scene.world.stream_name());
    let pairs: Vec<(String, i64)> = redis(scene, &["ZRANGE", &key, "0", "-1", "WITHSCORES"]).await;
    pairs.into_iter().collect()
}

/// The newest committed document of each ride, as Postgres has it.
async fn committed(scene: &Scene) -> BTreeMap<String, i64> {
    let newest = "SELECT DISTINCT ON (subject) subject, jsonb_array_length(data->'passengers')::bigint FROM manifests
                  ORDER BY subject, uow DESC";
    let rows = scene.world.client().query(newest, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn wait_for_board(scene: &Scene) {
    let committed = committed(scene).await;
    assert!(!committed.is_empty());
    wait_until("the board shows the committed units", async || board(scene).await == committed).await;
}

async fn wait_until_built(scene: &Scene) {
    let info: String = redis(scene, &["INFO", "server"]).await;
    let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().to_owned();
    let key = format!("{}:server", scene.world.stream_name());
    wait_until("the board is marked", async || {
        redis::<Option<String>>(scene, &["GET", &key]).await.as_ref() == Some(&run_id)
    })
    .await;
}

async fn post(scene: &Scene, ride_id: i64, passengers: &[&str], status: u16) {
    let response = scene.post(&manifest(ride_id, passengers)).send().await.unwrap();
    assert_eq!(response.status(), status, "{}", response.text().await.unwrap());
}

/// Two units about ride 1, one about ride 2, and one that is rejected.
async fn post_some(scene: &Scene, relay: &Relay) {
    post(scene, 1, &["Ada"], 200).await;
    post(scene, 1, &["Ada", "Bo"], 200).await;
    post(scene, 2, &["Cy", "Di", "Ed"], 200).await;
    relay.treat(Treatment::Refuse(422), Treatment::Pass);
    post(scene, 3, &["Fay"], 422).await;
    relay.treat(Treatment::Pass, Treatment::Pass);
}

/// The register of the rejected unit, which refuses its late stores.
async fn tombstone(scene: &Scene) -> Vec<(String, String)> {
    let query = "SELECT unit_key::text FROM units WHERE state = 'rejected'";
    let key: String = scene.world.client().query_one(query, &[]).await.unwrap().get(0);
    redis(scene, &["HGETALL", &format!("{}:unit:{key}", scene.world.stream_name())]).await
}

#[tokio::test]
async fn a_board_that_is_flushed_is_built_again_by_any_number_of_containers() {
    let (_redis, scene, relay) = start().await;
    let mut second = Process::spawn("second", scene.command());
    second.wait_for("container started").await;
    post_some(&scene, &relay).await;
    let undone = [("1".to_owned(), "undone".to_owned())];
    assert_eq!(tombstone(&scene).await, undone);
    wait_until_built(&scene).await;
    for _ in 0..2 {
        redis::<()>(&scene, &["FLUSHALL"]).await;
        wait_until_built(&scene).await;
        wait_for_board(&scene).await;
        wait_until("late stores are refused again", async || tombstone(&scene).await == undone).await;
    }
    // The row of a unit that is old goes, and its document stays.
    let old =
        "UPDATE units SET settled_at = now() - INTERVAL '1 year', file_gone_at = now() WHERE settled_at IS NOT NULL";
    scene.world.client().batch_execute(&format!("{old}; DELETE FROM units")).await.unwrap();
    redis::<()>(&scene, &["FLUSHALL"]).await;
    wait_for_board(&scene).await;
    second.stop().await;
}

#[tokio::test]
async fn a_board_in_a_redis_that_is_restarted_empty_is_built_again() {
    let (mut redis, scene, relay) = start().await;
    post_some(&scene, &relay).await;
    wait_until_built(&scene).await;
    redis.kill().await;
    redis.start_again().await;
    wait_for_board(&scene).await;
    wait_until_built(&scene).await;
    // It is built when the container starts, too.
    let mut scene = scene;
    scene.container.signal(nix::sys::signal::Signal::SIGTERM);
    scene.container.ended().await;
    redis.kill().await;
    redis.start_again().await;
    assert!(board(&scene).await.is_empty());
    scene.start_again(None).await;
    wait_for_board(&scene).await;
}

#[tokio::test]
async fn a_board_in_a_redis_with_an_old_snapshot_loses_what_was_undone_and_gains_what_was_stored() {
    let (mut redis, scene, relay) = start().await;
    post(&scene, 8, &["Ada"], 200).await;
    relay.treat(Treatment::Hang, Treatment::Pass);
    let request = scene.post(&manifest(7, &["Bo"]));
    let posted = tokio::spawn(async move { request.send().await.unwrap().status().as_u16() });
    wait_until("it is stored", async || scene.on_board(7).await == Some(1.0)).await;
    self::redis::<()>(&scene, &["SAVE"]).await;
    relay.treat(Treatment::Refuse(422), Treatment::Pass);
    let rejected = "SELECT count(*) FROM units WHERE state = 'rejected'";
    wait_until("it is taken back", async || scene.world.number(rejected).await == 1).await;
    posted.await.unwrap();
    relay.treat(Treatment::Pass, Treatment::Pass);
    post(&scene, 8, &["Ada", "Bo"], 200).await;
    post(&scene, 9, &["Cy"], 200).await;
    redis.kill().await;
    redis.start_again().await;
    wait_for_board(&scene).await;
    assert_eq!(scene.on_board(7).await, None);
    wait_until_built(&scene).await;
}

#[tokio::test]
async fn an_attempt_in_flight_whose_store_is_forgotten_is_on_the_board_after_its_verdict() {
    let (_redis, mut scene, relay) = start().await;
    post_some(&scene, &relay).await;
    wait_until_built(&scene).await;
    let mut other = scene.world.connect().await;
    let blocking = other.transaction().await.unwrap();
    // The verdict waits, and the documents can be read.
    blocking.batch_execute("LOCK TABLE manifests IN EXCLUSIVE MODE").await.unwrap();
    let request = scene.post(&manifest(7, &["Ada"]));
    let posted = tokio::spawn(async move { request.send().await.unwrap().status().as_u16() });
    let waits = "query LIKE '%container::commit%'";
    wait_until("the verdict waits", async || scene.world.waiting_count_where(waits).await == 1).await;
    assert_eq!(scene.on_board(7).await, Some(1.0));
    redis::<()>(&scene, &["FLUSHALL"]).await;
    wait_for_board(&scene).await;
    assert_eq!(scene.on_board(7).await, None, "no table has its document");
    blocking.rollback().await.unwrap();
    let committed = "SELECT count(*) FROM units WHERE subject = '7' AND state = 'committed'";
    wait_until("it is committed", async || scene.world.number(committed).await == 1).await;
    wait_for_board(&scene).await;
    wait_until_built(&scene).await;
    posted.await.unwrap();
    assert!(scene.container.is_running());
}
