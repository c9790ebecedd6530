//! The rules of the wallets' read model, each on a real Redis: which documents are written, and which a reader believes (W6).

use redis::AsyncCommands;
use serde_json::{Value, json};
use tests::mark;
use wallet::WalletId;
use wallet::model::{Epoch, Outcome, Written};

use crate::wallet_model_fixture::{Fixture, History, LOG, MARK, WAIT, connect, model_on};

fn counts(outcome: Outcome, written_count: i64, kept_count: i64, deleted_count: i64) -> Written {
    Written { outcome, written_count, kept_count, deleted_count }
}

#[tokio::test]
async fn a_document_is_read_as_it_was_put() {
    let (fixture, epoch) = Fixture::begun().await;
    let document = History::new(30).document(25);
    assert_eq!(fixture.put(epoch, &document).await, counts(Outcome::Done, 1, 0, 0));
    assert_eq!(fixture.model.head(document.wallet).await, Ok(Some(document.head())));
    assert_eq!(fixture.model.document(document.wallet).await, Ok(Some(document.clone())));
    assert_eq!(fixture.model.epoch(), Some(epoch));
    let (found, heads) = fixture.model.heads(&[WalletId::new(), document.wallet]).await.unwrap();
    assert_eq!(found, Some(mark(epoch, 10, -1)));
    assert_eq!(heads, [None, Some((epoch, document.head()))]);

    let text = fixture.text(document.wallet).await.unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["version_id"], 25);
    assert_eq!(json["name"], format!("wallet.{}", document.wallet));
    assert_eq!(json["data"]["balance"].to_string(), "3.25");
    assert_eq!(json["data"]["transactions"].as_array().unwrap().len(), 20);
    assert_eq!(json["data"]["transactions"][0]["amount"], json!(0.25));
    let ttl: i64 = fixture.connection.clone().ttl(format!("wallet.{}", document.wallet)).await.unwrap();
    assert_eq!(ttl, -1, "a document stays");
}

#[tokio::test]
async fn an_older_document_never_replaces_a_newer_one() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(9);
    fixture.put(epoch, &history.document(7)).await;
    assert_eq!(fixture.put(epoch, &history.document(6)).await, counts(Outcome::Done, 0, 1, 0));
    let late = [history.change(5, 6), History::new(3).change(0, 3)];
    let written = fixture.model.put_changes(Some(epoch), &late).await.unwrap();
    assert_eq!(written, counts(Outcome::Done, 1, 1, 0), "its neighbour is written");
    assert_eq!(fixture.model.document(history.wallet).await, Ok(Some(history.document(7))));
    assert_eq!(fixture.put(epoch, &history.document(9)).await, counts(Outcome::Done, 1, 0, 0));
    assert_eq!(fixture.version(history.wallet).await, Some(9));
}

#[tokio::test]
async fn changes_are_appended_to_the_document_before_them() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(100);
    // From nothing, over the limit of 20 transactions, and more than 20 at once.
    for (from, to) in [(0, 1), (1, 2), (2, 18), (18, 19), (19, 20), (20, 21), (21, 22), (22, 40), (40, 61), (61, 100)] {
        let written = fixture.model.put_changes(Some(epoch), &[history.change(from, to)]).await.unwrap();
        assert_eq!(written, counts(Outcome::Done, 1, 0, 0), "{from} to {to}");
        assert_eq!(fixture.model.document(history.wallet).await, Ok(Some(history.document(to))), "{from} to {to}");
    }
}

#[tokio::test]
async fn a_change_that_does_not_follow_the_document_leaves_none() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(9);
    assert_eq!(
        fixture.model.put_changes(Some(epoch), &[history.change(4, 5)]).await.unwrap(),
        counts(Outcome::Done, 0, 0, 0),
        "there is none"
    );
    fixture.put(epoch, &history.document(3)).await;
    let written = fixture.model.put_changes(Some(epoch), &[history.change(4, 5)]).await.unwrap();
    assert_eq!(written, counts(Outcome::Done, 0, 0, 1), "event 4 is missing");
    assert_eq!(fixture.text(history.wallet).await, None);
}

#[tokio::test]
async fn without_a_mark_nothing_is_written_and_nothing_is_believed() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(9);
    fixture.put(epoch, &history.document(7)).await;
    fixture.run(&["DEL", MARK]).await;
    assert_eq!(fixture.version(history.wallet).await, None, "nothing is believed");
    assert_eq!(fixture.model.epoch(), None);
    for late in [Some(epoch), None] {
        let written = fixture.model.put(late, &[history.document(8)]).await.unwrap();
        assert_eq!(written.outcome, Outcome::Refused);
        assert_eq!(fixture.text(history.wallet).await, None);
    }
    let advanced = fixture.advance(epoch, &[history.document(8)], 10, 11, 1).await.unwrap();
    assert_eq!(advanced.outcome, Outcome::Refused);
    fixture.run(&["FLUSHALL"]).await;
    assert_eq!(fixture.model.mark().await, Ok(None));
}

