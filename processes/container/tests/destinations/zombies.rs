//! Store and undo of one attempt overtake each other (C4): two workers each do some of them, in a random order and at random times,
//! and a worker may give a store up while it is in flight. With an undo among them the attempt ends undone, and otherwise it may
//! be stored. It holds for every kind of destination.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use container::board::Board;
use container::destination::{Outcome, Refusal, Unit};
use container::files::Files;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::yield_now;
use tokio::time::timeout;
use uuid::Uuid;

use crate::world::{Any, Folder, Receiver, Redis, again, unit};

#[derive(Debug, Clone, Copy)]
enum Step {
    Store,
    /// A store that is given up after so many microseconds.
    GiveUp(u64),
    Undo,
}

/// The state of an attempt at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    Stored,
    Undone,
}

fn draw(rng: &mut SmallRng) -> Vec<Step> {
    (0..rng.random_range(0..4))
        .map(|_| match rng.random_range(0..4) {
            0 | 1 => Step::Store,
            2 => Step::GiveUp(rng.random_range(0..1500)),
            _ => Step::Undo,
        })
        .collect()
}

/// Does the steps. A store after an own undo must be refused.
async fn work(destination: Any, unit: Arc<Unit>, steps: Vec<Step>, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut is_undone = false;
    for step in steps {
        for _ in 0..rng.random_range(0..20) {
            yield_now().await;
        }
        match step {
            Step::Store => match destination.store(&unit).await {
                Outcome::Stored => assert!(!is_undone, "an undone attempt was stored"),
                Outcome::Failed(Refusal { status: 409, .. }) => {}
                outcome => panic!("{outcome:?}"),
            },
            Step::GiveUp(wait_us) => {
                let _ = timeout(Duration::from_micros(wait_us), destination.store(&unit)).await;
            }
            Step::Undo => {
                destination.undo(unit.reference()).await.unwrap();
                is_undone = true;
            }
        }
    }
}

/// The steps of one unit, and what they allow at the end.
struct Round {
    first: Arc<Unit>,
    steps: Vec<Step>,
}

impl Round {
    fn allows(&self, end: End) -> bool {
        if self.steps.iter().any(|step| matches!(step, Step::Undo)) {
            return end == End::Undone;
        }
        match end {
            End::Stored => !self.steps.is_empty(),
            End::Nothing => !self.steps.iter().any(|step| matches!(step, Step::Store)),
            End::Undone => false,
        }
    }
}

/// Runs the rounds. In each, the second attempt is stored at the same time.
async fn race(destination: Any, seed: u64, round_count: i64) -> Vec<Round> {
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut rounds = Vec::new();
    for uow in 0..round_count {
        let unit = unit(uow, &format!("ride {uow}"), 2);
        let second = Arc::new(again(&unit, 2));
        let (first, steps) = (Arc::new(unit), [draw(&mut rng), draw(&mut rng)]);
        let spawn = |unit: &Arc<Unit>, steps: &[Step], seed| {
            tokio::spawn(work(Arc::clone(&destination), Arc::clone(unit), steps.to_vec(), seed))
        };
        let workers = [
            spawn(&first, &steps[0], rng.random()),
            spawn(&first, &steps[1], rng.random()),
            spawn(&second, &[Step::Store], rng.random()),
        ];
        for worker in workers {
            worker.await.unwrap();
        }
        rounds.push(Round { first, steps: steps.concat() });
    }
    rounds
}

fn check(rounds: &[Round], end_of: impl Fn(Uuid, i32) -> End) {
    for Round { first, steps } in rounds {
        let end = end_of(first.key, 1);
        assert!(Round { first: Arc::clone(first), steps: steps.clone() }.allows(end), "{end:?} after {steps:?}");
        assert_eq!(end_of(first.key, 2), End::Stored, "the second attempt after {steps:?} of the first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_end_undone_if_an_undo_is_among_the_steps() {
    let folder = Folder::new();
    let files = Arc::new(Files::open(folder.path(), "photo").await.unwrap());
    let rounds = race(Arc::clone(&files) as Any, rand::random(), 300).await;
    check(&rounds, |key, attempt| match std::fs::metadata(files.path(key, attempt)) {
        Err(_) => End::Nothing,
        Ok(file) if file.len() == 0 => End::Undone,
        Ok(_) => End::Stored,
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_board_ends_undone_if_an_undo_is_among_the_steps() {
    let redis = Redis::start().await;
    let rounds = race(Arc::new(Board::new(redis.client(), "container")), rand::random(), 500).await;
    let (mut registers, mut arrivals) = (HashMap::new(), HashMap::new());
    for Round { first, .. } in &rounds {
        let register: HashMap<i32, String> = redis.run(&["HGETALL", &format!("container:unit:{}", first.key)]).await;
        let key = format!("container:arrivals:{}", first.subject);
        let arrived: Vec<String> = redis.run(&["ZRANGE", &key, "0", "-1"]).await;
        registers.insert(first.key, register);
        arrivals.insert(first.key, arrived);
    }
    check(&rounds, |key, attempt| {
        let has_arrived = arrivals[&key].contains(&format!("{key}.{attempt}.2"));
        let end = match registers[&key].get(&attempt).map(String::as_str) {
            None => End::Nothing,
            Some("undone") => End::Undone,
            Some(_) => End::Stored,
        };
        assert_eq!(has_arrived, end == End::Stored, "the effect is there if the register says so");
        end
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_receiver_ends_undone_if_an_undo_is_among_the_steps() {
    let folder = Folder::new();
    let receiver = Receiver::start(&folder).await;
    let rounds = race(Arc::new(receiver.webhook()), rand::random(), 200).await;
    let told = receiver.told().await;
    // The receiver that reads its journal after a kill decides as it did before.
    receiver.kill().await;
    assert_eq!(Receiver::start(&folder).await.told().await, told);
    let states: HashMap<(Uuid, i32), bool> = told
        .iter()
        .map(|told| {
            let key = told["unit"].as_str().unwrap().parse().unwrap();
            ((key, told["attempt"].as_i64().unwrap() as i32), told["state"] == "stored")
        })
        .collect();
    check(&rounds, |key, attempt| match states.get(&(key, attempt)) {
        None => End::Nothing,
        Some(true) => End::Stored,
        Some(false) => End::Undone,
    });
}
