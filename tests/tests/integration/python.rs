//! The examples in Python, which use only the tables and the stream of the project.

use serde_json::Value;
use streamer::{Fault, Step};
use tests::{Process, World, python_program, root, wait_until};
use tokio::process::Command;

use crate::examples::{assert_longest, example};
use crate::fold_life::{archive_and_reap, correct_letter, stage_spoiled_ride};

/// Starts an example in Python under a role.
pub fn python(world: &World, role: &str, args: &[&str]) -> Process {
    let mut command = Command::new(python_program("python"));
    command.args(args).current_dir(root().join("examples/python"));
    command.env("DATABASE_URL", world.database_url_of(role)).env("REDIS_URL", world.redis_url());
    command.env("STREAM_NAME", world.stream_name());
    Process::spawn(args[0], command)
}

async fn world_with_lengths() -> World {
    let world = World::new().await;
    world.client().batch_execute(include_str!("../../../examples/python/lengths.sql")).await.unwrap();
    world
}

/// The consumer has counted the rides of each length.
async fn assert_lengths(world: &World, name: &str) {
    let differing = format!(
        "SELECT count(*) FROM (SELECT distance_mm / 100000 * 100 AS metres, count(*) AS ride_count FROM rides GROUP BY 1) AS sql
         FULL JOIN (SELECT metres, ride_count FROM ride_lengths WHERE name = '{name}') AS derived USING (metres)
         WHERE sql.ride_count IS DISTINCT FROM derived.ride_count"
    );
    assert_eq!(world.number(&differing).await, 0, "{name}");
}

async fn last_offset(world: &World, name: &str) -> i64 {
    world.number(&format!("SELECT COALESCE(max(last_offset), 0) FROM checkpoints WHERE name = '{name}'")).await
}

#[tokio::test]
async fn python_stages_rides_and_folds_them_whatever_the_stream_does() {
    let world = world_with_lengths().await;
    let output = python(&world, "owner", &["stage.py", "12.5", "7", "980.001"]).succeed().await;
    assert!(output.contains("980001 mm"), "{output}");
    world.write_rides(2000).await;
    let mut streamer = world.streamer();
    while matches!(streamer.run_once(Fault::SendTwice).await.unwrap(), Step::Published(_)) {}

    // Some entries are lost, and a foreign entry is added.
    let mut redis = world.redis().await;
    for id in ["2-0", "2-1", "700-0", "700-1", "2003-0", "2003-1"] {
        let deleted_count: i64 =
            redis::cmd("XDEL").arg(world.stream_name()).arg(id).query_async(&mut redis).await.unwrap();
        assert_eq!(deleted_count, 1, "{id}");
    }
    let forged = redis::cmd("XADD")
        .arg(world.stream_name())
        .arg("2003-7")
        .arg("about")
        .arg("1 1 4 ride create")
        .arg("data")
        .arg(r#"{"id":1,"distance_mm":999999999}"#)
        .to_owned();
    forged.exec_async(&mut redis).await.unwrap();
    let drain_both = async || {
        let output = python(&world, "consumer", &["fold.py", "longest0", "--drain"]).succeed().await;
        assert!(output.starts_with("longest of "), "{output}");
        python(&world, "consumer", &["lengths.py", "lengths0", "--drain"]).succeed().await;
        assert_longest(&world, "longest0").await;
        assert_lengths(&world, "lengths0").await;
    };
    drain_both().await;
    assert_eq!(last_offset(&world, "longest0").await, 2003);

    // The folds go on from their offsets, without the stream.
    world.write_rides(10).await;
    world.drain_streamer(&mut streamer).await;
    redis::cmd("DEL").arg(world.stream_name()).exec_async(&mut redis).await.unwrap();
    drain_both().await;
}

#[tokio::test]
async fn python_folds_each_ride_once_however_often_it_is_killed() {
    let world = world_with_lengths().await;
    let mut streamer = world.streamer();
    for (script, name) in [("fold.py", "longest0"), ("lengths.py", "lengths0")] {
        for _ in 0..4 {
            let before = last_offset(&world, name).await;
            world.write_rides(3000).await;
            world.drain_streamer(&mut streamer).await;
            let process = python(&world, "consumer", &[script, name]);
            wait_until("it has moved", async || last_offset(&world, name).await > before).await;
            process.kill().await;
        }
    }
    for (script, name) in [("fold.py", "longest0"), ("lengths.py", "lengths0")] {
        // A second process of the same name takes turns with the first.
        let args = [script, name, "--drain"];
        for process in [python(&world, "consumer", &args), python(&world, "consumer", &args)] {
            process.succeed().await;
        }
    }
    assert_longest(&world, "longest0").await;
    assert_lengths(&world, "lengths0").await;
}

/// The process holds a state without the dead letter. The raised generation keeps it from committing that state.
#[tokio::test]
async fn python_saves_no_state_over_a_replay() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    world.write_rides(10).await;
    let spoiled = stage_spoiled_ride(&world).await;
    world.drain_streamer(&mut streamer).await;
    let process = python(&world, "consumer", &["fold.py", "longest0"]);
    wait_until("it has folded all", async || last_offset(&world, "longest0").await == 11).await;
    correct_letter(&world, "longest0", 11, &spoiled).await;
    python(&world, "operator", &["fold.py", "longest0", "--replay"]).succeed().await;
    world.write_rides(10).await;
    world.drain_streamer(&mut streamer).await;
    wait_until("it has folded the rest", async || last_offset(&world, "longest0").await == 21).await;
    process.kill().await;
    assert_longest(&world, "longest0").await;
}

