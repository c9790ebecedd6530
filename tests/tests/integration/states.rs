//! The states of consumers in checkpoints, as the view consumer_states shows them; and the parts of the history.

use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;
use tests::{World, wait_until};
use tokio_postgres::error::SqlState;

#[tokio::test]
async fn no_role_can_write_through_the_view_of_the_states() {
    let world = World::new().await;
    let insert = "INSERT INTO checkpoints (name, fold, fold_version, state)
                  VALUES ('consumer0', 'distance', 1, '{\"total_distance_mm\":5,\"ride_count\":1,\"digest\":\"3\"}')";
    world.client().batch_execute(insert).await.unwrap();
    for statement in [
        "INSERT INTO consumer_states (name, partition) VALUES ('mine', 0)",
        "INSERT INTO consumer_states VALUES ('mine', 0, 1, 1, 1)",
        "UPDATE consumer_states SET ride_count = 2",
        "UPDATE consumer_states SET name = 'other'",
        "DELETE FROM consumer_states",
    ] {
        let error = world.client().batch_execute(statement).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE), "{statement}: {error:?}");
        for role in tests::roles() {
            world.connect_as(role).await.batch_execute(statement).await.unwrap_err();
        }
    }
    assert_eq!(world.number("SELECT ride_count FROM consumer_states WHERE name = 'consumer0'").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM checkpoints").await, 1);
}

#[tokio::test]
async fn a_state_that_is_spoiled_is_left_out_and_the_others_are_read() {
    let world = World::new().await;
    let insert = "INSERT INTO checkpoints (name, fold, fold_version, state) VALUES ($1, $2, 1, $3::text::json)";
    let numbers = |total: &str, count: &str, digest: &str| {
        format!(r#"{{"total_distance_mm":{total},"ride_count":{count},"digest":{digest}}}"#)
    };
    let large = "9223372036854775808";
    let spoiled = ["1", "\"x\"", "null", "true", "[]", "[1,2]", "{}", " {} ", r#"{"digest":"1"}"#]
        .map(str::to_owned)
        .into_iter()
        .chain([
            numbers(large, "1", "\"1\""),
            numbers("1", large, "\"1\""),
            numbers("1", "1", "\"-9223372036854775809\""),
        ])
        .chain(
            [
                "99999999999999999999",
                "1.5",
                "1e3",
                "\"\"",
                "\"x\"",
                "\"1\\n\"",
                "\" 1\"",
                "null",
                "{}",
                "[1]",
                "true",
                "\"\\u0000\"",
                "\"\\ud800\"",
                "\"\\u0031\"",
            ]
            .map(|digest| numbers("1", "1", digest)),
        )
        // A string that Postgres can store, but not read, beside the right numbers.
        .chain([
            r#"{"total_distance_mm":1,"ride_count":1,"digest":"1","note":"\u0000"}"#.to_owned(),
            "[".repeat(700) + &"]".repeat(700),
        ]);
    for (number, state) in spoiled.enumerate() {
        world.client().execute(insert, &[&format!("spoiled{number}"), &"distance", &state]).await.unwrap();
    }
    world.client().execute(insert, &[&"stranger", &"sum", &numbers("1", "1", "\"1\"")]).await.unwrap();
    world.client().execute(insert, &[&"empty", &"distance", &None::<String>]).await.unwrap();
    let right = numbers("9223372036854775807", "0", "\"-9223372036854775808\"");
    world.client().execute(insert, &[&"right", &"distance", &right]).await.unwrap();
    let rows =
        world.client().query("SELECT name, total_distance_mm, ride_count, digest FROM consumer_states", &[]).await;
    let rows: Vec<(String, i64, i64, i64)> =
        rows.unwrap().iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    assert_eq!(rows, [("right".to_owned(), i64::MAX, 0, i64::MIN)]);
}

#[tokio::test]
async fn a_state_has_at_most_1500_bytes() {
    let world = World::new().await;
    let insert = "INSERT INTO checkpoints (name, state) VALUES ($1, $2::text::json)";
    let quoted = |text: &str, count| format!("\"{}\"", text.repeat(count));
    world.client().execute(insert, &[&"fits", &quoted("x", 1498)]).await.unwrap();
    for state in [quoted("x", 1499), quoted("ß", 750), quoted("x", 100_000)] {
        let error = world.client().execute(insert, &[&"long", &state]).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().constraint(), Some("checkpoints_state_size"), "{error:?}");
        let update = "UPDATE checkpoints SET state = $1::text::json";
        let error = world.client().execute(update, &[&state]).await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().constraint(), Some("checkpoints_state_size"), "{error:?}");
    }
}

async fn make_parts(client: &Client, first: i64, last: i64) -> Result<u64, tokio_postgres::Error> {
    client.execute("SELECT make_history_parts(0, $1, $2)", &[&first, &last]).await
}

