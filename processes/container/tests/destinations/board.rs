//! The board in a real Redis.

use container::board::Board;
use container::destination::{Destination, Outcome, Refusal, Unit, UnitRef};

use crate::world::{Redis, again, unit};

async fn leaders(board: &Board) -> Vec<(String, u64)> {
    board.leaders(10).await.unwrap()
}

fn leader(subject: &str, count: u64) -> (String, u64) {
    (subject.to_owned(), count)
}

async fn store(board: &Board, unit: &Unit) {
    assert_eq!(board.store(unit).await, Outcome::Stored);
}

#[tokio::test]
async fn rides_are_ordered_by_their_passengers_and_a_second_store_changes_nothing() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    for unit in [unit(1, "7", 2), unit(2, "8", 5), unit(3, "9", 0)] {
        store(&board, &unit).await;
        store(&board, &unit).await;
    }
    assert_eq!(leaders(&board).await, [leader("8", 5), leader("7", 2), leader("9", 0)]);
    assert_eq!(board.leaders(1).await.unwrap(), [leader("8", 5)]);
}

#[tokio::test]
async fn a_document_without_passengers_is_refused_for_good() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    for document in [r#"{"ride_id":7}"#, r#"{"ride_id":7,"passengers":3}"#, "[]", ""] {
        let mut unit = unit(1, "7", 2);
        unit.document = document.into();
        let outcome = board.store(&unit).await;
        let is_final = matches!(&outcome, Outcome::Failed(refusal) if refusal.status == 422 && !refusal.is_passing());
        assert!(is_final, "{document}: {outcome:?}");
    }
    assert!(leaders(&board).await.is_empty());
}

#[tokio::test]
async fn a_second_undo_changes_nothing_and_a_late_store_is_refused() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let (older, newer) = (unit(1, "7", 2), unit(2, "7", 5));
    store(&board, &older).await;
    store(&board, &newer).await;
    for _ in 0..2 {
        board.undo(newer.reference()).await.unwrap();
        assert_eq!(leaders(&board).await, [leader("7", 2)], "the previous arrival counts again");
    }
    assert_eq!(board.store(&newer).await, Outcome::Failed(Refusal::undone()));
    board.undo(older.reference()).await.unwrap();
    assert!(leaders(&board).await.is_empty());
}

#[tokio::test]
async fn an_undo_before_the_store_refuses_it() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let unit = unit(1, "7", 2);
    board.undo(unit.reference()).await.unwrap();
    assert_eq!(board.store(&unit).await, Outcome::Failed(Refusal::undone()));
    assert!(leaders(&board).await.is_empty());
}

#[tokio::test]
async fn a_late_undo_of_the_first_attempt_does_not_touch_the_second() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let first = unit(1, "7", 2);
    let second = again(&first, 2);
    // A worker that was stopped has stored the first attempt; its undo comes after the second attempt.
    store(&board, &first).await;
    store(&board, &second).await;
    for _ in 0..2 {
        board.undo(first.reference()).await.unwrap();
        assert_eq!(leaders(&board).await, [leader("7", 2)]);
    }
    board.undo(second.reference()).await.unwrap();
    assert!(leaders(&board).await.is_empty());
}

#[tokio::test]
async fn a_retry_of_an_older_unit_does_not_win_over_a_newer_one() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    // In the order of text, 9 would be newer than 10.
    let (older, newer) = (unit(9, "7", 2), unit(10, "7", 5));
    store(&board, &newer).await;
    store(&board, &older).await;
    assert_eq!(leaders(&board).await, [leader("7", 5)]);
}

#[tokio::test]
async fn a_forgotten_unit_leaves_its_effect_and_no_register() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let (older, newer) = (unit(9, "7", 2), unit(10, "7", 5));
    let retried = again(&newer, 2);
    store(&board, &older).await;
    board.undo(newer.reference()).await.unwrap();
    store(&board, &retried).await;
    for _ in 0..2 {
        board.forget(retried.reference()).await.unwrap();
        assert_eq!(leaders(&board).await, [leader("7", 5)]);
    }
    let arrivals: Vec<String> = redis.run(&["ZRANGE", "container:arrivals:7", "0", "-1"]).await;
    assert_eq!(arrivals, [format!("{}.2.5", newer.key)], "no older arrival will count again");
    board.forget(older.reference()).await.unwrap();
    let registers: Vec<String> = redis.run(&["KEYS", "container:unit:*"]).await;
    assert!(registers.is_empty(), "{registers:?}");
}

#[tokio::test]
async fn an_undone_unit_that_is_forgotten_takes_no_other_arrival_with_it() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let (older, undone) = (unit(9, "7", 2), unit(10, "7", 5));
    // After Postgres was put back, a number comes again.
    let same_number = unit(10, "7", 3);
    for unit in [&older, &same_number, &undone] {
        store(&board, unit).await;
    }
    board.undo(undone.reference()).await.unwrap();
    board.forget(undone.reference()).await.unwrap();
    board.undo(same_number.reference()).await.unwrap();
    assert_eq!(leaders(&board).await, [leader("7", 2)]);
}

#[tokio::test]
async fn a_redis_that_is_away_is_a_passing_failure() {
    let mut redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let unit = unit(1, "7", 2);
    store(&board, &unit).await;
    redis.kill();
    let outcome = board.store(&unit).await;
    assert!(matches!(&outcome, Outcome::Failed(refusal) if refusal.status == 503), "{outcome:?}");
    assert_eq!(board.undo(unit.reference()).await.unwrap_err().status, 503);
    redis.restart_empty().await;
    store(&board, &unit).await;
}

#[tokio::test]
async fn a_key_of_another_type_fails_before_anything_is_written() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let unit = unit(1, "7", 2);
    redis.run::<()>(&["SET", "container:board", "of another program"]).await;
    let outcome = board.store(&unit).await;
    assert!(matches!(&outcome, Outcome::Failed(refusal) if refusal.reason.contains("WRONGTYPE")), "{outcome:?}");
    let keys: Vec<String> = redis.run(&["KEYS", "*"]).await;
    assert_eq!(keys, ["container:board"]);
    let unit = UnitRef { attempt: 2, ..unit.reference() };
    board.undo(unit).await.unwrap_err();
}
