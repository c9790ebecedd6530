//! The whole life of a fold: a new version beside the old one, built from the history after everything was reaped, and the end
//! of the old consumer, whose state or rows go with its registration.

use common::shutdown::CancellationToken;
use consumer::{
    CheckpointKey, Consumer, Fault, Fold, FoldId, Interruption, Progress, Rejection, RowFold, Rows, RowsOf, Start,
    State, StateFold, Statement,
};
use pglog::{Partition, Record};
use serde::{Deserialize, Serialize};
use tests::{Process, World};

/// Archives every record, and deletes all of them from the log and from the stream.
pub async fn archive_and_reap(world: &World) {
    Process::start(world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    Process::start(world, "reaper", &["--once", "--keep", "0s"]).succeed().await;
    assert_eq!(world.number("SELECT count(*) FROM staged_log_records").await, 0, "everything is reaped");
    redis::cmd("DEL").arg(world.stream_name()).exec_async(&mut world.redis().await).await.unwrap();
    let head = pglog::head(world.client(), Partition::FIRST).await.unwrap();
    let archived = "SELECT count(*) FROM history_ranges WHERE first_offset = 1 AND last_offset = ";
    assert_eq!(world.number(&format!("{archived}{head}")).await, 1, "the history has all of it");
}

/// Replaces the payload of a dead letter. This stands for a corrected fold, which accepts the payload that was rejected.
pub async fn correct_letter(world: &World, name: &str, offset: i64, data: &str) {
    let correct = "UPDATE dead_letters SET data = $3 WHERE name = $1 AND record_offset = $2";
    assert_eq!(world.client().execute(correct, &[&name, &offset, &data]).await.unwrap(), 1);
}

/// Stages a ride that no fold accepts. Its row in `rides` is right, and so is the payload that is returned.
pub async fn stage_spoiled_ride(world: &World) -> String {
    let write = "INSERT INTO rides (distance_mm) VALUES (77777777) RETURNING json_build_object('id', id, 'distance_mm', \
                 distance_mm)::text";
    let data = world.client().query_one(write, &[]).await.unwrap().get(0);
    world.stage_data(r#"{"distance":"77.8 km"}"#).await;
    data
}

/// The fields of `ride create`.
#[derive(Deserialize)]
struct Ride {
    distance_mm: i64,
}

fn parse(record: &Record<'_>) -> Result<i64, Rejection> {
    let ride: Ride = serde_json::from_str(record.data).map_err(|error| Rejection(error.to_string()))?;
    Ok(ride.distance_mm)
}

/// The sum of the distances in a unit that depends on the version: millimetres, then metres.
#[derive(Default, Serialize, Deserialize)]
struct Sum<const VERSION: i32> {
    sum: i64,
}

/// The divisor of a version.
const fn unit(version: i32) -> i64 {
    if version == 1 { 1 } else { 1000 }
}

impl<const VERSION: i32> StateFold for Sum<VERSION> {
    const ID: FoldId = FoldId { name: "sum", version: VERSION };

    fn takes(&self, object: &str, _action: &str) -> bool {
        object == "ride"
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.sum += parse(record)? / unit(VERSION);
        Ok(())
    }

    fn summary(&self) -> String {
        format!("sum={}", self.sum)
    }
}

/// The same sum as a row in a table.
#[derive(Default)]
struct SumRow<const VERSION: i32> {
    added: i64,
}

const SUM_ROWS: &str = "CREATE TABLE sum_rows (
        name TEXT, partition INT, sum BIGINT NOT NULL, PRIMARY KEY (name, partition),
        FOREIGN KEY (name, partition) REFERENCES checkpoints ON DELETE CASCADE);
    GRANT SELECT, INSERT, UPDATE ON sum_rows TO rocket_consumer";

impl<const VERSION: i32> RowFold for SumRow<VERSION> {
    const ID: FoldId = FoldId { name: "sum-row", version: VERSION };

    const ROWS: RowsOf = RowsOf::Each {
        tables: &["sum_rows"],
        copy: "INSERT INTO sum_rows SELECT $2, partition, sum FROM sum_rows WHERE name = $1 AND partition = $3",
    };

    fn takes(&self, object: &str, _action: &str) -> bool {
        object == "ride"
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        self.added += parse(record)? / unit(VERSION);
        Ok(())
    }

    fn statements(&mut self, key: &CheckpointKey) -> Vec<Statement> {
        let adding = Statement::new(
            "INSERT INTO sum_rows VALUES ($1, $2, $3)
             ON CONFLICT (name, partition) DO UPDATE SET sum = sum_rows.sum + excluded.sum",
        );
        vec![adding.with(key.name.clone()).with(key.partition).with(std::mem::take(&mut self.added))]
    }
}

/// A consumer with a fold of this program, as a process of the consumer's role would run it.
fn consumer_of<F: Fold>(world: &World, name: &str, fold: F) -> Consumer<F> {
    let mut config = world.consumer_config(name);
    config.from = Start::Start;
    Consumer::new(&config, fold, CancellationToken::new())
}

/// Folds until nothing is left. Every other step crashes before it commits.
async fn drain<F: Fold>(consumer: &mut Consumer<F>) {
    loop {
        if let Err(error) = consumer.run_once(Fault::CrashBeforeCommit, None).await {
            assert!(matches!(error.downcast_ref(), Some(Interruption::Crash)), "{error:#}");
        }
        if consumer.run_once(Fault::None, None).await.unwrap() == Progress::default() {
            return;
        }
    }
}

/// `result` is a query for the result of consumer `$1`.
async fn a_new_version_takes_the_place_of_the_old<Old: Fold, New: Fold>(
    world: &World,
    folds: (impl Fn() -> Old, impl Fn() -> New),
    result: &str,
) {
    let (old, new) = folds;
    let result_of = async |name: &str| world.client().query_one(result, &[&name]).await.unwrap().get::<_, i64>(0);
    world.write_rides(3000).await;
    let spoiled = stage_spoiled_ride(world).await;
    world.drain_streamer(&mut world.streamer()).await;
    drain(&mut consumer_of(world, "sum-old", old())).await;
    archive_and_reap(world).await;

    // The state of the old version is none of the new version's.
    let error = consumer_of(world, "sum-old", new()).run_once(Fault::None, None).await.unwrap_err();
    let told = error.to_string();
    for words in ["version 1, and this program has version 2", "NEW --fold sum", "--from start", "sum-old --unregister"]
    {
        assert!(told.contains(words), "{words:?} is missing: {told}");
    }

    // The new version reads the reaped records from the history, and later ones from the stream.
    drain(&mut consumer_of(world, "sum-new", new())).await;
    let spoiled_offset = world.number("SELECT min(record_offset) FROM dead_letters").await;
    for name in ["sum-old", "sum-new"] {
        correct_letter(world, name, spoiled_offset, &spoiled).await;
    }
    let mut client = world.connect().await;
    let replayed =
        consumer::replay(&mut client, &mut new(), "sum-new", Partition::FIRST, spoiled_offset).await.unwrap();
    assert_eq!(replayed, consumer::Replay::Applied);
    let mixed =
        consumer::replay(&mut client, &mut new(), "sum-old", Partition::FIRST, spoiled_offset).await.unwrap_err();
    assert!(mixed.to_string().contains("version 1"), "{mixed:#}");
    world.write_rides(500).await;
    world.drain_streamer(&mut world.streamer()).await;
    drain(&mut consumer_of(world, "sum-new", new())).await;
    drain(&mut consumer_of(world, "sum-old", old())).await;
    let metres = world.number("SELECT sum(distance_mm / 1000)::bigint FROM rides").await;
    let millimetres = world.number("SELECT sum(distance_mm)::bigint FROM rides").await;
    assert_eq!(result_of("sum-new").await, metres);
    assert_eq!(result_of("sum-old").await, millimetres - 77_777_777, "one ride is among the dead letters");

    let client = world.connect_as("consumer").await;
    consumer::unregister(&client, "sum-old", &[Partition::FIRST]).await.unwrap();
    for table in ["checkpoints", "dead_letters"] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table} WHERE name = 'sum-old'")).await, 0, "{table}");
    }
    assert!(world.client().query_opt(result, &[&"sum-old"]).await.unwrap().is_none(), "the result is gone");
    assert_eq!(result_of("sum-new").await, metres);
}