/// A newer version of a fold, as a program.
fn version_2(module: &str, fold: &str) -> String {
    format!("import {module} as m; m.main(type('Newer', (m.{fold},), {{'VERSION': 2}}))")
}

#[tokio::test]
async fn python_folds_live_their_whole_lives() {
    let world = world_with_lengths().await;
    world.write_rides(2500).await;
    let spoiled = stage_spoiled_ride(&world).await;
    world.drain_streamer(&mut world.streamer()).await;
    let folds = [
        ("fold.py", "longest", version_2("fold", "Longest")),
        ("lengths.py", "lengths", version_2("lengths", "Lengths")),
    ];
    for (script, old, _) in &folds {
        python(&world, "consumer", &[script, old, "--drain"]).succeed().await;
    }
    archive_and_reap(&world).await;
    let letter = world.number("SELECT min(record_offset) FROM dead_letters").await;
    for (script, old, newer) in &folds {
        let new = format!("new-{old}");
        let output = python(&world, "consumer", &["-c", newer, old, "--drain"]).fail(1).await;
        assert!(output.contains(&format!("fold {old} version 1, and not with {old} version 2")), "{output}");
        python(&world, "consumer", &["-c", newer, &new, "--drain"]).succeed().await;
        for (program, name) in [(&[*script][..], *old), (&["-c", newer], &new)] {
            let args = [program, &[name, "--replay"]].concat();
            let output = python(&world, "operator", &args).succeed().await;
            assert!(output.contains(&format!("{name} {letter}: still rejected")), "{output}");
            correct_letter(&world, name, letter, &spoiled).await;
            let output = python(&world, "operator", &args).succeed().await;
            assert_eq!(output, format!("{name} {letter}: folded\n"));
        }
        python(&world, "consumer", &[script, old, "--unregister"]).succeed().await;
        let left = format!("SELECT count(*) FROM checkpoints WHERE name = '{old}'");
        assert_eq!(world.number(&left).await, 0);
    }
    assert_longest(&world, "new-longest").await;
    assert_lengths(&world, "new-lengths").await;
    let letters = "SELECT count(*) FROM dead_letters AS l JOIN checkpoints AS c USING (name) WHERE NOT c.is_baseline";
    assert_eq!(world.number(letters).await, 0);
    assert_eq!(world.number("SELECT count(*) FROM ride_lengths WHERE name = 'lengths'").await, 0);
}

/// The first record is reaped, and there is no history.
#[tokio::test]
async fn python_registers_nothing_that_would_wait_for_reaped_records() {
    let world = World::new().await;
    world.carry_rides(10, &mut world.streamer(), &mut world.consumer("consumer0")).await;
    Process::start(&world, "reaper", &["--once", "--keep", "0s"]).succeed().await;
    let output = python(&world, "consumer", &["fold.py", "late", "--drain"]).fail(1).await;
    assert!(output.contains("records are reaped, and the history does not have all of them"), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM checkpoints WHERE name = 'late'").await, 0);
}

/// Fold name, version and state are the same in both languages, so each program can go on with the consumers of the other.
#[tokio::test]
async fn a_consumer_moves_from_python_to_rust_and_back() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    for _ in 0..2 {
        world.write_rides(100).await;
        world.drain_streamer(&mut streamer).await;
        python(&world, "consumer", &["fold.py", "longest0", "--drain"]).succeed().await;
        world.write_rides(100).await;
        world.drain_streamer(&mut streamer).await;
        example(&world, "longest", "consumer", &["longest0", "--drain"]).succeed().await;
    }
    example(&world, "longest", "consumer", &["copy", "--copy-from", "longest0"]).succeed().await;
    for name in ["longest0", "copy"] {
        assert_longest(&world, name).await;
    }
}

