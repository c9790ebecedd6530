//! The container dies at each arrow of its design. When it is back, every unit is as its verdict says.

use tests::{free_port, wait_until};
use tokio::task::JoinHandle;

use crate::container_fixture::{Scene, config, manifest};
use crate::container_relay::{Relay, Treatment};

/// A container whose receiver is behind a relay.
struct Points {
    scene: Scene,
    relay: Relay,
    ride_id: i64,
}

/// A response: the status, and the number of the unit.
type Answer = (u16, i64);

impl Points {
    async fn start() -> Self {
        let port = free_port();
        let relay = Relay::start(port, Treatment::Pass, Treatment::Pass).await;
        Self { scene: Scene::start_with(port, &config(&relay.url, "")).await, relay, ride_id: 0 }
    }

    /// Sends the manifest of the ride, with a photo if the number of the ride is odd.
    fn post(&self) -> JoinHandle<Option<Answer>> {
        let document = manifest(self.ride_id, &["Ada"]);
        let request = match self.ride_id % 2 {
            0 => self.scene.post(&document),
            _ => self.scene.post_with_photo(&document, &[7; 100_000]),
        };
        let request = request.header("idempotency-key", format!("ride-{}", self.ride_id));
        tokio::spawn(async move {
            let response = request.send().await.ok()?;
            let status = response.status().as_u16();
            let unit: serde_json::Value = response.json().await.ok()?;
            Some((status, unit["uow"].as_i64().unwrap_or_default()))
        })
    }

    /// Sends the manifest of the next ride to a container that dies at this point.
    async fn die_at(&mut self, point: &str) {
        self.ride_id += 1;
        println!("ride {} dies at {point}", self.ride_id);
        self.scene.kill_container().await;
        self.scene.start_again_with(&["--die-at", &format!("{point}:{}", self.ride_id)]).await;
        let posted = self.post();
        self.scene.died().await;
        assert_eq!(posted.await.unwrap(), None, "a dead container does not respond");
    }

    /// The time passes that leases, files and pauses wait for, and a container starts.
    async fn start_later(&mut self) {
        self.scene.end_leases().await;
        self.scene.make_spool_old();
        self.scene.start_again(None).await;
    }

    /// Sends the same manifest until its response is final.
    async fn retry(&self) -> Answer {
        let mut answer = None;
        wait_until("the response is final", async || {
            answer = self.post().await.unwrap();
            answer.is_some_and(|(status, _)| status == 200 || (400..500).contains(&status))
        })
        .await;
        answer.unwrap()
    }

    async fn state(&self) -> Option<String> {
        let query = "SELECT max(state), count(*) FROM units WHERE subject = $1";
        let found = self.scene.world.client().query_one(query, &[&self.ride_id.to_string()]).await.unwrap();
        assert!(found.get::<_, i64>(1) < 2, "ride {} has more than one unit", self.ride_id);
        found.get(0)
    }

    /// At rest the ride has this state, and all destinations agree.
    async fn assert_settled(&self, state: &str) {
        self.scene.settle().await;
        assert_eq!(self.state().await.as_deref(), Some(state), "ride {}", self.ride_id);
        self.scene.assert_verdicts().await;
    }
}

/// The steps up to the verdict that a unit is kept.
const STEPS: [&str; 6] = ["accepted", "first-stored", "all-stored", "told", "committed", "file-deleted"];

#[tokio::test]
async fn a_container_that_dies_on_the_way_to_the_verdict_goes_on_with_the_unit() {
    let mut points = Points::start().await;
    // Twice, so that there is a unit with a photo and a unit without.
    for step in STEPS.into_iter().flat_map(|step| [step, step]) {
        points.die_at(step).await;
        points.start_later().await;
        points.assert_settled("committed").await;
        assert_eq!(points.retry().await.0, 200);
    }
    points.die_at("file-unnamed").await;
    points.start_later().await;
    points.assert_settled("committed").await;
}

#[tokio::test]
async fn a_client_that_sends_its_request_again_gets_the_unit_of_the_dead_container() {
    let mut points = Points::start().await;
    for step in STEPS.into_iter().flat_map(|step| [step, step]) {
        points.die_at(step).await;
        points.scene.end_leases().await;
        points.scene.start_again(None).await;
        let answer = points.retry().await;
        assert_eq!((answer.0, points.state().await.as_deref()), (200, Some("committed")));
        assert_eq!(points.retry().await, answer);
        points.scene.assert_verdicts().await;
    }
}