#[tokio::test]
async fn a_new_version_of_a_state_fold_takes_the_place_of_the_old() {
    let world = World::new().await;
    let folds = (State::<Sum<1>>::default, State::<Sum<2>>::default);
    let result = "SELECT (state->>'sum')::bigint FROM checkpoints WHERE name = $1";
    a_new_version_takes_the_place_of_the_old(&world, folds, result).await;
}

#[tokio::test]
async fn a_new_version_of_a_row_fold_takes_the_place_of_the_old() {
    let world = World::new().await;
    world.client().batch_execute(SUM_ROWS).await.unwrap();
    let folds = (Rows::<SumRow<1>>::default, Rows::<SumRow<2>>::default);
    a_new_version_takes_the_place_of_the_old(&world, folds, "SELECT sum FROM sum_rows WHERE name = $1").await;
}

#[tokio::test]
async fn a_copy_refuses_to_mix_folds() {
    let world = World::new().await;
    world.carry_rides(10, &mut world.streamer(), &mut world.consumer("distance0")).await;
    Process::start(&world, "consumer", &["history", "--fold", "history", "--drain"]).succeed().await;
    drain(&mut consumer_of(&world, "sum", State::<Sum<1>>::default())).await;
    for (source, fold, refusal) in [
        ("distance0", &["--fold", "history"][..], "has fold distance, and not history"),
        ("history", &["--fold", "distance"], "has fold history, and not distance"),
        ("sum", &[], "consumer sum has a fold of another program"),
    ] {
        let args = [&["new", "--copy-from", source], fold].concat();
        let output = Process::start(&world, "consumer", &args).fail(1).await;
        assert!(output.contains(refusal), "{output}");
    }
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE name = 'new'").await, 0);
    // Without --fold, a copy has the fold of its source.
    Process::start(&world, "consumer", &["new", "--copy-from", "history"]).succeed().await;
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE fold = 'history' AND last_offset = 10").await, 2);
}
