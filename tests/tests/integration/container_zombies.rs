//! A container is stopped while it stores or undoes. Its lease runs out, a second container ends the unit, and then the first one
//! goes on: it changes nothing any more (C2, C4). For each kind of destination.

use nix::sys::signal::Signal;
use tests::{PrivateRedis, Process, World, free_port, wait_until};
use tokio::task::JoinHandle;

use crate::container_fixture::{Scene, base_of, config, manifest};
use crate::container_gate::Gate;
use crate::container_relay::{Relay, Treatment};

/// Two containers on one spool and one database. The first one is stopped.
struct Zombie {
    scene: Scene,
    relay: Relay,
    posted: JoinHandle<()>,
    second: Option<Process>,
}

/// The zombie's webhook waits so long that it is still waiting after the second container has ended the unit.
fn patient(relay: &Relay) -> String {
    config(&relay.url, "").replace("time_out = \"2s\"", "time_out = \"20s\"")
}

impl Zombie {
    /// Sends a manifest with a photo to a container with these flags.
    async fn start(world: World, flags: &[&str], store: Treatment, undo: Treatment) -> Self {
        let port = free_port();
        let relay = Relay::start(port, Treatment::Pass, Treatment::Pass).await;
        let mut scene = Scene::start_on(world, port, &patient(&relay)).await;
        if !flags.is_empty() {
            scene.kill_container().await;
            scene.start_again_with(flags).await;
        }
        // The first unit opens the connections.
        assert!(scene.post(&manifest(1, &["Ada"])).send().await.unwrap().status().is_success());
        scene.settle().await;
        relay.treat(store, undo);
        Self { scene, relay, posted: tokio::spawn(async {}), second: None }
    }

    fn post(&mut self) {
        let request = self.scene.post_with_photo(&manifest(7, &["Ada", "Bo"]), &[7; 50_000]);
        self.posted = tokio::spawn(async move { drop(request.send().await) });
    }

    /// Stops the first container now.
    async fn stop(&self) {
        self.scene.container.signal(Signal::SIGSTOP);
        self.stopped().await;
    }

    /// Waits until the first container is stopped.
    async fn stopped(&self) {
        let stat = format!("/proc/{}/stat", self.scene.container.pid());
        wait_until("the first container is stopped", async || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        })
        .await;
    }

    fn wake(&self) {
        self.scene.container.signal(Signal::SIGCONT);
    }

    /// The lease of the first container runs out, and a second one starts. Its notices are treated in these ways.
    async fn replace(&mut self, store: Treatment, undo: Treatment) {
        self.relay.treat(store, undo);
        self.scene.end_leases().await;
        self.start_second().await;
    }

    async fn start_second(&mut self) {
        let mut second = self.scene.spawn(&[]);
        base_of(&mut second).await;
        self.second = Some(second);
    }

    /// The first container goes on, and ends all that it has in hand.
    async fn end(&mut self) {
        self.wake();
        self.scene.container.signal(Signal::SIGTERM);
        let status = self.scene.container.ended().await;
        assert!(status.success(), "{status}: {}", self.scene.container.output());
        (&mut self.posted).await.unwrap();
    }

    /// State and attempt of the unit.
    async fn unit(&self) -> (String, i32) {
        let query = "SELECT state, attempt FROM units WHERE subject = '7'";
        let row = self.scene.world.client().query_one(query, &[]).await.unwrap();
        (row.get(0), row.get(1))
    }

    /// Waits until the unit has this state and attempt, and all destinations agree.
    async fn wait_for(&self, state: &str, attempt: i32) {
        self.scene.settle().await;
        self.assert_unit(state, attempt).await;
        self.scene.assert_verdicts().await;
    }

    async fn assert_unit(&self, state: &str, attempt: i32) {
        assert_eq!(self.unit().await, (state.to_owned(), attempt));
    }
}

const PASS: Treatment = Treatment::Pass;
const REFUSE: Treatment = Treatment::Refuse(422);

#[tokio::test]
async fn a_webhook_that_is_told_late_changes_nothing() {
    for (treatment, state) in [(PASS, "committed"), (REFUSE, "rejected")] {
        let mut zombie = Zombie::start(World::new().await, &[], Treatment::Late, PASS).await;
        zombie.post();
        wait_until("it tells", async || zombie.relay.seen("store").len() == 2).await;
        zombie.stop().await;
        zombie.replace(treatment, PASS).await;
        zombie.wait_for(state, 1).await;
        zombie.relay.release().await;
        zombie.scene.assert_verdicts().await;
        zombie.end().await;
        zombie.wait_for(state, 1).await;
    }
}

