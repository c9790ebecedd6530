//! Redis stops, is away, is a replica, or refuses: a request to the read model ends in time, and no outdated document is shown
//! afterwards.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::Value;
use tests::{PrivateRedis, wait_until};
use tokio::task::JoinSet;
use wallet::WalletId;
use wallet::documents::{Change, Document};
use wallet::model::{API_WAIT, Away, Model};

use crate::wallet_model_fixture::{Fixture, History, LOG, MARK, WAIT, connect, model_on};

/// Longer than [`API_WAIT`] because tests share processors.
const SOON: Duration = Duration::from_secs(1);

impl Fixture {
    async fn pid(&self) -> Pid {
        let Value::BulkString(info) = self.run(&["INFO", "server"]).await else { panic!("no info") };
        let info = String::from_utf8(info).unwrap();
        Pid::from_raw(info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().parse().unwrap())
    }
}

async fn is_away(model: &Model) -> bool {
    model.mark().await == Err(Away)
}

#[tokio::test]
async fn a_redis_that_is_stopped_delays_requests_for_a_moment_and_shows_nothing_outdated_later() {
    let (fixture, epoch) = Fixture::begun().await;
    let api = model_on(&fixture.redis, API_WAIT).await;
    let history = History::new(9);
    fixture.put(epoch, &history.document(6)).await;
    wait_until("the api reads it", async || api.head(history.wallet).await == Ok(Some(history.document(6).head())))
        .await;
    let pid = fixture.pid().await;
    kill(pid, Signal::SIGSTOP).unwrap();

    let began_at = Instant::now();
    assert_eq!(api.put_changes(Some(epoch), &[history.change(6, 7)]).await, Err(Away));
    let waited = began_at.elapsed();
    assert!(waited >= API_WAIT && waited < SOON, "waited {waited:?}");
    // Then the connection is given up, and no request waits for Redis at all.
    wait_until("the connection is given up", async || {
        let began_at = Instant::now();
        is_away(&api).await && began_at.elapsed() < API_WAIT
    })
    .await;
    assert_eq!(api.put_changes(Some(epoch), &[history.change(7, 8)]).await, Err(Away));

    kill(pid, Signal::SIGCONT).unwrap();
    // This reader would believe the document of version 6, or of 7 if Redis has found the command in the old connection.
    wait_until("redis is back", async || fixture.model.mark().await.is_ok()).await;
    wait_until("the model is back", async || api.mark().await.is_ok()).await;
    assert_eq!(fixture.text(history.wallet).await, None, "it was deleted before any read");
    assert_eq!(api.head(history.wallet).await, Ok(None));
    assert_eq!(api.put(api.epoch(), &[history.document(8)]).await.unwrap().written_count, 1);
}

#[tokio::test]
async fn a_redis_that_is_killed_is_used_again_when_it_is_back() {
    let (mut fixture, epoch) = Fixture::begun().await;
    let api = model_on(&fixture.redis, API_WAIT).await;
    let (history, other) = (History::new(9), History::new(9));
    for document in [history.document(6), other.document(6)] {
        fixture.put(epoch, &document).await;
    }
    fixture.run(&["SAVE"]).await;
    fixture.redis.kill().await;
    wait_until("the api notices", async || is_away(&api).await).await;
    assert_eq!(api.put_changes(Some(epoch), &[history.change(6, 7)]).await, Err(Away));
    // A document that was read and could not be written back is not outdated.
    assert_eq!(api.put(Some(epoch), &[other.document(6)]).await, Err(Away));
    fixture.redis.start_again().await;
    wait_until("the model is back", async || api.mark().await.is_ok()).await;
    fixture.connection = connect(&fixture.redis).await;
    assert_eq!(fixture.text(history.wallet).await, None);
    assert!(fixture.text(other.wallet).await.is_some());
}

/// Redis runs a command to its end, and does nothing else meanwhile.
#[tokio::test]
async fn many_outdated_documents_are_deleted_a_thousand_at_a_time() {
    let (mut fixture, epoch) = Fixture::begun().await;
    let api = model_on(&fixture.redis, API_WAIT).await;
    let histories: Vec<History> = (0..2500).map(|_| History::new(2)).collect();
    let documents: Vec<Document> = histories.iter().map(|history| history.document(1)).collect();
    fixture.model.put(Some(epoch), &documents).await.unwrap();
    fixture.run(&["SAVE"]).await;
    fixture.redis.kill().await;
    wait_until("the api notices", async || is_away(&api).await).await;
    let changes: Vec<Change> = histories.iter().map(|history| history.change(1, 2)).collect();
    assert_eq!(api.put_changes(Some(epoch), &changes).await, Err(Away));
    fixture.redis.start_again().await;
    wait_until("the model is back", async || api.mark().await.is_ok()).await;
    fixture.connection = connect(&fixture.redis).await;
    assert_eq!(fixture.run(&["DBSIZE"]).await, Value::Int(1), "the mark alone is left");
    assert_eq!(fixture.call_count("del").await, 3);
}

