//! The upgrade from version 4: the table consumer_states becomes a view of the states in checkpoints. It loses no total, also
//! while consumers of version 4 run, and these commit nothing after it (I5).

use std::collections::HashMap;
use std::time::Duration;

use deadpool_postgres::ClientWrapper as Client;
use pglog::Session;
use tests::{World, wait_until};
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;

use crate::log_alone::catalog;

/// Makes the tables those of version 4, with the grants that its `roles.sql` made.
const MAKE_VERSION_4: &str = "
    BEGIN;
    CREATE TABLE old_states (
        name              TEXT   NOT NULL,
        partition         INT    NOT NULL DEFAULT 0,
        total_distance_mm BIGINT NOT NULL DEFAULT 0,
        ride_count        BIGINT NOT NULL DEFAULT 0,
        digest            BIGINT NOT NULL DEFAULT 0,
        CONSTRAINT consumer_states_pkey PRIMARY KEY (name, partition),
        CONSTRAINT consumer_states_checkpoint_fkey FOREIGN KEY (name, partition) REFERENCES checkpoints ON DELETE CASCADE
    ) WITH (fillfactor = 50);
    INSERT INTO old_states SELECT * FROM consumer_states;
    DROP VIEW consumer_states;
    ALTER TABLE old_states RENAME TO consumer_states;
    GRANT SELECT ON consumer_states TO rocket_api, rocket_dashboard, rocket_operator;
    GRANT SELECT, INSERT, UPDATE ON consumer_states TO rocket_consumer, rocket_reaper;
    GRANT UPDATE ON consumer_states TO rocket_operator;
    ALTER TABLE checkpoints DROP COLUMN fold, DROP COLUMN fold_version, DROP COLUMN state,
        ALTER COLUMN generation SET DEFAULT 0;
    DROP VIEW history_ranges;
    DROP TABLE history;
    DROP FUNCTION bigint_or_null, make_history_parts, history_part_len;
    DROP DOMAIN fold_state;
    UPDATE log_identity SET schema_version = 4;
    COMMIT";

/// Consumers, the baseline, and a consumer that keeps its state elsewhere.
const ROWS: &str = r#"
    INSERT INTO checkpoints (name, partition, last_offset, duplicate_count, is_baseline, generation) VALUES
        ('consumer0', 0, 100, 1, false, 0), ('most', 0, 9223372036854775807, 2, false, 3), ('least', 3, 7, 0, false, 0),
        ('it''s "mine" \', 0, 5, 0, false, 0), ('baseline', 0, 90, 0, true, 1), ('receipts', 0, 80, 4, false, 0);
    INSERT INTO consumer_states VALUES
        ('consumer0', 0, 123456789, 42, 77), ('most', 0, 9223372036854775807, 9223372036854775807, 9223372036854775807),
        ('least', 3, 0, 0, -9223372036854775808), ('it''s "mine" \', 0, 1, 1, -1), ('baseline', 0, 100000000, 40, 1);
    INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason, dropped_at) VALUES
        ('consumer0', 0, 50, 'ride', 'create', '{"id":1}', 'bad', NULL), ('baseline', 0, 50, 'ride', 'create', '', 'bad', now())"#;

/// The statement of a consumer of version 4 that moves its checkpoint together with its state.
const OLD_COMMIT: &str = "-- consumer::checkpoint::advance_and_save
    WITH moved AS (UPDATE checkpoints
        SET last_offset = $8, duplicate_count = duplicate_count + $9,
            healed_count = healed_count + $10, rejected_count = rejected_count + $11,
            crash_count = crash_count + $12, updated_at = now()
        WHERE name = $1 AND partition = $2 AND last_offset = $6 AND generation = $7
          AND NOT EXISTS (
              SELECT FROM unnest($13::bigint[], $14::bigint[], $15::bigint[])
                          AS read (first_offset, last_offset, token)
              WHERE NOT EXISTS (
                  SELECT FROM (SELECT first_offset + record_count - 1 AS last_offset, token FROM log_batches
                               WHERE partition = $2 AND first_offset <= read.first_offset
                               ORDER BY first_offset DESC LIMIT 1) AS batch
                  WHERE batch.last_offset >= read.last_offset AND batch.token = read.token)) RETURNING ctid),
    saved AS (UPDATE consumer_states SET total_distance_mm = $3, ride_count = $4, digest = $5
              WHERE name = $1 AND partition = $2 AND EXISTS (SELECT FROM moved) RETURNING ctid)
    SELECT CASE (SELECT count(*) FROM moved) WHEN 0 THEN false ELSE 1 / (SELECT count(*) FROM saved) = 1 END,
           (SELECT ctid::text FROM moved), (SELECT ctid::text FROM saved)";

/// Moves a checkpoint by one, and the state with it, as a consumer of version 4 does. All numbers follow from the offset.
async fn commit_as_before(client: &impl Session, name: &str, offset: i64) -> Result<bool, tokio_postgres::Error> {
    let none: [i64; 0] = [];
    let (total, ride_count, digest) = (offset * 1000, offset, offset.wrapping_mul(-0x61c8_8646_80b5_83eb));
    let params: pglog::Params<'_> = &[
        &name,
        &0,
        &total,
        &ride_count,
        &digest,
        &(offset - 1),
        &0_i64,
        &offset,
        &0_i64,
        &0_i64,
        &0_i64,
        &0_i64,
        &&none[..],
        &&none[..],
        &&none[..],
    ];
    Ok(client.query_one(OLD_COMMIT, params).await?.get(0))
}