/// The names of the tables that are parts of the history.
async fn parts(world: &World) -> String {
    let query = "SELECT COALESCE(string_agg(inhrelid::regclass::text, ' ' ORDER BY inhrelid::regclass::text), '')
                 FROM pg_inherits WHERE inhparent = 'public.history'::regclass";
    world.client().query_one(query, &[]).await.unwrap().get(0)
}

/// A world with 30 records, and parts of ten offsets.
async fn world_with_records() -> World {
    let world = World::new().await;
    let short_parts =
        "CREATE OR REPLACE FUNCTION history_part_len() RETURNS BIGINT LANGUAGE sql IMMUTABLE AS 'SELECT 10::bigint'";
    world.client().batch_execute(short_parts).await.unwrap();
    world.write_rides(30).await;
    pglog::assign(world.client(), Partition::FIRST, 1).await.unwrap().unwrap();
    world
}

#[tokio::test]
async fn parts_of_the_history_are_made_by_the_consumers_role_and_up_to_the_head() {
    let world = world_with_records().await;
    for role in tests::roles().into_iter().filter(|role| *role != "consumer") {
        let error = make_parts(&world.connect_as(role).await, 1, 1).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{role}: {error:?}");
    }
    let consumer = world.connect_as("consumer").await;
    for (first, last) in [(1, 31), (25, 31), (1, i64::from(i32::MAX)), (31, 31)] {
        let error = make_parts(&consumer, first, last).await.unwrap_err();
        assert!(error.as_db_error().unwrap().message().contains("beyond the head"), "{error:?}");
    }
    consumer.execute("SELECT make_history_parts(1, 1, 1)", &[]).await.expect_err("the partition has no record");
    assert_eq!(parts(&world).await, "");
    make_parts(&consumer, i64::MIN, 8).await.unwrap();
    assert_eq!(parts(&world).await, "history_0 history_1", "the part of the record, and the part after it");
    make_parts(&consumer, 9, 10).await.unwrap();
    make_parts(world.client(), 30, 30).await.unwrap();
    assert_eq!(parts(&world).await, "history_0 history_1 history_2 history_3 history_4");
    let insert = "INSERT INTO history (partition, record_offset, object, action, data, staged_at)
                  SELECT 0, n, 'ride', 'create', '{}', now() FROM generate_series(1, 30) AS n";
    consumer.batch_execute(insert).await.unwrap();
    for statement in [
        "CREATE TABLE history_5 ()",
        "DROP TABLE history_0",
        "DELETE FROM history",
        "SELECT * FROM history_0",
        "ALTER TABLE history DETACH PARTITION history_0",
        "UPDATE history SET object = 'other'",
    ] {
        consumer.batch_execute(statement).await.expect_err(statement);
    }
}

#[tokio::test]
async fn two_sessions_can_make_the_same_parts_at_once() {
    let world = world_with_records().await;
    let (mut first, second) = (world.connect_as("consumer").await, world.connect_as("consumer").await);
    second.batch_execute("SET application_name = 'second'").await.unwrap();
    // In the first round the second session executes the function for the first time, and in the others again.
    let mut second = Some(second);
    for offset in [5_i64, 20, 30] {
        let tx = first.transaction().await.unwrap();
        tx.execute("SELECT make_history_parts(0, $1, $1)", &[&offset]).await.unwrap();
        let client = second.take().unwrap();
        let making = tokio::spawn(async move { (make_parts(&client, offset, offset).await, client) });
        wait_until("the second session waits", async || {
            world.waiting_count_where("application_name = 'second'").await == 1
        })
        .await;
        tx.commit().await.unwrap();
        let (made, client) = making.await.unwrap();
        made.unwrap();
        second = Some(client);
    }
    assert_eq!(parts(&world).await, "history_0 history_1 history_2 history_3 history_4");
}

#[tokio::test]
async fn temporary_tables_of_the_caller_do_not_take_the_place_of_the_logs() {
    let world = world_with_records().await;
    let consumer = world.connect_as("consumer").await;
    let mine = "CREATE TEMP TABLE log_batches AS SELECT 0 AS partition, 1::bigint AS first_offset, 10000::bigint AS record_count;
                CREATE TEMP TABLE history (record_offset BIGINT) PARTITION BY RANGE (record_offset);
                CREATE TEMP TABLE history_0 (id INT);
                SET search_path = pg_temp, public";
    consumer.batch_execute(mine).await.unwrap();
    let error = make_parts(&consumer, 1, 31).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("beyond the head"), "{error:?}");
    make_parts(&consumer, 1, 5).await.unwrap();
    assert_eq!(parts(&world).await, "history_0 history_1");
    let in_public = "SELECT count(*) FROM pg_class WHERE relname IN ('history_0', 'history_1')
                     AND relnamespace = 'public'::regnamespace AND relispartition";
    assert_eq!(world.number(in_public).await, 2);
}