#[tokio::test]
async fn a_container_that_dies_before_a_unit_has_its_row_leaves_a_file_or_nothing() {
    let mut points = Points::start().await;
    for _ in ["with a photo", "without"] {
        // The body has arrived. A file that is not complete was never promised, and is cleared.
        points.die_at("body-received").await;
        points.start_later().await;
        wait_until("the spool is empty", async || points.scene.spooled() == 0).await;
        assert_eq!(points.state().await, None);
        assert_eq!(points.retry().await.0, 200);
        points.assert_settled("committed").await;

        // The file is complete: it is taken up without the client.
        points.die_at("file-synced").await;
        assert_eq!((points.scene.spooled(), points.state().await), (1, None));
        points.start_later().await;
        wait_until("it is taken up", async || points.state().await.is_some()).await;
        points.assert_settled("committed").await;
        assert_eq!(points.retry().await.0, 200);
        points.scene.assert_verdicts().await;
    }
}

#[tokio::test]
async fn the_file_of_a_request_that_was_sent_again_is_deleted() {
    let mut points = Points::start().await;
    for is_same in [true, false] {
        points.die_at("file-synced").await;
        points.scene.start_again(None).await;
        if is_same {
            assert_eq!(points.retry().await.0, 200);
        } else {
            let key = format!("ride-{}", points.ride_id);
            let other = points.scene.post(&manifest(points.ride_id, &["Bo"])).header("idempotency-key", key);
            assert_eq!(other.send().await.unwrap().status(), 200, "the first request was never answered");
        }
        assert_eq!(points.scene.spooled(), 1, "the file of the first request");
        points.scene.kill_container().await;
        points.start_later().await;
        points.assert_settled("committed").await;
    }
}

#[tokio::test]
async fn a_sweep_that_dies_is_done_again() {
    let mut points = Points::start().await;
    for step in ["file-found", "file-taken"] {
        points.die_at("file-synced").await;
        points.scene.make_spool_old();
        points.scene.container = points.scene.spawn(&["--die-at", step]);
        points.scene.died().await;
        points.start_later().await;
        wait_until("it is taken up", async || points.state().await.is_some()).await;
        points.assert_settled("committed").await;
    }
    points.die_at("committed").await;
    points.scene.container = points.scene.spawn(&["--die-at", "files-swept"]);
    points.scene.died().await;
    assert_eq!(points.scene.world.number("SELECT count(*) FROM units WHERE uow = 3 AND file_gone_at IS NULL").await, 1);
    points.start_later().await;
    wait_until("it is noted", async || {
        points.scene.world.number("SELECT count(*) FROM units WHERE file_gone_at IS NULL").await == 0
    })
    .await;
    points.assert_settled("committed").await;
}

#[tokio::test]
async fn a_unit_that_was_due_is_taken_again() {
    let mut points = Points::start().await;
    for _ in ["with a photo", "without"] {
        points.die_at("accepted").await;
        points.scene.end_leases().await;
        points.scene.container = points.scene.spawn(&["--die-at", "taken"]);
        points.scene.died().await;
        points.start_later().await;
        points.assert_settled("committed").await;
    }
}

#[tokio::test]
async fn a_container_that_dies_during_a_rollback_ends_it_when_it_is_back() {
    let mut points = Points::start().await;
    // The board has its part, and the photo if there is one. The receiver refuses.
    let steps = ["rolling-back", "first-undone", "all-undone", "rolled-back", "file-deleted"];
    for step in steps.into_iter().flat_map(|step| [step, step]).chain(["file-buried"]) {
        points.relay.treat(Treatment::Refuse(422), Treatment::Pass);
        points.die_at(step).await;
        // The receiver would not refuse it any more. The verdict stays.
        points.relay.treat(Treatment::Pass, Treatment::Pass);
        points.start_later().await;
        points.assert_settled("rejected").await;
        assert_eq!(points.retry().await.0, 422);
    }
}

#[tokio::test]
async fn a_container_that_dies_while_an_attempt_is_taken_back_makes_the_next_one() {
    let mut points = Points::start().await;
    for step in ["rolling-back", "first-undone", "all-undone", "rolled-back"].into_iter().flat_map(|step| [step, step])
    {
        // The receiver is told, and its response is lost.
        points.relay.treat(Treatment::Lose, Treatment::Pass);
        points.die_at(step).await;
        points.relay.treat(Treatment::Pass, Treatment::Pass);
        points.start_later().await;
        points.assert_settled("committed").await;
        let attempt = format!("SELECT attempt::bigint FROM units WHERE subject = '{}'", points.ride_id);
        assert_eq!(points.scene.world.number(&attempt).await, 2);
    }
}