/// Plain SQL returns the same records at the same offsets as the reader, also when transactions overlap.
#[tokio::test]
async fn the_log_in_plain_sql_is_the_log() {
    let world = World::new().await;
    let mut streamer = world.streamer();
    for round in 0..5 {
        let mut late = world.connect().await;
        let late = late.transaction().await.unwrap();
        late.execute("INSERT INTO staged_log_records (object, action, data) VALUES ('late', 'create', '{}')", &[])
            .await
            .unwrap();
        world.write_rides(7 + round).await;
        world.drain_streamer(&mut streamer).await;
        late.commit().await.unwrap();
        world.write_rides(3).await;
        world.drain_streamer(&mut streamer).await;
    }
    let mut reader = pglog::Reader::at(world.client(), pglog::Partition::FIRST, 1).await.unwrap();
    let mut expected = Vec::new();
    loop {
        let page = reader.next_page(world.client(), 1000).await.unwrap();
        if page.is_empty() {
            break;
        }
        expected.extend(page.records().map(|record| (record.offset, record.object.to_owned(), record.data.to_owned())));
    }
    assert!(expected.len() > 60, "{}", expected.len());
    let mut found: Vec<(i64, String, String)> = Vec::new();
    loop {
        let after = found.last().map_or(0, |last| last.0);
        let read = "SELECT record_offset, object, data::text FROM log_records_after($1, 4)";
        let rows = world.client().query(read, &[&after]).await.unwrap();
        if rows.is_empty() {
            break;
        }
        found.extend(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))));
    }
    assert_eq!(found, expected);
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    Process::start(&world, "reaper", &["--once", "--keep", "0s"]).succeed().await;
    let error = world.client().query("SELECT * FROM log_records_after(0)", &[]).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("reaped"), "{error}");
    assert!(
        world
            .client()
            .query("SELECT * FROM log_records_after($1)", &[&found.last().unwrap().0])
            .await
            .unwrap()
            .is_empty()
    );
}

/// The log and the stream of the test vectors.
async fn world_of_vectors(vectors: &Value) -> World {
    let world = World::new().await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut log = vectors["log"].as_array().unwrap().iter();
    for batch in vectors["batches"].as_array().unwrap() {
        for record in log.by_ref().take(batch["record_count"].as_u64().unwrap() as usize) {
            let (object, action, data) = (text(&record["object"]), text(&record["action"]), text(&record["data"]));
            let record = pglog::NewRecord { key: "", object: &object, action: &action, data: &data, traceparent: None };
            pglog::stage(world.client(), record).await.unwrap();
        }
        let token = batch["token"].as_i64().unwrap();
        let cut = pglog::assign(world.client(), pglog::Partition::FIRST, token).await.unwrap().unwrap();
        assert_eq!(Some(cut.first_offset), batch["first_offset"].as_i64());
    }
    for entry in vectors["entries"].as_array().unwrap() {
        let mut add = redis::cmd("XADD");
        add.arg(world.stream_name()).arg(text(&entry["id"]));
        for (name, value) in entry["fields"].as_object().unwrap() {
            let bytes = value.as_str().map_or_else(|| vec![0xff], |text| text.as_bytes().to_vec());
            add.arg(name).arg(bytes);
        }
        add.exec_async(&mut world.redis().await).await.unwrap();
    }
    world
}

#[tokio::test]
async fn the_test_vectors_lead_to_the_same_result_in_rust_and_in_python() {
    let vectors: Value = serde_json::from_str(include_str!("../../../libs/stream/vectors.json")).unwrap();
    let world = world_of_vectors(&vectors).await;
    let output = python(&world, "owner", &["vectors.py"]).succeed().await;
    assert!(output.contains("entries are read as they should be"), "{output}");
    example(&world, "longest", "consumer", &["rust", "--drain"]).succeed().await;
    python(&world, "consumer", &["fold.py", "python", "--drain"]).succeed().await;
    for name in ["rust", "python"] {
        let find = "SELECT json_build_object(
                        'last_offset', last_offset, 'ride_count', (state->>'ride_count')::int,
                        'longest', json_build_object('id', state->'ride_id', 'distance_mm', state->'distance_mm'),
                        'dead_letters', (SELECT json_agg(record_offset) FROM dead_letters WHERE name = $1))::text
                    FROM checkpoints WHERE name = $1";
        let found: String = world.client().query_one(find, &[&name]).await.unwrap().get(0);
        assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), vectors["result"], "{name}");
    }
}