#[tokio::test]
async fn a_writer_of_another_epoch_is_refused_and_its_documents_are_missing_then() {
    let (fixture, old) = Fixture::begun().await;
    let history = History::new(9);
    fixture.put(old, &history.document(7)).await;
    let new = fixture.begin().await;
    assert_eq!(fixture.version(history.wallet).await, None, "a document of another epoch is not there");
    // Postgres was put back: the new epoch has an older version, and it is written.
    let fork = history.fork(4, 1);
    assert_eq!(fixture.put(new, &fork.document(5)).await, counts(Outcome::Done, 1, 0, 0));
    assert_eq!(fixture.model.document(history.wallet).await, Ok(Some(fork.document(5))));
    // The late writer may have committed: its document is outdated then, so it must not stay.
    assert_eq!(fixture.put(old, &history.document(8)).await, counts(Outcome::Refused, 0, 0, 1));
    assert_eq!(fixture.text(history.wallet).await, None);
    let advanced = fixture.advance(old, &[], 10, 99, 1).await.unwrap();
    assert_eq!(advanced.outcome, Outcome::Refused);
    assert_eq!(fixture.model.mark().await.unwrap().unwrap().offset(), 10);
}

#[tokio::test]
async fn a_change_is_not_appended_to_a_document_of_another_epoch() {
    let (fixture, old) = Fixture::begun().await;
    let history = History::new(9);
    fixture.put(old, &history.document(7)).await;
    let new = fixture.begin().await;
    let written = fixture.model.put_changes(Some(new), &[history.change(7, 8)]).await.unwrap();
    assert_eq!(written, counts(Outcome::Done, 0, 0, 1));
}

#[tokio::test]
async fn two_events_of_one_version_delete_the_mark() {
    let history = History::new(9);
    let fork = history.fork(6, 3);
    for way in ["whole", "change", "change that follows"] {
        let (fixture, epoch) = Fixture::begun().await;
        fixture.put(epoch, &history.document(7)).await;
        let written = match way {
            "whole" => fixture.put(epoch, &fork.document(7)).await,
            "change" => fixture.model.put_changes(Some(epoch), &[fork.change(6, 7)]).await.unwrap(),
            _ => fixture.model.put_changes(Some(epoch), &[fork.change(7, 8)]).await.unwrap(),
        };
        assert_eq!(written.outcome, Outcome::Conflict, "{way}");
        assert_eq!(fixture.model.mark().await, Ok(None), "{way}");
        assert_eq!(fixture.version(history.wallet).await, None, "{way}");
    }
}

#[tokio::test]
async fn the_mark_moves_with_the_documents_forward_only_and_from_the_bound_on() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(9);
    let advanced = fixture.advance(epoch, &[history.document(7)], 10, 20, -5).await.unwrap();
    assert_eq!(advanced, counts(Outcome::Done, 1, 0, 0));
    assert_eq!(fixture.model.mark().await, Ok(Some(mark(epoch, 20, -5))));
    // A projector that was faster has moved it further: the slower one moves it back no more than documents.
    let advanced = fixture.advance(epoch, &[history.document(6)], 10, 15, 1).await.unwrap();
    assert_eq!(advanced, counts(Outcome::Done, 0, 1, 0));
    assert_eq!(fixture.model.mark().await.unwrap().unwrap().offset(), 20);
    // Postgres knows that the mark was at 21.
    let advanced = fixture.advance(epoch, &[history.document(8)], 21, 22, 1).await.unwrap();
    assert_eq!(advanced, counts(Outcome::Behind, 0, 0, 0));
    assert_eq!(fixture.model.mark().await.unwrap().unwrap().offset(), 20);
    assert_eq!(fixture.version(history.wallet).await, Some(7));
}

#[tokio::test]
async fn of_two_that_begin_an_epoch_one_succeeds() {
    let fixture = Fixture::start(&[]).await;
    let (one, two) = (mark(Epoch::random(), 1, 0), mark(Epoch::random(), 2, 0));
    assert!(fixture.model.begin(None, &one).await.unwrap());
    assert!(!fixture.model.begin(None, &two).await.unwrap());
    assert!(!fixture.model.end(two.epoch).await.unwrap());
    assert!(fixture.model.begin(Some(one.epoch), &two).await.unwrap());
    assert!(!fixture.model.begin(Some(one.epoch), &one).await.unwrap());
    assert_eq!(fixture.model.mark().await, Ok(Some(two.clone())));
    assert!(fixture.model.end(two.epoch).await.unwrap());
    assert_eq!(fixture.model.mark().await, Ok(None));
    // Another program's text is no mark.
    fixture.run(&["SET", MARK, "7"]).await;
    assert_eq!(fixture.model.mark().await, Ok(None));
    assert!(fixture.model.begin(None, &one).await.unwrap());
}

