//! Every kind keeps the same contract. `rows` has no part in it: the transaction of the verdict writes its row, so there is nothing
//! to undo. The example `ledger` is checked with the integration tests.

use container::board::Board;
use container::contract;
use container::destination::{Destination, Outcome, Refusal, Unit, UnitRef};
use container::files::Files;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use crate::world::{Folder, Receiver, Redis, again, unit};

/// A unit about the same ride as every other.
fn make(uow: i64, key: Uuid, attempt: i32) -> Unit {
    again(&Unit { key, ..unit(uow, "7", 2) }, attempt)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_keep_the_contract() {
    let folder = Folder::new();
    let files = Files::open(folder.path(), "photo").await.unwrap();
    let has = async |unit: &Unit| {
        let file = std::fs::metadata(files.path(unit.key, unit.attempt));
        file.is_ok_and(|file| file.len() > 0)
    };
    contract::check(&files, make, has).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_board_keeps_the_contract() {
    let redis = Redis::start().await;
    let board = Board::new(redis.client(), "container");
    let has = async |unit: &Unit| {
        let arrivals: Vec<String> = redis.run(&["ZRANGE", "container:arrivals:7", "0", "-1"]).await;
        arrivals.contains(&format!("{}.{}.2", unit.key, unit.attempt))
    };
    contract::check(&board, make, has).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhook_and_its_receiver_keep_the_contract() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let webhook = receiver.webhook();
    let has = async |unit: &Unit| receiver.state(unit.key, unit.attempt).await.as_deref() == Some("stored");
    contract::check(&webhook, make, has).await.unwrap();
}

/// The ways in which a destination can break the contract.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Defect {
    /// An undo deletes the file, and leaves no tombstone.
    NoTombstone,
    /// An undo does nothing.
    NoUndo,
    /// An undo takes back every attempt of the unit.
    UndoesAllAttempts,
    /// A store is told to have failed if it is repeated.
    RefusesRepetition,
    /// A unit that is forgotten loses what it has stored.
    ForgetsAll,
}

/// Files with a defect.
struct Broken {
    files: Files,
    defect: Defect,
}

impl Broken {
    fn delete(&self, unit: UnitRef<'_>) {
        let _ = std::fs::remove_file(self.files.path(unit.key, unit.attempt));
    }
}

impl Destination for Broken {
    fn store<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            if self.defect == Defect::RefusesRepetition && self.files.path(unit.key, unit.attempt).exists() {
                return Outcome::Failed(Refusal::undone());
            }
            self.files.store(unit).await
        })
    }

    fn undo<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            match self.defect {
                Defect::NoTombstone => self.delete(unit),
                Defect::NoUndo => {}
                Defect::UndoesAllAttempts => {
                    for attempt in 1..=2 {
                        self.files.undo(UnitRef { attempt, ..unit }).await?;
                    }
                }
                Defect::RefusesRepetition | Defect::ForgetsAll => self.files.undo(unit).await?,
            }
            Ok(())
        })
    }

    fn forget<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            if self.defect == Defect::ForgetsAll {
                self.delete(unit);
            }
            self.files.forget(unit).await
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_breaks_the_contract_is_found_out() {
    for (defect, step) in [
        (Defect::NoTombstone, "a late store: a store of an undone attempt ended with Stored"),
        (Defect::NoUndo, "an undo: the destination has the part of attempt 1"),
        (Defect::UndoesAllAttempts, "attempt 2: the store ended with Failed"),
        (Defect::RefusesRepetition, "a second store: the store ended with Failed"),
        (Defect::ForgetsAll, "a unit is forgotten: the destination lacks the part of attempt 2"),
    ] {
        let folder = Folder::new();
        let files = Files::open(folder.path(), "photo").await.unwrap();
        let broken = Broken { files, defect };
        let has = async |unit: &Unit| {
            let file = std::fs::metadata(broken.files.path(unit.key, unit.attempt));
            file.is_ok_and(|file| file.len() > 0)
        };
        let told = contract::check(&broken, make, has).await.unwrap_err().to_string();
        assert!(told.starts_with(step), "{defect:?}: {told}");
    }
}
