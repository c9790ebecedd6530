//! Replays of dead letters: each is folded once, whatever runs at the same time.

use common::shutdown::CancellationToken;
use consumer::{Consumer, DistanceFold, Fault, FoldId, Interruption, Rejection, Replay, State, StateFold};
use pglog::Record;
use serde::{Deserialize, Serialize};
use tests::{Process, World};

use crate::bootstrap::{Traffic, converge, more_rides};

/// An older distance fold, which rejects every fifth record.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Yesterday(DistanceFold);

impl StateFold for Yesterday {
    const ID: FoldId = DistanceFold::ID;

    fn takes(&self, object: &str, action: &str) -> bool {
        self.0.takes(object, action)
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        if record.offset % 5 == 0 { Err(Rejection("not yet".to_owned())) } else { self.0.apply(record) }
    }

    fn summary(&self) -> String {
        self.0.summary()
    }
}

/// A world in which the consumer `name` has folded `count` rides and rejected every fifth, which today's fold accepts.
pub async fn with_rejected(name: &str, count: i64) -> World {
    let world = World::new().await;
    world.write_rides(count).await;
    world.drain_streamer(&mut world.streamer()).await;
    let fold = State::<Yesterday>::default();
    let mut consumer = Consumer::new(&world.consumer_config(name), fold, CancellationToken::new());
    let progress = consumer.run_once(Fault::None, None).await.unwrap();
    assert_eq!(progress.dead_letter_count as i64, count / 5);
    world
}

fn dead_letters(world: &World, args: &[&str]) -> Process {
    Process::start(world, "dead-letters", args)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_during_traffic_is_neither_lost_nor_doubled() {
    let world = with_rejected("consumer0", 100).await;
    let generation = "SELECT generation FROM checkpoints WHERE name = 'consumer0'";
    let generation_before = world.number(generation).await;
    let traffic = Traffic::start(&world).await;
    let processes = [
        Process::start(&world, "streamer", &["--fault-rate", "0.1"]),
        Process::start(&world, "consumer", &["consumer0", "--fault-rate", "0.1"]),
        Process::start(&world, "consumer", &["fresh"]),
    ];
    for offset in (5..=100).step_by(5) {
        let offset = offset.to_string();
        more_rides(&world, 5).await;
        // Two replays at once: exactly one of them folds the record.
        let args = ["replay", "consumer0", &offset];
        let mut pair = [dead_letters(&world, &args), dead_letters(&world, &args)];
        let [first, second] = &mut pair;
        let (first, second) = tokio::join!(first.ended(), second.ended());
        assert!(first.success() != second.success(), "offset {offset}: {first}, {second}");
    }
    more_rides(&world, 5).await;
    traffic.stop().await;
    converge(&world, &["consumer0", "fresh"]).await;
    assert_eq!(world.number("SELECT count(*) FROM dead_letters").await, 0);
    assert_eq!(world.number(generation).await - generation_before, 20);
    for process in processes {
        process.stop().await;
    }
}

#[tokio::test]
async fn a_consumer_that_runs_does_not_save_over_a_replay() {
    let world = with_rejected("consumer0", 10).await;
    let mut consumer = world.consumer("consumer0");
    // The consumer has loaded its state and keeps it in memory.
    world.drain_consumer(&mut consumer).await;
    let replay = async |offset| {
        let (mut client, mut fold) = (world.connect().await, State::<DistanceFold>::default());
        consumer::replay(&mut client, &mut fold, "consumer0", pglog::Partition::FIRST, offset).await.unwrap()
    };
    assert_eq!(replay(5).await, Replay::Applied);
    assert_eq!(replay(5).await, Replay::NotThere, "the record is folded once");
    world.write_rides(10).await;
    world.drain_streamer(&mut world.streamer()).await;
    let error = consumer.run_once(Fault::None, None).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Interruption::Fenced)), "{error:#}");
    world.drain_consumer(&mut consumer).await;
    assert_eq!(replay(10).await, Replay::Applied);
    world.drain_consumer(&mut world.consumer("fresh")).await;
    world.assert_converged(&["consumer0", "fresh"]).await;
}

#[tokio::test]
async fn what_is_still_rejected_stays_with_the_new_reason() {
    let world = World::new().await;
    world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
    world.carry_rides(1, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    world.client().batch_execute("UPDATE dead_letters SET reason = 'an old one'").await.unwrap();
    let generation = world.number("SELECT generation FROM checkpoints").await;
    for which in ["1", "--all"] {
        let output = dead_letters(&world, &["replay", "consumer0", which]).fail(1).await;
        assert!(output.contains("consumer0 1: still rejected, and kept: distance_mm -5 is not"), "{output}");
    }
    assert_eq!(world.number("SELECT generation FROM checkpoints").await, generation);
    let output = dead_letters(&world, &["list"]).succeed().await;
    assert!(output.starts_with("consumer0 1 ride create: distance_mm -5 is not between"), "{output}");
    let output = dead_letters(&world, &["show", "consumer0", "1"]).succeed().await;
    assert!(output.contains(r#"{"id":1,"distance_mm":-5}"#) && output.contains("reason   distance_mm -5"), "{output}");
    dead_letters(&world, &["drop", "consumer0", "1"]).succeed().await;
    let output = dead_letters(&world, &["list", "--name", "consumer0"]).succeed().await;
    assert!(output.trim_end().ends_with("(dropped)"), "{output}");
    dead_letters(&world, &["replay", "consumer0", "--all"]).succeed().await;
    world.assert_converged(&["consumer0"]).await;
}

#[tokio::test]
async fn all_dead_letters_are_replayed_with_one_command() {
    let world = with_rejected("consumer0", 500).await;
    dead_letters(&world, &["drop", "consumer0", "5"]).succeed().await;
    let output = dead_letters(&world, &["replay", "consumer0", "--all"]).succeed().await;
    assert_eq!(output.lines().filter(|line| line.ends_with(": folded")).count(), 99, "{output}");
    dead_letters(&world, &["replay", "consumer0", "5"]).succeed().await;
    world.drain_consumer(&mut world.consumer("fresh")).await;
    world.assert_converged(&["consumer0", "fresh"]).await;
    let output = dead_letters(&world, &["replay", "consumer0", "5"]).fail(1).await;
    assert!(output.contains("has no dead letter at offset 5"), "{output}");
    let output = dead_letters(&world, &["replay", "nobody", "5"]).fail(1).await;
    assert!(output.contains("no consumer \"nobody\""), "{output}");
    dead_letters(&world, &["replay", "consumer0"]).fail(2).await;
}