/// The connection is there all the time, so no reconnection deletes the document.
#[tokio::test]
async fn a_change_that_finds_the_queue_full_leaves_no_outdated_document() {
    let (fixture, epoch) = Fixture::begun().await;
    let (history, other) = (History::new(9), WalletId::new());
    fixture.put(epoch, &history.document(6)).await;
    let pid = fixture.pid().await;
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut reads = JoinSet::new();
    for _ in 0..6000 {
        let model = fixture.model.clone();
        reads.spawn(async move { model.head(other).await });
    }
    // Those that have no place in the queue are refused at once.
    assert_eq!(reads.join_next().await.unwrap().unwrap(), Err(Away));
    assert_eq!(fixture.model.put_changes(Some(epoch), &[history.change(6, 7)]).await, Err(Away));
    kill(pid, Signal::SIGCONT).unwrap();
    let replied = reads.join_all().await.into_iter().filter(Result::is_ok).count();
    assert!(replied > 1000, "the connection was kept");
    assert_eq!(fixture.model.head(history.wallet).await, Ok(None));
    assert_eq!(fixture.text(history.wallet).await, None, "it was deleted before any read");
}

#[tokio::test]
async fn the_scripts_of_a_redis_may_be_flushed() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(9);
    fixture.put(epoch, &history.document(6)).await;
    fixture.run(&["SCRIPT", "FLUSH"]).await;
    assert_eq!(fixture.put(epoch, &history.document(7)).await.written_count, 1);
}

#[tokio::test]
async fn a_replica_is_away_also_if_it_becomes_one() {
    let (fixture, epoch) = Fixture::begun().await;
    let port = tests::free_port().to_string();
    let primary = PrivateRedis::start(&["--port", &port, "--bind", "127.0.0.1"]).await;
    let reader = model_on(&fixture.redis, WAIT).await;
    let history = History::new(9);
    fixture.put(epoch, &history.document(6)).await;
    fixture.run(&["REPLICAOF", "127.0.0.1", &port]).await;
    assert_eq!(fixture.model.put(Some(epoch), &[history.document(7)]).await, Err(Away), "it takes no writes");
    // It refuses to connect from now on. Sentinel closes all connections of a server that it demotes; here the test does.
    fixture.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    wait_until("the reader notices", async || is_away(&reader).await).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(is_away(&reader).await && is_away(&fixture.model).await);
    }
    fixture.run(&["REPLICAOF", "NO", "ONE"]).await;
    wait_until("the model is back", async || reader.mark().await.is_ok()).await;
    drop(primary);
}

#[tokio::test]
async fn another_password_or_another_type_of_mark_is_away() {
    let (fixture, _) = Fixture::begun().await;
    fixture.run(&["CONFIG", "SET", "requirepass", "secret"]).await;
    let stranger = Model::start(stream::redis::client(&fixture.redis.url()).unwrap(), LOG, WAIT);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(is_away(&stranger).await);
    }
    fixture.run(&["CONFIG", "SET", "requirepass", ""]).await;
    wait_until("it is connected", async || stranger.mark().await.is_ok()).await;
    fixture.run(&["DEL", MARK]).await;
    fixture.run(&["SADD", MARK, "x"]).await;
    assert_eq!(stranger.mark().await, Err(Away));
    fixture.run(&["DEL", MARK]).await;
    wait_until("it is connected", async || stranger.mark().await == Ok(None)).await;
}

#[tokio::test]
async fn a_thousand_requests_at_once_are_served_together() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(9);
    fixture.put(epoch, &history.document(6)).await;
    let before = fixture.call_count("get").await;
    let reads: Vec<_> = (0..1000)
        .map(|_| {
            let (model, wallet) = (fixture.model.clone(), history.wallet);
            tokio::spawn(async move { model.head(wallet).await })
        })
        .collect();
    for read in reads {
        assert_eq!(read.await.unwrap(), Ok(Some(history.document(6).head())));
    }
    // One GET of the mark per group, and few groups.
    assert!(fixture.call_count("get").await - before < 100);
}

impl Fixture {
    /// How often a command was called.
    async fn call_count(&self, command: &str) -> i64 {
        let Value::BulkString(info) = self.run(&["INFO", "commandstats"]).await else { panic!("no info") };
        let info = String::from_utf8(info).unwrap();
        let start = format!("cmdstat_{command}:calls=");
        let line = info.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        line.split_once(',').unwrap().0.parse().unwrap()
    }
}
