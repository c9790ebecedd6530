//! The number of partitions: how it is chosen, who may change it, and which partition and which stream a key leads to.

use tokio::process::Command;

use launcher::find_postgres;
use pglog::{Partition, PartitionCount, Session};
use stream::Stream;
use tests::{Process, World};
use tokio_postgres::error::SqlState;

fn count(number: i32) -> Option<PartitionCount> {
    Some(PartitionCount::new(number).unwrap())
}

/// Drops everything that schema.sql makes.
const EMPTY: &str = "DROP SCHEMA public CASCADE; CREATE SCHEMA public; SET search_path = public";

/// Puts the tables back to version 6, which knew no number of partitions.
const MAKE_VERSION_6: &str = "
    ALTER TABLE staged_log_records DROP CONSTRAINT staged_log_records_partition_known;
    ALTER TABLE staged_log_records ADD CONSTRAINT staged_log_records_partition_not_negative CHECK (partition >= 0);
    DROP FUNCTION stream_key, partition_of(text), partition_of(text, int), log_partitions;
    ALTER TABLE log_identity DROP COLUMN log_id;
    UPDATE log_identity SET schema_version = 6";

#[tokio::test]
async fn psql_makes_a_log_of_as_many_partitions_as_it_is_told_and_never_another_number() {
    let world = World::new().await;
    world.client().batch_execute(EMPTY).await.unwrap();
    let apply = |partitions: &[&str]| {
        let mut psql = Command::new(find_postgres().unwrap().folder.join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--dbname", world.database_url()]).args(partitions);
        psql.args(["--file", concat!(env!("CARGO_MANIFEST_DIR"), "/../schema.sql")]);
        Process::spawn("psql", psql)
    };
    apply(&["-v", "partitions=8"]).succeed().await;
    for same in [&["-v", "partitions=8"][..], &[]] {
        apply(same).succeed().await;
    }
    // psql goes on after an error unless the file tells it to stop: its status tells.
    let refused = apply(&["-v", "partitions=4"]).fail(3).await;
    assert!(refused.contains("the log has 8 partition(s), and 4 were asked for"), "{refused}");
    assert!(refused.contains("The number is fixed when a log is made"), "{refused}");
    for bad in ["0", "65", "many", "8.5"] {
        let refused = apply(&["-v", &format!("partitions={bad}")]).fail(3).await;
        assert!(refused.contains("Give a number from 1 to 64"), "{refused}");
    }
    let identity = pglog::identity(world.client()).await.unwrap();
    assert_eq!(Some(identity.partitions), count(8));
    assert_eq!(identity.log_id.map(|id| id.len()), Some(12));
}

#[tokio::test]
async fn a_record_is_staged_in_a_partition_of_the_log_and_in_no_other() {
    let world = World::cut(8).await;
    let stage = "INSERT INTO staged_log_records (partition, object, action, data) VALUES ($1, 'a', 'b', '{}')";
    for partition in [-1, 8] {
        let refused = world.client().execute(stage, &[&partition]).await.unwrap_err();
        assert_eq!(refused.as_db_error().unwrap().constraint(), Some("staged_log_records_partition_known"));
    }
    world.client().execute(stage, &[&7]).await.unwrap();
}

#[tokio::test]
async fn sql_and_rust_agree_on_the_partition_and_the_stream_of_every_key() {
    for number in [1, 8, 64] {
        let world = World::cut(number).await;
        let identity = pglog::identity(world.client()).await.unwrap();
        let keys: Vec<String> = (0..1000).map(|key| format!("key {key} é")).chain(["".to_owned()]).collect();
        let sql = "SELECT partition_of(key), partition_of(key, 7) FROM unnest($1::text[]) AS key";
        let mut used = vec![0; number as usize];
        for (key, row) in keys.iter().zip(world.client().query(sql, &[&keys]).await.unwrap()) {
            let (partition, of_seven): (Partition, Partition) = (row.get(0), row.get(1));
            assert_eq!(partition, identity.partitions.partition_of(key), "{key}");
            assert_eq!(of_seven, count(7).unwrap().partition_of(key), "{key}");
            used[partition.number() as usize] += 1;
        }
        assert!(used.iter().all(|used| *used > 0), "{used:?}");
        let stream = Stream { name: "a name".to_owned(), log_id: identity.log_id.clone() };
        for partition in identity.partitions.partitions() {
            let row = world.client().query_one("SELECT stream_key($1, 'a name')", &[&partition]).await.unwrap();
            assert_eq!(row.get::<_, String>(0), stream.key(partition));
        }
    }
}

#[tokio::test]
async fn a_log_of_before_there_were_partitions_has_one_and_keeps_the_name_of_its_stream() {
    let world = World::new().await;
    world.write_rides(3).await;
    world.client().batch_execute(MAKE_VERSION_6).await.unwrap();
    let refused = launcher::apply_schema_with(world.client(), count(8)).await.unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(
        refused.message(),
        "the log has records or consumers, in one partition, and 8 partitions were asked for"
    );
    world.client().batch_execute("ROLLBACK").await.unwrap();
    launcher::apply_schema(world.client()).await.unwrap();
    let identity = pglog::prepare_session(world.client()).await.unwrap();
    assert_eq!((Some(identity.partitions), identity.log_id), (count(1), None));
    let row = world.client().query_one("SELECT stream_key()", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "rocket-rides-log");
}

#[tokio::test]
async fn a_log_that_used_more_partitions_before_is_told_how_many_to_name() {
    let world = World::new().await;
    world.client().batch_execute(MAKE_VERSION_6).await.unwrap();
    let stage = "INSERT INTO staged_log_records (partition, object, action, data) VALUES (2, 'a', 'b', '{}')";
    world.client().batch_execute(stage).await.unwrap();
    for wanted in [None, count(2)] {
        let refused = launcher::apply_schema_with(world.client(), wanted).await.unwrap_err();
        let refused = refused.as_db_error().unwrap();
        assert_eq!(refused.message(), "the log has records or consumers in partition 2");
        assert_eq!(refused.hint(), Some("Say how many partitions it has, at least 3: psql -v partitions=3"));
        assert_eq!(refused.code(), &SqlState::RAISE_EXCEPTION);
        world.client().batch_execute("ROLLBACK").await.unwrap();
    }
    launcher::apply_schema_with(world.client(), count(3)).await.unwrap();
    let row = world.client().query_one("SELECT log_partitions(), stream_key(2)", &[]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (3, "rocket-rides-log:{2}"), "the name of before");
}
