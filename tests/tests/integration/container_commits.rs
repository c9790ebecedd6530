//! Postgres is away at the moment of the verdict, or its response is lost: the unit has one verdict, and the client gets it.

use serde_json::Value;
use tests::{AtCommit, CommitProxy, PrivatePostgres, World, free_port, wait_until};
use tokio::task::JoinHandle;

use crate::container_fixture::{Scene, config, manifest};
use crate::container_relay::{Relay, Treatment};

/// The statement of the verdict, which commits by itself.
const VERDICT: &str = "container::commit";

/// A container that waits for its receiver, before it gives its verdict.
struct Verdict {
    scene: Scene,
    relay: Relay,
}

impl Verdict {
    async fn start_in(world: World) -> Self {
        let port = free_port();
        let relay = Relay::start(port, Treatment::Late, Treatment::Pass).await;
        let patient = config(&relay.url, "").replace("time_out = \"2s\"", "time_out = \"20s\"");
        Self { scene: Scene::start_on(world, port, &patient).await, relay }
    }

    /// Sends the manifest under its key. Returns status and unit of the response.
    fn post(&self) -> JoinHandle<Option<(u16, Value)>> {
        let request = self.scene.post_with_photo(&manifest(7, &["Ada"]), &[7; 100]).header("idempotency-key", "a-key");
        tokio::spawn(async move {
            let response = request.send().await.ok()?;
            Some((response.status().as_u16(), response.json().await.ok()?))
        })
    }

    /// Sends it, and waits until the receiver is told.
    async fn begin(&self) -> JoinHandle<Option<(u16, Value)>> {
        let posted = self.post();
        wait_until("the receiver is told", async || self.relay.seen("store").len() == 1).await;
        self.relay.treat(Treatment::Pass, Treatment::Pass);
        posted
    }

    /// Sends it again until the unit is committed, and compares everything.
    async fn assert_committed_once(&self) {
        self.scene.settle().await;
        let (status, unit) = self.post().await.unwrap().unwrap();
        assert_eq!((status, &unit["state"], &unit["uow"]), (200, &"committed".into(), &1.into()), "{unit}");
        assert_eq!(self.scene.world.number("SELECT count(*) FROM units").await, 1);
        self.scene.assert_verdicts().await;
        assert_eq!(self.scene.records(1).await, ["commit"]);
    }
}

/// A container that reaches Postgres through a proxy, and the proxy.
async fn start_proxied() -> (Verdict, CommitProxy) {
    let mut verdict = Verdict::start_in(World::new().await).await;
    let world = &verdict.scene.world;
    let proxy = CommitProxy::start(world.database_url()).await;
    let direct: tokio_postgres::Config = world.database_url_of("container").parse().unwrap();
    let url = proxy.url(direct.get_user().unwrap(), direct.get_dbname().unwrap());
    verdict.scene.kill_container().await;
    verdict.scene.start_again_with(&["--database-url", &url]).await;
    (verdict, proxy)
}

#[tokio::test]
async fn a_verdict_whose_response_is_lost_is_found_and_sent_to_the_client() {
    let (verdict, proxy) = start_proxied().await;
    let posted = verdict.begin().await;
    proxy.strike_at(VERDICT, AtCommit::LoseResponse);
    verdict.relay.release().await;
    let (status, unit) = posted.await.unwrap().unwrap();
    assert!(proxy.has_struck());
    assert_eq!((status, &unit["state"]), (200, &"committed".into()), "{unit}");
    verdict.assert_committed_once().await;
}

#[tokio::test]
async fn a_verdict_that_is_lost_is_given_again() {
    let (verdict, proxy) = start_proxied().await;
    let posted = verdict.begin().await;
    proxy.strike_at(VERDICT, AtCommit::Lose);
    verdict.relay.release().await;
    let (status, unit) = posted.await.unwrap().unwrap();
    assert!(proxy.has_struck());
    assert_eq!((status, &unit["state"]), (202, &"fanned_out".into()), "{unit}");
    verdict.scene.end_leases().await;
    verdict.assert_committed_once().await;
}

#[tokio::test]
async fn a_verdict_that_comes_late_is_the_only_one() {
    let (verdict, proxy) = start_proxied().await;
    let posted = verdict.begin().await;
    proxy.strike_at(VERDICT, AtCommit::Delay);
    verdict.relay.release().await;
    let (status, unit) = posted.await.unwrap().unwrap();
    assert!(proxy.has_struck());
    assert_eq!((status, &unit["state"]), (202, &"fanned_out".into()), "{unit}");
    // Its lease is still valid when the statement reaches Postgres.
    proxy.deliver();
    verdict.assert_committed_once().await;
}

#[tokio::test]
async fn a_postgres_that_is_killed_at_the_verdict_gets_it_again() {
    let mut postgres = PrivatePostgres::start().await;
    let redis_url = World::new().await.redis_url().to_owned();
    let mut world = World::on(&postgres.url(), &redis_url).await;
    world.forget_database();
    let mut verdict = Verdict::start_in(world).await;
    let posted = verdict.begin().await;
    postgres.kill().await;
    verdict.relay.release().await;
    let answer = posted.await.unwrap();
    assert!(answer.as_ref().is_none_or(|(status, _)| *status == 503), "{answer:?}");
    assert!(verdict.scene.container.is_running(), "it waits for Postgres");
    postgres.start_again().await;
    let world = &verdict.scene.world;
    let (database_url, stream_name) = (world.database_url().to_owned(), world.stream_name().to_owned());
    verdict.scene.world = World::at(&database_url, &redis_url, &stream_name).await;
    verdict.scene.end_leases().await;
    verdict.assert_committed_once().await;
}
