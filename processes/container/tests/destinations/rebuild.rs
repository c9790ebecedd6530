//! The board is built again when Redis has forgotten.

use container::board::{Board, Past};
use container::destination::{Destination, Outcome, Refusal, Unit};
use futures_util::{StreamExt, stream};

use crate::world::{PATIENCE, Redis, again, unit};

fn stored(unit: &Unit) -> Past {
    let Unit { uow, key, attempt, .. } = *unit;
    Past { uow, key, attempt, subject: unit.subject.clone(), document: Some(unit.document.clone()) }
}

fn undone(unit: &Unit) -> Past {
    Past { document: None, ..stored(unit) }
}

async fn rebuild(board: &Board, past: &[Past]) {
    let lost = board.is_lost().await.unwrap().expect("the board is lost");
    board.rebuild(lost, stream::iter(past.iter().cloned().map(Ok))).await.unwrap();
}

#[tokio::test]
async fn the_board_is_lost_until_it_is_built_on_this_start_of_the_server() {
    let mut redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    rebuild(&board, &[]).await;
    assert_eq!(board.is_lost().await.unwrap(), None);
    redis.restart_empty().await;
    board.is_lost().await.unwrap_err();
    assert!(board.is_lost().await.unwrap().is_some(), "it connects anew after an error");
    rebuild(&board, &[]).await;
    redis.run::<()>(&["FLUSHALL"]).await;
    assert!(board.is_lost().await.unwrap().is_some());
}

#[tokio::test]
async fn a_rebuild_brings_back_effects_and_tombstones() {
    let mut redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let (older, newer, other) = (unit(9, "7", 2), unit(10, "7", 5), unit(11, "8", 1));
    let retried = again(&other, 2);
    redis.restart_empty().await;
    rebuild(&board, &[undone(&other), stored(&newer), stored(&retried), stored(&older)]).await;
    assert_eq!(board.leaders(10).await.unwrap(), [("7".to_owned(), 5), ("8".to_owned(), 1)]);
    assert_eq!(board.store(&other).await, Outcome::Failed(Refusal::undone()));
}

#[tokio::test]
async fn a_rebuild_takes_back_an_effect_whose_undo_was_lost() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let unit = unit(9, "7", 2);
    // Redis has kept the store and has lost the undo.
    assert_eq!(board.store(&unit).await, Outcome::Stored);
    rebuild(&board, &[undone(&unit)]).await;
    assert!(board.leaders(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_rebuild_does_not_store_what_is_undone_meanwhile() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let unit = unit(9, "7", 2);
    let lost = board.is_lost().await.unwrap().unwrap();
    let in_flight = stored(&unit);
    board.undo(unit.reference()).await.unwrap();
    board.rebuild(lost, stream::iter([Ok(in_flight)])).await.unwrap();
    assert!(board.leaders(10).await.unwrap().is_empty());
    assert_eq!(board.is_lost().await.unwrap(), None);
}

#[tokio::test]
async fn a_rebuild_that_fails_leaves_the_board_lost() {
    let mut redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let lost = board.is_lost().await.unwrap().unwrap();
    let past = [Ok(stored(&unit(9, "7", 2))), Err(anyhow::anyhow!("Postgres is away"))];
    let error = board.rebuild(lost.clone(), stream::iter(past)).await.unwrap_err();
    assert!(format!("{error:#}").contains("Postgres is away"), "{error:#}");
    assert!(board.is_lost().await.unwrap().is_some());
    // A server that restarts during the rebuild has another run id, so the mark of the rebuild does not fit it.
    redis.restart_empty().await;
    board.is_lost().await.unwrap_err();
    board.rebuild(lost, stream::iter([])).await.unwrap();
    assert!(board.is_lost().await.unwrap().is_some());
}

#[tokio::test]
async fn a_redis_that_forgets_once_more_during_a_rebuild_leaves_the_board_lost() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let (first, second, third) = (unit(9, "7", 2), unit(10, "8", 1), unit(11, "9", 1));
    let lost = board.is_lost().await.unwrap().unwrap();
    let forgetting = stream::once(async {
        assert_eq!(board.leaders(10).await.unwrap(), [("7".to_owned(), 2)]);
        redis.run::<()>(&["FLUSHALL"]).await;
        Ok(stored(&second))
    });
    let began = stream::iter([Ok(stored(&first))]).chain(stream::once(async {
        while board.leaders(10).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        Ok(undone(&third))
    }));
    let error = board.rebuild(lost, began.chain(forgetting)).await.unwrap_err();
    assert!(format!("{error:#}").contains("forgotten once more"), "{error:#}");
    assert!(board.is_lost().await.unwrap().is_some());
    rebuild(&board, &[stored(&first), stored(&second)]).await;
    assert_eq!(board.leaders(10).await.unwrap(), [("7".to_owned(), 2), ("8".to_owned(), 1)]);
    assert_eq!(redis.run::<Vec<String>>(&["KEYS", "container:rebuild:*"]).await, [""; 0]);
}

/// An attempt may be in flight for long.
#[tokio::test]
async fn a_rebuild_that_waits_sees_that_redis_forgets_once_more() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let lost = board.is_lost().await.unwrap().unwrap();
    let waiting = stream::once(async {
        redis.run::<()>(&["FLUSHALL"]).await;
        std::future::pending().await
    });
    let rebuilt = tokio::time::timeout(PATIENCE, board.rebuild(lost, waiting)).await;
    let error = rebuilt.expect("it does not wait any more").unwrap_err();
    assert!(format!("{error:#}").contains("forgotten once more"), "{error:#}");
}
