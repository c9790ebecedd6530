//! Where a container keeps requests and photos: a full disk, a disk that is not mounted, a second machine, a bucket, and a Postgres
//! that was put back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use reqwest::RequestBuilder;
use serde_json::Value;
use tests::{PrivatePostgres, Process, World, free_port, python_program, wait_until};
use tokio::process::Command;

use crate::container_fixture::{Scene, config, manifest, spawn};
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

async fn send(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn units(scene: &Scene, state: &str) -> i64 {
    scene.world.number(&format!("SELECT count(*) FROM units WHERE state = '{state}'")).await
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The folder is unmounted: an empty one is in its place. Returns where its content is now.
fn unmount(folder: &Path) -> PathBuf {
    let away = folder.with_extension("away");
    fs::rename(folder, &away).unwrap();
    fs::create_dir(folder).unwrap();
    away
}

fn mount(folder: &Path) {
    fs::remove_dir(folder).expect("nothing was written below the mount point");
    fs::rename(folder.with_extension("away"), folder).unwrap();
}

/// The container with mounts of its own, which `script` makes. They end with the process.
fn with_mounts(container: &Command, script: &str) -> Command {
    let container = container.as_std();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-ec"]).arg(format!("{script}; exec \"$0\" \"$@\""));
    command.arg(container.get_program()).args(container.get_args());
    command.envs(container.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// A folder as the process sees it.
fn seen_by(process: &Process, folder: &Path) -> PathBuf {
    Path::new("/proc").join(process.pid().to_string()).join("root").join(folder.strip_prefix("/").unwrap())
}

#[tokio::test]
async fn a_full_disk_refuses_requests_and_begins_nothing() {
    let (mut scene, _relay) = start().await;
    stop(&mut scene).await;
    fs::remove_dir_all(scene.folder().join("spool")).unwrap();
    fs::create_dir(scene.folder().join("spool")).unwrap();
    let script = "mount -t tmpfs -o size=1m spool \"$CONTAINER_SPOOL\"";
    scene.start_command(with_mounts(&scene.command(), script)).await;
    let spool = seen_by(&scene.container, &scene.folder().join("spool"));
    let photo = vec![7; 300_000];
    assert_eq!(send(scene.post_with_photo(&manifest(1, &["Ada"]), &photo)).await.0, 200);

    // Too little is left for a photo.
    fs::write(spool.join("ballast"), vec![0; 900_000]).unwrap();
    let (status, refusal) = send(scene.post_with_photo(&manifest(2, &["Bo"]), &photo)).await;
    assert_eq!((status, refusal["code"].as_str()), (503, Some("spool_full")), "{refusal}");
    assert_eq!(send(scene.post(&manifest(3, &["Cy"]))).await.0, 200, "a document fits");

    // Nothing is left.
    let mut second = fs::File::create(spool.join("ballast2")).unwrap();
    while std::io::Write::write(&mut second, &[0; 4096]).is_ok() {}
    let (status, refusal) = send(scene.post(&manifest(4, &["Di"]))).await;
    assert_eq!((status, refusal["code"].as_str()), (503, Some("spool_full")), "{refusal}");
    assert_eq!(scene.world.number("SELECT count(*) FROM units").await, 2, "nothing was begun");
    wait_until("no file is left", async || names(&spool.join("files")).is_empty()).await;

    fs::remove_file(spool.join("ballast")).unwrap();
    assert_eq!(send(scene.post_with_photo(&manifest(2, &["Bo"]), &photo)).await.0, 200);
    assert_eq!(scene.photos().len(), 2);
}

#[tokio::test]
async fn a_spool_that_is_not_mounted_keeps_the_process_down_and_takes_nothing() {
    let (mut scene, relay) = start().await;
    let spool = scene.folder().join("spool");
    relay.treat(Treatment::Lose, Treatment::Pass);
    let (status, unit) = send(scene.post(&manifest(1, &["Ada"]))).await;
    assert_eq!(status, 503, "{unit}");
    unmount(&spool);
    let (status, refusal) = send(scene.post(&manifest(2, &["Bo"]))).await;
    assert_eq!((status, refusal["code"].as_str()), (503, Some("unavailable")), "{refusal}");
    assert_eq!(names(&spool), [""; 0], "nothing is written below the mount point");
    mount(&spool);
    relay.treat(Treatment::Pass, Treatment::Pass);
    assert_eq!(send(scene.post(&manifest(2, &["Bo"]))).await.0, 200, "it works again");

    relay.treat(Treatment::Lose, Treatment::Pass);
    send(scene.post(&manifest(3, &["Cy"]))).await;
    stop(&mut scene).await;
    let away = unmount(&spool);
    let output = Process::spawn("container", scene.command()).fail(2).await;
    assert!(output.contains("mount its folder, or put its files back"), "{output}");
    fs::remove_dir_all(&spool).unwrap();
    fs::rename(away, &spool).unwrap();
    relay.treat(Treatment::Pass, Treatment::Pass);
    scene.start_again(None).await;
    wait_until("all are committed", async || units(&scene, "committed").await == 3).await;
}

#[tokio::test]
async fn only_a_wrong_place_keeps_the_process_down() {
    let (mut scene, _relay) = start().await;
    stop(&mut scene).await;
    let wrong = scene.folder().join("wrong");
    fs::create_dir(&wrong).unwrap();
    fs::write(wrong.join("letter.txt"), "").unwrap();
    let mut command = scene.command();
    command.env("CONTAINER_SPOOL", &wrong);
    let output = Process::spawn("container", command).fail(2).await;
    assert!(output.contains("it contains letter.txt"), "{output}");

    // A bucket and a Postgres that are away: the process tries again.
    let mut command = scene.command();
    with_bucket(&mut command, &format!("127.0.0.1:{}", free_port()));
    let mut container = Process::spawn("container", command);
    container.wait_for("step failed, trying again error=\"read the id of the spool").await;
    container.signal(Signal::SIGTERM);
    assert!(container.ended().await.success(), "{}", container.output());
    let mut command = scene.command();
    command.env("DATABASE_URL", format!("postgres://app@127.0.0.1:{}/away?connect_timeout=2", free_port()));
    let mut container = Process::spawn("container", command);
    container.wait_for("step failed, trying again").await;
    container.signal(Signal::SIGTERM);
    assert!(container.ended().await.success(), "{}", container.output());
}

#[tokio::test]
async fn a_folder_of_photos_that_is_not_mounted_gets_no_photo() {
    let (mut scene, _relay) = start().await;
    let photos = scene.folder().join("data/photos");
    assert_eq!(send(scene.post_with_photo(&manifest(1, &["Ada"]), &[7; 100])).await.0, 200);
    unmount(&photos);
    let (status, unit) = send(scene.post_with_photo(&manifest(2, &["Bo"]), &[7; 200])).await;
    // The undo waits for the disk, too.
    assert_eq!((status, unit["state"].as_str()), (202, Some("rolling_back")), "{unit}");
    assert_eq!(
        unit["parts"][2]["error"].as_str().map(|why| why.contains("mount its disk again")),
        Some(true),
        "{unit}"
    );
    assert_eq!(names(&photos), [""; 0], "nothing is written below the mount point");
    mount(&photos);
    wait_until("it is committed", async || units(&scene, "committed").await == 2).await;
    assert!(scene.photos().contains(&200));

    stop(&mut scene).await;
    unmount(&photos);
    let output = Process::spawn("container", scene.command()).fail(2).await;
    let why = format!("the folder {} is not the one with the parts of units", photos.display());
    assert!(output.contains(&why) && output.contains("it has none. Mount its disk."), "{output}");
    fs::write(photos.join(".folder-id"), "00000000-0000-4000-8000-000000000000").unwrap();
    let output = Process::spawn("container", scene.command()).fail(2).await;
    assert!(output.contains("it has 00000000-0000-4000-8000-000000000000"), "{output}");
    // A person says that this folder takes the place of the other.
    let (_, id) = output.split_once("its id was ").unwrap();
    fs::write(photos.join(".folder-id"), id.split(',').next().unwrap()).unwrap();
    scene.start_again(None).await;
    assert_eq!(send(scene.post_with_photo(&manifest(3, &["Cy"]), &[7; 300])).await.0, 200);
    assert_eq!(scene.photos(), [300]);
}

#[tokio::test]
async fn two_machines_with_spools_of_their_own_share_a_database() {
    let (mut scene, relay) = start().await;
    // The second machine has other folders at the same paths.
    let other = scene.folder().join("other");
    ["spool", "data"].iter().for_each(|name| fs::create_dir_all(other.join(name)).unwrap());
    let binds = format!(
        "mount --bind {other}/data {folder}/data; mount --bind {other}/spool {folder}/spool",
        other = other.display(),
        folder = scene.folder().display()
    );
    let mut command = with_mounts(&scene.command(), &binds);
    command.env("CONTAINER_SPOOL", scene.folder().join("spool"));
    let (second, base) = spawn(command).await;
    let manifests = format!("{base}/manifests");
    let other_spool = || names(&other.join("spool/files")).len();

    relay.treat(Treatment::Lose, Treatment::Pass);
    let (status, first) = send(scene.post_with_photo(&manifest(1, &["Ada"]), &[7; 100])).await;
    assert_eq!((status, scene.spooled(), other_spool()), (503, 1, 0), "{first}");
    // Each has failed some times, and together they open the breaker.
    let mut status = 503;
    while status == 503 && units(&scene, "queued").await == 0 {
        (status, _) = send(scene.client.post(&manifests).json(&manifest(2, &["Bo"]))).await;
    }
    let (waiting, unit) = send(scene.post(&manifest(3, &["Cy"]))).await;
    assert_eq!(waiting, 503, "{unit}");
    let open = "SELECT count(*) FROM destinations WHERE open_until IS NOT NULL";
    assert_eq!(scene.world.number(open).await, 1);

    stop(&mut scene).await;
    let theirs = "SELECT count(*) FROM units WHERE spool_id = (SELECT spool_id FROM units WHERE subject = '1')";
    let ours = scene.world.number(theirs).await;
    relay.treat(Treatment::Pass, Treatment::Pass);
    let all = scene.world.number("SELECT count(*) FROM units").await;
    wait_until("the second has driven its own", async || units(&scene, "committed").await == all - ours).await;
    wait_until("its files are gone", async || other_spool() == 0).await;
    let (status, shown) = send(scene.client.get(format!("{base}/units/{}", first["uow"]))).await;
    assert_eq!((status, &shown["uow"], shown["state"].as_str()), (200, &first["uow"], Some("fail_queued")), "{shown}");
    // It is due for long, and only the first may drive it.
    let due = "SELECT count(*) FROM units WHERE state = 'fail_queued' AND due_at < now() - INTERVAL '1 second'";
    wait_until("it is due", async || scene.world.number(due).await >= 1).await;
    scene.start_again(None).await;
    wait_until("all are committed", async || units(&scene, "committed").await == all).await;
    assert!(scene.photos().contains(&100));
    assert_eq!(names(&other.join("data/photos")).iter().filter(|name| !name.starts_with('.')).count(), 0);
    second.stop().await;
}

/// A server of S3, and a bucket there.
async fn start_s3() -> (Process, String) {
    let mut command = Command::new(python_program("moto_server"));
    command.args(["-H", "127.0.0.1", "-p", "0"]).stdin(Stdio::null());
    let mut server = Process::spawn("moto_server", command);
    server.wait_for("Running on http://").await;
    let output = server.output();
    let (_, rest) = output.split_once("Running on http://").unwrap();
    let address = rest.split_whitespace().next().unwrap().to_owned();
    let made = reqwest::Client::new().put(format!("http://{address}/bucket")).send().await.unwrap();
    assert!(made.status().is_success(), "{made:?}");
    (server, address)
}

/// The spool is in this bucket.
fn with_bucket(command: &mut Command, address: &str) {
    command.env("CONTAINER_SPOOL", "s3://bucket/spool");
    command.env("AWS_ENDPOINT_URL", format!("http://{address}")).env("AWS_ALLOW_HTTP", "true");
    command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
}

/// The number of files in the bucket.
async fn in_bucket(scene: &Scene, address: &str) -> usize {
    let listed = scene.client.get(format!("http://{address}/bucket?list-type=2&prefix=spool/files/")).send().await;
    listed.unwrap().text().await.unwrap().matches("<Key>").count()
}

#[tokio::test]
async fn a_bucket_is_the_spool() {
    let (mut scene, relay) = start().await;
    let (_s3, address) = start_s3().await;
    stop(&mut scene).await;
    let mut command = scene.command();
    with_bucket(&mut command, &address);
    scene.start_command(command).await;
    // One that fits into a piece, and one of several.
    for (ride_id, len) in [(1, 1000), (2, 6_000_000)] {
        let (status, unit) = send(scene.post_with_photo(&manifest(ride_id, &["Ada"]), &vec![7; len])).await;
        assert_eq!(status, 200, "{unit}");
        assert!(scene.photos().contains(&(len as u64)));
    }
    wait_until("the bucket is empty", async || in_bucket(&scene, &address).await == 0).await;

    relay.treat(Treatment::Hang, Treatment::Pass);
    let request = scene.post_with_photo(&manifest(3, &["Bo"]), &vec![7; 6_000_001]);
    let posted = tokio::spawn(async move { request.send().await.is_err() });
    wait_until("the receiver is told", async || relay.seen("store").len() == 3).await;
    scene.container.signal(Signal::SIGKILL);
    scene.container.ended().await;
    assert!(posted.await.unwrap());
    assert_eq!(in_bucket(&scene, &address).await, 1);
    relay.treat(Treatment::Pass, Treatment::Pass);
    let ended = "UPDATE units SET due_at = now() WHERE state = 'fanned_out'";
    assert_eq!(scene.world.client().execute(ended, &[]).await.unwrap(), 1);
    // Another machine with the same bucket may take the unit.
    let mut command = scene.command();
    with_bucket(&mut command, &address);
    scene.start_command(command).await;
    wait_until("it is committed", async || units(&scene, "committed").await == 3).await;
    wait_until("the bucket is empty", async || in_bucket(&scene, &address).await == 0).await;
    assert_eq!(scene.current(3).await, Some(manifest(3, &["Bo"])));
}

async fn reconnected(world: &World) -> World {
    World::at(world.database_url(), world.redis_url(), world.stream_name()).await
}

/// The lost time has a unit that has committed, one that waits, and the verdict on one that was accepted before.
#[tokio::test]
async fn a_postgres_that_is_put_back_gets_its_units_from_the_spool_and_mixes_none_up() {
    let mut postgres = PrivatePostgres::start().await;
    let port = free_port();
    let relay = Relay::start(port, Treatment::Pass, Treatment::Pass).await;
    let redis_url = std::env::var("REDIS_URL").unwrap();
    let mut world = World::on(&postgres.url(), &redis_url).await;
    world.forget_database();
    let mut scene = Scene::start_on(world, port, &config(&relay.url, "")).await;
    assert_eq!(send(scene.post_with_photo(&manifest(1, &["Ada"]), &[7; 101])).await.0, 200);
    relay.treat(Treatment::Lose, Treatment::Pass);
    assert_eq!(send(scene.post_with_photo(&manifest(2, &["Bo"]), &[7; 102])).await.0, 503);
    stop(&mut scene).await;
    let backup = postgres.stop_and_copy().await;

    postgres.start_again().await;
    scene.world = reconnected(&scene.world).await;
    relay.treat(Treatment::Pass, Treatment::Pass);
    scene.start_again(None).await;
    wait_until("both are committed", async || units(&scene, "committed").await == 2).await;
    assert_eq!(send(scene.post_with_photo(&manifest(3, &["Cy"]), &[7; 103])).await.0, 200);
    relay.treat(Treatment::Lose, Treatment::Pass);
    let waiting = scene.post_with_photo(&manifest(4, &["Di"]), &[7; 104]).header("idempotency-key", "waits");
    assert_eq!(send(waiting).await.0, 503);
    stop(&mut scene).await;
    assert_eq!(scene.spooled(), 1);

    postgres.put_back(&backup).await;
    postgres.start_again().await;
    scene.world = reconnected(&scene.world).await;
    relay.treat(Treatment::Pass, Treatment::Pass);
    scene.make_spool_old();
    scene.start_again(None).await;
    // Its number was that of the committed unit about ride 3. Its key is new.
    let taken = "SELECT count(*) FROM units WHERE subject = '4' AND state = 'committed'";
    wait_until("the file is taken up", async || scene.world.number(taken).await == 1).await;
    assert_eq!(scene.world.number("SELECT uow FROM units WHERE subject = '4'").await, 3);
    assert!(scene.photos().contains(&103) && scene.photos().contains(&104), "{:?}", scene.photos());
    assert_eq!((scene.current(4).await, scene.current(3).await), (Some(manifest(4, &["Di"])), None));
    assert_eq!(scene.current(1).await, Some(manifest(1, &["Ada"])));
    let again = scene.post_with_photo(&manifest(4, &["Di"]), &[7; 104]).header("idempotency-key", "waits");
    assert_eq!(send(again).await.0, 200, "the key finds its unit");

    // The file of the unit that was accepted before is gone: a person sees it.
    let due = "UPDATE units SET attempt = 8, due_at = now() WHERE subject = '2' AND state = 'fail_queued'";
    wait_until("its last attempt is due", async || scene.world.client().execute(due, &[]).await.unwrap() == 1).await;
    wait_until("it is left to a person", async || units(&scene, "dead").await == 1).await;
    // What the board shows of the lost time goes with its keys.
    let mut redis = scene.world.redis().await;
    let mut keys = redis::cmd("KEYS");
    let keys: Vec<String> = keys.arg(format!("{}:*", scene.world.stream_name())).query_async(&mut redis).await.unwrap();
    redis::cmd("DEL").arg(keys).query_async::<()>(&mut redis).await.unwrap();
    wait_until("the board is built", async || scene.on_board(4).await == Some(1.0)).await;
    assert_eq!((scene.on_board(1).await, scene.on_board(3).await), (Some(1.0), None));
}