/// The rows of a query, each as text.
async fn rows(client: &Client, query: &str) -> Vec<String> {
    let query = format!("SELECT r::text FROM ({query}) AS r ORDER BY 1");
    client.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// All that version 4 knows about consumers.
async fn progress(client: &Client) -> Vec<Vec<String>> {
    let checkpoints = "SELECT name, partition, last_offset, duplicate_count, healed_count, rejected_count, crash_count,
                              is_baseline, generation, updated_at FROM checkpoints";
    let states = "SELECT name, partition, total_distance_mm, ride_count, digest FROM consumer_states";
    let dead_letters = "SELECT * FROM dead_letters";
    vec![rows(client, checkpoints).await, rows(client, states).await, rows(client, dead_letters).await]
}

/// Tables, functions, privileges, and the versions of rows.
async fn everything(client: &Client) -> Vec<Vec<String>> {
    let privileges = "SELECT oid::regclass, relkind, relacl FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    let (checkpoints, version) = ("SELECT xmin, ctid, * FROM checkpoints", "SELECT * FROM log_identity");
    let mut everything = progress(client).await;
    everything.push(catalog(client).await);
    for query in [privileges, checkpoints, version] {
        everything.push(rows(client, query).await);
    }
    everything
}

async fn world_of_version_4() -> World {
    let world = World::new().await;
    world.client().batch_execute(MAKE_VERSION_4).await.unwrap();
    world.client().batch_execute(ROWS).await.unwrap();
    world
}

#[tokio::test]
async fn the_upgrade_keeps_all_progress_at_each_isolation_level_and_happens_once() {
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let world = world_of_version_4().await;
        let client = world.client();
        let error = pglog::prepare_session(client).await.unwrap_err();
        assert!(matches!(error, pglog::Error::SchemaVersion { found: 4, .. }), "{error}");
        let before = progress(client).await;
        assert_eq!(before.iter().map(Vec::len).collect::<Vec<_>>(), [6, 5, 2]);
        client.batch_execute(&format!("SET default_transaction_isolation = '{isolation}'")).await.unwrap();
        launcher::apply_schema(client).await.unwrap();
        assert_eq!(progress(client).await, before, "{isolation}");
        pglog::prepare_session(client).await.unwrap();
        let folds =
            "SELECT name, fold, fold_version, state IS NOT NULL FROM checkpoints WHERE name IN ('most', 'receipts')";
        assert_eq!(rows(client, folds).await, ["(most,distance,1,t)", "(receipts,,,f)"]);
        let upgraded = everything(client).await;
        launcher::apply_schema(client).await.unwrap();
        assert_eq!(everything(client).await, upgraded, "{isolation}: the second application changes nothing");
    }
}