#[tokio::test]
async fn a_webhook_that_is_told_late_of_an_undo_keeps_the_next_attempt() {
    let mut zombie = Zombie::start(World::new().await, &[], Treatment::Lose, Treatment::Late).await;
    zombie.post();
    wait_until("it undoes", async || zombie.relay.seen("undo").len() == 1).await;
    zombie.stop().await;
    zombie.replace(PASS, PASS).await;
    zombie.wait_for("committed", 2).await;
    zombie.relay.release().await;
    zombie.scene.assert_verdicts().await;
    zombie.end().await;
    zombie.wait_for("committed", 2).await;
}

#[tokio::test]
async fn a_board_that_stores_late_changes_nothing() {
    for (treatment, state) in [(PASS, "committed"), (REFUSE, "rejected")] {
        let redis = PrivateRedis::start(&[]).await;
        let gate = Gate::start(&redis.url()).await;
        let mut zombie = Zombie::start(World::with_redis(&gate.url()).await, &[], PASS, PASS).await;
        gate.hold();
        zombie.post();
        gate.holds_something().await;
        zombie.stop().await;
        zombie.replace(treatment, PASS).await;
        zombie.wait_for(state, 1).await;
        gate.release().await;
        zombie.scene.assert_verdicts().await;
        zombie.end().await;
        zombie.wait_for(state, 1).await;
    }
}

#[tokio::test]
async fn a_board_that_undoes_late_keeps_the_next_attempt() {
    let redis = PrivateRedis::start(&[]).await;
    let gate = Gate::start(&redis.url()).await;
    let world = World::with_redis(&gate.url()).await;
    let mut zombie = Zombie::start(world, &["--stop-at", "rolling-back:7"], Treatment::Lose, PASS).await;
    zombie.post();
    zombie.stopped().await;
    gate.hold();
    zombie.wake();
    gate.holds_something().await;
    zombie.stop().await;
    zombie.replace(PASS, PASS).await;
    zombie.wait_for("committed", 2).await;
    gate.release().await;
    zombie.scene.assert_verdicts().await;
    zombie.end().await;
    zombie.wait_for("committed", 2).await;
}

/// A container that is stopped at this point, and woken when another has ended the unit in either way, changes nothing.
async fn assert_changes_nothing_late(point: &str) {
    for (treatment, state) in [(PASS, "committed"), (REFUSE, "rejected")] {
        let mut zombie = Zombie::start(World::new().await, &["--stop-at", point], PASS, PASS).await;
        zombie.post();
        zombie.stopped().await;
        zombie.replace(treatment, PASS).await;
        zombie.wait_for(state, 1).await;
        zombie.end().await;
        zombie.wait_for(state, 1).await;
    }
}

#[tokio::test]
async fn a_file_that_is_stored_late_changes_nothing() {
    assert_changes_nothing_late("file-unnamed:7").await;
}

#[tokio::test]
async fn a_file_that_is_undone_late_keeps_the_next_attempt() {
    let mut zombie = Zombie::start(World::new().await, &["--stop-at", "file-buried:7"], Treatment::Lose, PASS).await;
    zombie.post();
    zombie.stopped().await;
    zombie.replace(PASS, PASS).await;
    zombie.wait_for("committed", 2).await;
    zombie.end().await;
    zombie.wait_for("committed", 2).await;
}

/// The row is written by the verdict's transaction. A container that is stopped before it finds its lease gone.
#[tokio::test]
async fn a_row_that_is_written_late_is_not_written() {
    assert_changes_nothing_late("told:7").await;
}

/// The verdict is one statement. A container that is stopped after it has sent it has given it, when Postgres comes to it.
#[tokio::test]
async fn a_container_that_is_stopped_after_it_has_sent_its_verdict_has_given_it() {
    let mut zombie = Zombie::start(World::new().await, &[], PASS, PASS).await;
    let mut other = zombie.scene.world.connect().await;
    let blocking = other.transaction().await.unwrap();
    blocking.batch_execute("LOCK TABLE manifests IN EXCLUSIVE MODE").await.unwrap();
    zombie.post();
    let writing = "query LIKE '%container::commit%'";
    let world = &zombie.scene.world;
    wait_until("it gives its verdict", async || world.waiting_count_where(writing).await == 1).await;
    zombie.stop().await;
    // The row of the unit is locked, so its lease cannot run out.
    zombie.start_second().await;
    zombie.assert_unit("fanned_out", 1).await;
    blocking.rollback().await.unwrap();
    zombie.wait_for("committed", 1).await;
    zombie.end().await;
    zombie.wait_for("committed", 1).await;
}

