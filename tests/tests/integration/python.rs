//! The examples in Python, which use only the tables and the stream of the project.

use std::path::Path;

use streamer::{Fault, Step};
use tests::{Process, World, python_program};
use tokio::process::Command;

async fn python(world: &World, script: &str, args: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python").join(script);
    let mut command = Command::new(python_program("python"));
    command.arg(path).args(args);
    command.env("DATABASE_URL", world.database_url()).env("REDIS_URL", world.redis_url());
    command.env("STREAM_NAME", world.stream_name());
    Process::spawn(script, command).succeed().await
}

#[tokio::test]
async fn python_stages_rides_and_folds_them_whatever_the_stream_does() {
    let world = World::new().await;
    let output = python(&world, "stage.py", &["12.5", "7", "980.001"]).await;
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

    let longest = "SELECT format('longest of %s rides: %s, %s mm', count(*), (array_agg(id ORDER BY distance_mm DESC, id))[1], \
                   max(distance_mm)) FROM rides";
    let expected: String = world.client().query_one(longest, &[]).await.unwrap().get(0);
    let output = python(&world, "fold.py", &["python0", "--drain"]).await;
    assert_eq!(output.trim(), expected);
    let checkpoint = "SELECT last_offset FROM checkpoints WHERE name = 'python0'";
    assert_eq!(world.number(checkpoint).await, 2003);

    // The fold goes on from its offset, without the stream.
    world.write_rides(10).await;
    world.drain_streamer(&mut streamer).await;
    redis::cmd("DEL").arg(world.stream_name()).exec_async(&mut redis).await.unwrap();
    let expected: String = world.client().query_one(longest, &[]).await.unwrap().get(0);
    assert_eq!(python(&world, "fold.py", &["python0", "--drain"]).await.trim(), expected);
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