#[tokio::test]
async fn the_upgrade_keeps_who_may_read_the_states() {
    let world = world_of_version_4().await;
    let grants = "SELECT acl.grantee, acl.privilege_type FROM pg_class, aclexplode(relacl) AS acl
                  WHERE oid = 'consumer_states'::regclass AND acl.grantee <> relowner
                    AND (acl.privilege_type = 'SELECT' OR relkind = 'v')";
    world.client().batch_execute("GRANT SELECT ON consumer_states TO rocket_streamer, PUBLIC").await.unwrap();
    let before = rows(world.client(), grants).await;
    assert_eq!(before.len(), 7);
    launcher::apply_schema(world.client()).await.unwrap();
    assert_eq!(rows(world.client(), grants).await, before, "SELECT for the same roles, and no other privilege");
}

#[tokio::test]
async fn a_consumer_of_version_4_commits_nothing_after_the_upgrade() {
    let world = world_of_version_4().await;
    let insert = "INSERT INTO checkpoints (name) VALUES ('old'); INSERT INTO consumer_states (name) VALUES ('old')";
    world.client().batch_execute(insert).await.unwrap();
    let (owner, consumer, mut reading) =
        (world.connect().await, world.connect_as("consumer").await, world.connect_as("consumer").await);
    for (offset, client) in [(1, &owner), (2, &consumer), (3, &reading)] {
        assert!(commit_as_before(client, "old", offset).await.unwrap(), "the statement is prepared, and moves");
    }
    // This transaction is open during the upgrade.
    let reading = reading.transaction().await.unwrap();
    reading.query("SELECT FROM log_batches", &[]).await.unwrap();
    let before = progress(world.client()).await;
    launcher::apply_schema(world.client()).await.unwrap();
    let upgraded = everything(world.client()).await;
    for client in [&owner, &consumer] {
        commit_as_before(client, "old", 4).await.unwrap_err();
        commit_as_before(&world.connect().await, "old", 4).await.unwrap_err();
    }
    commit_as_before(&reading, "old", 4).await.unwrap_err();
    reading.rollback().await.unwrap();
    // It cannot register, either.
    owner.batch_execute(&format!("BEGIN; {}", insert.replace("'old'", "'new'"))).await.unwrap_err();
    owner.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(everything(world.client()).await, upgraded);
    assert_eq!(progress(world.client()).await, before);
}

/// The upgrade waits for the transaction, and reads the state after it: the snapshot must not be older than the lock.
#[tokio::test]
async fn a_transaction_that_is_open_during_the_upgrade_commits_before_it() {
    let world = world_of_version_4().await;
    let insert = "INSERT INTO checkpoints (name) VALUES ('old'); INSERT INTO consumer_states (name) VALUES ('old')";
    world.client().batch_execute(insert).await.unwrap();
    for (isolation, offset) in [("read committed", 1), ("repeatable read", 2), ("serializable", 3)] {
        let mut old = world.connect_as("consumer").await;
        let old = old.transaction().await.unwrap();
        assert!(commit_as_before(&old, "old", offset).await.unwrap());
        let upgrading = world.connect().await;
        let set = format!("SET default_transaction_isolation = '{isolation}'; SET application_name = 'upgrade'");
        upgrading.batch_execute(&set).await.unwrap();
        let upgrade = tokio::spawn(async move { launcher::apply_schema(&upgrading).await });
        wait_until("the upgrade waits for the transaction", async || {
            world.waiting_count_where("application_name = 'upgrade'").await == 1
        })
        .await;
        old.commit().await.unwrap();
        upgrade.await.unwrap().unwrap();
        let query =
            "SELECT last_offset, total_distance_mm FROM checkpoints JOIN consumer_states USING (name, partition)
                     WHERE name = 'old'";
        assert_eq!(rows(world.client(), query).await, [format!("({offset},{})", offset * 1000)], "{isolation}");
        world.client().batch_execute(MAKE_VERSION_4).await.unwrap();
    }
}