/// The second container is in the middle of attempt 2 when the first one wants to commit attempt 1.
#[tokio::test]
async fn a_verdict_without_the_lease_is_not_given() {
    let mut zombie = Zombie::start(World::new().await, &["--stop-at", "told:7"], PASS, PASS).await;
    zombie.post();
    zombie.stopped().await;
    zombie.replace(Treatment::Lose, Treatment::Late).await;
    wait_until("attempt 1 is undone", async || zombie.relay.seen("undo").len() == 1).await;
    zombie.relay.treat(Treatment::Late, PASS);
    zombie.relay.release().await;
    wait_until("attempt 2 is told", async || zombie.relay.seen("store").len() == 4).await;
    zombie.assert_unit("fanned_out", 2).await;
    zombie.end().await;
    zombie.assert_unit("fanned_out", 2).await;
    assert_eq!(zombie.scene.world.number("SELECT count(*) FROM manifests WHERE subject = '7'").await, 0);
    zombie.relay.release().await;
    zombie.wait_for("committed", 2).await;
}

/// The first container finds that the attempt has failed, while the second one is about to commit it.
#[tokio::test]
async fn a_failure_without_the_lease_takes_nothing_back() {
    let mut zombie = Zombie::start(World::new().await, &["--stop-at", "all-stored:7"], PASS, PASS).await;
    zombie.post();
    zombie.stopped().await;
    zombie.replace(Treatment::Late, PASS).await;
    wait_until("the second container tells", async || zombie.relay.seen("store").len() == 2).await;
    zombie.relay.treat(REFUSE, PASS);
    zombie.end().await;
    assert_eq!(zombie.relay.seen("store").len(), 3, "the first container was refused");
    zombie.assert_unit("fanned_out", 1).await;
    zombie.relay.release().await;
    zombie.wait_for("committed", 1).await;
}

/// The first container ends the rollback of attempt 1, while the second one takes attempt 2 back.
#[tokio::test]
async fn a_rollback_is_not_ended_without_the_lease() {
    let mut zombie = Zombie::start(World::new().await, &["--stop-at", "all-undone:7"], Treatment::Lose, PASS).await;
    zombie.post();
    zombie.stopped().await;
    zombie.replace(Treatment::Lose, Treatment::Late).await;
    wait_until("attempt 1 is undone again", async || zombie.relay.seen("undo").len() == 2).await;
    zombie.relay.release().await;
    wait_until("attempt 2 is undone", async || zombie.relay.seen("undo").len() == 3).await;
    zombie.assert_unit("rolling_back", 2).await;
    zombie.end().await;
    zombie.assert_unit("rolling_back", 2).await;
    zombie.relay.treat(PASS, PASS);
    zombie.relay.release().await;
    zombie.wait_for("committed", 3).await;
}

/// The first container cannot undo. It puts nothing off, because the second one has the unit.
#[tokio::test]
async fn a_rollback_is_not_put_off_without_the_lease() {
    let mut zombie = Zombie::start(World::new().await, &["--stop-at", "rolling-back:7"], Treatment::Lose, PASS).await;
    zombie.post();
    zombie.stopped().await;
    zombie.replace(PASS, Treatment::Late).await;
    wait_until("the second container undoes", async || zombie.relay.seen("undo").len() == 1).await;
    zombie.relay.treat(PASS, Treatment::Refuse(500));
    zombie.end().await;
    assert_eq!(zombie.relay.seen("undo").len(), 2, "the first container was refused");
    let is_leased = "SELECT count(*) FROM units WHERE subject = '7' AND due_at > now() + INTERVAL '10 seconds'";
    assert_eq!(zombie.scene.world.number(is_leased).await, 1, "the lease of the second container");
    zombie.relay.treat(PASS, PASS);
    zombie.relay.release().await;
    zombie.wait_for("committed", 2).await;
}