#[tokio::test]
async fn foreign_values_are_no_documents_and_are_replaced() {
    let (fixture, epoch) = Fixture::begun().await;
    let history = History::new(9);
    let key = format!("wallet.{}", history.wallet);
    fixture.put(epoch, &history.document(7)).await;
    let text = fixture.text(history.wallet).await.unwrap();
    let broken = text.split_once("transactions").unwrap().0;
    for command in [["SET", &key, "7"], ["SADD", &key, "x"], ["SET", &key, &text[..40]], ["SET", &key, broken]] {
        fixture.run(&["DEL", &key]).await;
        fixture.run(&command).await;
        assert_eq!(fixture.model.document(history.wallet).await, Ok(None), "{command:?}");
        let written = fixture.model.put_changes(Some(epoch), &[history.change(7, 8)]).await.unwrap();
        assert_eq!(written, counts(Outcome::Done, 0, 0, 1), "{command:?}");
        fixture.run(&command).await;
        fixture.put(epoch, &history.document(7)).await;
        assert_eq!(fixture.text(history.wallet).await.as_ref(), Some(&text), "{command:?}");
    }
}

#[tokio::test]
async fn a_full_redis_loses_documents_and_keeps_none_that_is_outdated() {
    let (fixture, epoch) = Fixture::begun().await;
    let histories: Vec<History> = (0..50).map(|_| History::new(30)).collect();
    let at = |version| histories.iter().map(|history| history.document(version)).collect::<Vec<_>>();
    fixture.model.put(Some(epoch), &at(20)).await.unwrap();
    fixture.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let used = fixture.used_memory().await;
    for _ in 0..20 {
        let written = fixture.model.put(Some(epoch), &at(21)).await.unwrap();
        assert_eq!(written, counts(Outcome::Done, 0, 0, 50));
    }
    let changes: Vec<_> = histories.iter().map(|history| history.change(20, 21)).collect();
    assert_eq!(fixture.model.put_changes(Some(epoch), &changes).await.unwrap(), counts(Outcome::Done, 0, 0, 0));
    assert_eq!(fixture.version(histories[0].wallet).await, None);
    assert!(fixture.used_memory().await <= used, "nothing is written beyond the limit");
    // The mark moves all the same: a document that is missing is certain.
    for (offset, documents) in [(11, vec![]), (12, at(22))] {
        let advanced = fixture.advance(epoch, &documents, 10, offset, 1).await.unwrap();
        assert_eq!(advanced.outcome, Outcome::Done);
        assert_eq!(fixture.model.mark().await.unwrap().unwrap().offset(), offset);
    }
    let begun = mark(Epoch::random(), 13, 1);
    assert!(fixture.model.begin(Some(epoch), &begun).await.unwrap());
    fixture.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(fixture.put(begun.epoch, &at(22)[0]).await.written_count, 1);
}

#[tokio::test]
async fn a_redis_put_back_to_an_older_state_is_not_believed() {
    let mut fixture = Fixture::start(&["--appendonly", "no"]).await;
    let epoch = fixture.begin().await;
    let history = History::new(9);
    fixture.put(epoch, &history.document(7)).await;
    fixture.run(&["SAVE"]).await;
    fixture.advance(epoch, &[history.document(8)], 10, 11, 1).await.unwrap();
    assert_eq!(fixture.version(history.wallet).await, Some(8));
    fixture.redis.kill().await;
    fixture.redis.start_again().await;
    fixture.connection = connect(&fixture.redis).await;
    tests::wait_until("the model is back", async || fixture.model.mark().await.is_ok()).await;
    assert_eq!(fixture.model.mark().await, Ok(Some(mark(epoch, 10, -1))), "it is back");
    assert!(fixture.text(history.wallet).await.unwrap().contains(r#""version_id":7"#));
    assert_eq!(fixture.version(history.wallet).await, None, "this reader has seen a later mark");
    // The projector's bound is 11.
    let advanced = fixture.advance(epoch, &[], 11, 12, 1).await.unwrap();
    assert_eq!(advanced.outcome, Outcome::Behind);
    // A reader that starts now believes it, until the projector begins the next epoch.
    let other = model_on(&fixture.redis, WAIT).await;
    assert_eq!(other.head(history.wallet).await.unwrap().map(|head| head.version), Some(7));
    fixture.begin().await;
    assert_eq!(other.head(history.wallet).await, Ok(None));
}

#[tokio::test]
async fn two_logs_share_a_redis() {
    let (fixture, epoch) = Fixture::begun().await;
    let other =
        wallet::model::Model::start(stream::redis::client(&fixture.redis.url()).unwrap(), &format!("{LOG}:2"), WAIT);
    tests::wait_until("the model is connected", async || other.mark().await.is_ok()).await;
    let begun = mark(Epoch::random(), 3, 3);
    assert!(other.begin(None, &begun).await.unwrap());
    let history = History::new(9);
    fixture.put(epoch, &history.document(7)).await;
    assert_eq!(other.head(history.wallet).await, Ok(None));
    assert_eq!(other.put(Some(begun.epoch), &[history.document(3)]).await.unwrap(), counts(Outcome::Done, 1, 0, 0));
    assert_eq!(fixture.version(history.wallet).await, None);
}

impl Fixture {
    async fn used_memory(&self) -> i64 {
        let redis::Value::BulkString(info) = self.run(&["INFO", "memory"]).await else { panic!("no info") };
        let info = String::from_utf8(info).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:")).unwrap();
        line.parse().unwrap()
    }
}