/// Commits until it is refused, by single statements or by transactions. Returns the offset of its last commit.
async fn commit_until_refused(
    mut client: Client,
    name: String,
    mut offset: i64,
    in_transactions: bool,
) -> (Client, i64) {
    loop {
        let committed = if in_transactions {
            let tx = client.transaction().await.unwrap();
            match commit_as_before(&tx, &name, offset + 1).await {
                Ok(moved) => tx.commit().await.map(|()| moved),
                Err(error) => tx.rollback().await.and(Err(error)),
            }
        } else {
            commit_as_before(&client, &name, offset + 1).await
        };
        match committed {
            Ok(moved) => assert!(moved, "no other process moves {name}"),
            Err(_) => return (client, offset),
        }
        offset += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_of_a_running_consumer_is_lost() {
    let world = world_of_version_4().await;
    let mut consumers = Vec::new();
    for number in 0..4 {
        let name = format!("old{number}");
        let insert = format!(
            "INSERT INTO checkpoints (name) VALUES ('{name}'); INSERT INTO consumer_states (name) VALUES ('{name}')"
        );
        world.client().batch_execute(&insert).await.unwrap();
        consumers.push((world.connect_as("consumer").await, name, 0, number % 2 == 1));
    }
    let upgrading = world.connect().await;
    upgrading.batch_execute("SET default_transaction_isolation = 'repeatable read'").await.unwrap();
    for round in 0..20 {
        let mut running = JoinSet::new();
        let before: HashMap<String, i64> =
            consumers.iter().map(|(_, name, offset, _)| (name.clone(), *offset)).collect();
        for (client, name, offset, in_transactions) in consumers.drain(..) {
            running.spawn(async move {
                let (client, last_offset) = commit_until_refused(client, name.clone(), offset, in_transactions).await;
                assert!(last_offset > offset, "{name} has committed in this round");
                (client, name, last_offset, in_transactions)
            });
        }
        wait_until("each consumer has committed in this round", async || {
            let query = "SELECT name, last_offset FROM checkpoints WHERE name LIKE 'old%'";
            let reached = world.client().query(query, &[]).await.unwrap();
            reached.iter().all(|row| row.get::<_, i64>("last_offset") > before[row.get::<_, &str>("name")])
        })
        .await;
        // This is no wait for a condition: the upgrade begins at another moment in each round.
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        launcher::apply_schema(&upgrading).await.unwrap();
        consumers = running.join_all().await;
        for (_, name, last_offset, _) in &consumers {
            let query = format!(
                "SELECT last_offset, total_distance_mm, ride_count FROM checkpoints
                 JOIN consumer_states USING (name, partition) WHERE name = '{name}'"
            );
            let wanted = format!("({last_offset},{},{last_offset})", last_offset * 1000);
            assert_eq!(rows(world.client(), &query).await, [wanted], "round {round}");
        }
        world.client().batch_execute(MAKE_VERSION_4).await.unwrap();
    }
}

#[tokio::test]
async fn a_view_of_a_users_own_stops_the_upgrade_and_nothing_changes() {
    let world = world_of_version_4().await;
    let client = world.client();
    client.batch_execute("CREATE VIEW mine AS SELECT name, ride_count FROM consumer_states").await.unwrap();
    let before = everything(client).await;
    let error = launcher::apply_schema(client).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST), "{error:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(everything(client).await, before);
    let progress_before = progress(client).await;
    client.batch_execute("DROP VIEW mine").await.unwrap();
    launcher::apply_schema(client).await.unwrap();
    assert_eq!(progress(client).await, progress_before);
}
