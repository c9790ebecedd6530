//! The container is killed at random times under load, and so are its destinations. No unit is half stored, and no client is
//! told anything that does not stay true.
//!
//! `CONTAINER_KILL_COUNT=500 bin/test container_kills` does it for longer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tests::{PrivateRedis, World, free_port};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::container_fixture::{Scene, base_of, config};
use crate::container_load::{Answered, Request, refuse_some_rows};

/// The kills of the suite. A life takes between one second and two.
const KILL_COUNT: u64 = 40;

const CLIENT_COUNT: u64 = 6;

/// Every third life ends at one of these points, if a unit comes there before the random kill.
const POINTS: [&str; 12] = [
    "body-received",
    "file-synced",
    "accepted",
    "taken",
    "first-stored",
    "all-stored",
    "told",
    "committed",
    "rolling-back",
    "first-undone",
    "all-undone",
    "rolled-back",
];

/// What the clients know of the container.
struct Shared {
    base: Mutex<String>,
    is_over: AtomicBool,
}

impl Shared {
    fn base(&self) -> String {
        self.base.lock().unwrap().clone()
    }
}

async fn run_client(shared: Arc<Shared>, number: u64, mut rng: StdRng) -> Vec<Answered> {
    let client = reqwest::Client::new();
    let mut answered = Vec::new();
    while !shared.is_over.load(Ordering::Relaxed) {
        let request = Request::draw(format!("client-{number}-{}", answered.len()), &mut rng);
        answered.push(request.send_until_final(&client, || shared.base(), &mut rng).await);
    }
    answered
}

impl Scene {
    /// Starts the container again. It may die at once if the flags say so.
    async fn start_mortal(&mut self, flags: &[&str]) {
        self.container = self.spawn(flags);
        while self.container.is_running() && !self.container.output().contains("container started") {
            sleep(Duration::from_millis(5)).await;
        }
        if self.container.output().contains("container started") {
            self.base = base_of(&mut self.container).await;
        }
    }

    /// Starts the container again, for a life without an end.
    async fn start_unharmed(&mut self) {
        self.kill_container_if_it_runs().await;
        self.end_leases().await;
        self.make_spool_old();
        self.start_again(None).await;
    }

    /// Kills the container, and sometimes a destination, and starts them again.
    async fn kill_something(&mut self, redis: &mut PrivateRedis, rng: &mut StdRng) {
        self.kill_container_if_it_runs().await;
        match rng.random_range(0..12) {
            0 => {
                self.notices.signal(Signal::SIGKILL);
                self.notices.ended().await;
                self.start_notices_again();
            }
            1 => {
                redis.kill().await;
                redis.start_again().await;
            }
            _ => {}
        }
        // The time passes that leases and files wait for.
        self.end_leases().await;
        if rng.random_bool(0.3) {
            self.make_spool_old();
        }
        let point = POINTS[rng.random_range(0..POINTS.len())];
        let flags: &[&str] = if rng.random_bool(0.33) { &["--die-at", point] } else { &[] };
        self.start_mortal(flags).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_killed_again_and_again_stores_each_unit_everywhere_or_nowhere() {
    let number = |name, default: u64| std::env::var(name).map_or(default, |text: String| text.parse().unwrap());
    let kill_count = number("CONTAINER_KILL_COUNT", KILL_COUNT);
    let seed = number("CONTAINER_KILL_SEED", rand::random());
    println!("CONTAINER_KILL_SEED={seed} draws the same kills again");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut redis = PrivateRedis::start(&[]).await;
    let port = free_port();
    let webhook = format!("http://127.0.0.1:{port}/notices");
    let world = World::with_redis(&redis.url()).await;
    refuse_some_rows(&world).await;
    let mut scene = Scene::start_on(world, port, &config(&webhook, "")).await;
    let shared = Arc::new(Shared { base: Mutex::new(scene.base.clone()), is_over: AtomicBool::new(false) });
    let mut clients: JoinSet<_> = (0..CLIENT_COUNT)
        .map(|client| run_client(Arc::clone(&shared), client, StdRng::seed_from_u64(rng.random())))
        .collect();
    for kill in 0..kill_count {
        sleep(Duration::from_millis(rng.random_range(0..2000))).await;
        scene.kill_something(&mut redis, &mut rng).await;
        *shared.base.lock().unwrap() = scene.base.clone();
        if kill % 50 == 49 {
            println!("{} kills", kill + 1);
        }
        if let Some(ended) = clients.try_join_next() {
            panic!("a client has ended: {:?}", ended.err());
        }
    }
    scene.start_unharmed().await;
    *shared.base.lock().unwrap() = scene.base.clone();
    shared.is_over.store(true, Ordering::Relaxed);
    let mut answered = Vec::new();
    while let Some(client) = clients.join_next().await {
        answered.extend(client.unwrap());
        scene.settle().await;
    }
    // A client that lost patience has left a file, which is taken up when it is old.
    scene.start_unharmed().await;
    scene.settle().await;
    scene.assert_verdicts().await;
    for answered in &answered {
        answered.assert_kept(&scene.client, &scene.base).await;
    }
    let unit_count = scene.world.number("SELECT count(*) FROM units").await;
    let with_unit_count = answered.iter().filter(|answered| answered.uow.is_some()).count();
    assert_eq!(unit_count, with_unit_count as i64, "each key has one unit");
    let kept_count = answered.iter().filter(|answered| answered.status == 200).count();
    println!("{kill_count} kills, {} requests, {unit_count} units, {kept_count} committed", answered.len());
    assert!(kept_count > 0 && kept_count < answered.len(), "there was load of both kinds");
}
