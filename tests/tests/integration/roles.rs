//! The statements that each role must not execute. All other tests prove the rights that a role needs, because each process
//! connects under its own role.

use clap::Parser;
use common::shutdown::CancellationToken;
use consumer::{Consumer, State};
use tests::{PrivatePostgres, World};
use tokio_postgres::error::SqlState;

/// Statements that are refused to every role.
const NOBODY_MAY: &[&str] = &[
    "CREATE TABLE mine (id INT)",
    "CREATE FUNCTION mine() RETURNS INT LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "ALTER ROLE rocket_operator SUPERUSER",
    "SET ROLE app",
    "SET session_replication_role = replica",
    "COPY checkpoints TO PROGRAM 'true'",
    "DROP TABLE rides",
    "DROP TABLE staged_log_records",
    "DROP FUNCTION refuse_change_of_staged_log_records() CASCADE",
    "CREATE OR REPLACE FUNCTION refuse_change_of_staged_log_records() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "ALTER TABLE staged_log_records DISABLE TRIGGER ALL",
    "TRUNCATE log_batches",
    "UPDATE staged_log_records SET data = '{}'",
    "UPDATE log_batches SET token = 1",
    "UPDATE log_batches SET record_count = 1",
    "UPDATE rides SET distance_mm = 1",
    "DELETE FROM rides",
    "INSERT INTO rides (id, distance_mm) VALUES (1, 1)",
    "DELETE FROM history",
    "UPDATE history SET data = '{}'",
    "UPDATE wallet_events SET balance_minor = 1",
    "DELETE FROM wallet_events",
    "TRUNCATE wallet_events",
    "ALTER TABLE wallet_events DISABLE TRIGGER ALL",
    "DELETE FROM wallet_locks",
    // The transaction id decides the batch of a record, so it must be the true one.
    "INSERT INTO staged_log_records (transaction_id, object, action, data) VALUES ('1', 'ride', 'create', '{}')",
];

const INSERT_RIDE: &str = "INSERT INTO rides (distance_mm) VALUES (1)";
const STAGE: &str = "INSERT INTO staged_log_records (object, action, data) VALUES ('ride', 'create', '{}')";
const ARCHIVE: &str = "INSERT INTO history (partition, record_offset, object, action, data, staged_at)
                       VALUES (0, 1, 'ride', 'create', '{}', now())";
const MAKE_PARTS: &str = "SELECT make_history_parts(0, 1, 1)";
const CUT: &str = "INSERT INTO log_batches (partition, first_offset, record_count, snapshot, token)
                   VALUES (0, 1, 1, '1:1:', 1)";
const CREDIT: &str =
    "INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, action, amount_minor)
                      VALUES ('28skwt5B8zTrs6AqBWrSgCHLcRL', '28skwt5B8zTrs6AqBWrSgCHLcRL', 1, 5, true, 'credit', 5)";
const LOCK_WALLETS: &str = "SELECT FROM wallet_locks FOR UPDATE";
const BURY: &str = "INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
                    VALUES ('consumer0', 0, 1, 'ride', 'create', '{}', 'bad')";

/// Asserts that the role may not execute any of these statements.
async fn assert_refused(world: &World, role: &str, statements: &[&str]) {
    let client = world.connect_as(role).await;
    for statement in statements {
        let error = client.batch_execute(statement).await.expect_err(&format!("{role} could {statement}"));
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{role}: {statement}: {error:?}");
    }
}

#[tokio::test]
async fn nobody_may_change_the_schema_or_what_was_written() {
    let world = World::new().await;
    for role in tests::roles() {
        assert_refused(&world, role, NOBODY_MAY).await;
    }
}

#[tokio::test]
async fn the_api_takes_rides_and_changes_nothing_else() {
    let world = World::new().await;
    let statements = [
        "SELECT * FROM staged_log_records",
        "DELETE FROM staged_log_records",
        "INSERT INTO staged_log_records (transaction_id, object, action, data) VALUES ('1', 'ride', 'create', '{}')",
        CUT,
        "SELECT token FROM log_batches",
        "DELETE FROM log_batches",
        "INSERT INTO checkpoints (name) VALUES ('mine')",
        "UPDATE checkpoints SET last_offset = 9",
        "DELETE FROM checkpoints",
        "UPDATE checkpoints SET state = '{}'",
        ARCHIVE,
        MAKE_PARTS,
        BURY,
        "SELECT data FROM dead_letters",
        "DELETE FROM dead_letters",
    ];
    assert_refused(&world, "api", &statements).await;
}

#[tokio::test]
async fn who_books_changes_no_request_no_booking_and_no_audit_record() {
    let world = World::new().await;
    for role in ["api", "completer"] {
        let statements = [
            "UPDATE tracked_operations SET payload = ''",
            "UPDATE tracked_operations SET key = 'other'",
            "DELETE FROM tracked_operations",
            "UPDATE bookings SET user_id = 2",
            "UPDATE bookings SET charge_key = gen_random_uuid()",
            "DELETE FROM bookings",
            "INSERT INTO users (email, stripe_customer_id) VALUES ('me@example.com', 'cus_me')",
            "UPDATE users SET stripe_customer_id = 'cus_me'",
            "SELECT * FROM audit_records",
            "UPDATE audit_records SET action = 'other'",
            "DELETE FROM audit_records",
            "SELECT * FROM receipts",
            "DELETE FROM reaped_requests",
        ];
        assert_refused(&world, role, &statements).await;
    }
    assert_refused(&world, "api", &["DELETE FROM completions"]).await;
    assert_refused(&world, "completer", &["SELECT * FROM checkpoints", "SELECT * FROM staged_log_records"]).await;
}

/// The lock of a wallet needs the right to update its row. A trigger refuses the update itself, also to the owner.
#[tokio::test]
async fn the_api_locks_a_wallet_and_adds_events_and_no_other_process_does() {
    let world = World::new().await;
    let client = world.connect_as("api").await;
    let add = "INSERT INTO wallet_locks VALUES ('28skwt5B8zTrs6AqBWrSgCHLcRL')";
    for statement in [add, LOCK_WALLETS, CREDIT, "SELECT idempotency_key FROM wallet_events", "SELECT FROM wallets"] {
        assert_eq!(client.execute(statement, &[]).await.unwrap(), 1, "{statement}");
    }
    let error = client.batch_execute("UPDATE wallet_locks SET wallet_id = wallet_id").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::RAISE_EXCEPTION), "{error:?}");
    assert_refused(&world, "api", &["INSERT INTO wallet_events (created_at) VALUES (now())"]).await;
    for role in ["completer", "streamer", "receipts", "reaper", "container"] {
        let reads = ["SELECT FROM wallet_locks", "SELECT FROM wallet_events", "SELECT FROM wallets", LOCK_WALLETS];
        assert_refused(&world, role, &[&reads[..], &[add, CREDIT]].concat()).await;
    }
    for role in ["consumer", "dashboard"] {
        let client = world.connect_as(role).await;
        for statement in ["SELECT FROM wallets", "SELECT FROM wallet_states", "SELECT reason FROM wallet_events"] {
            assert_eq!(client.execute(statement, &[]).await.unwrap(), 1, "{role}: {statement}");
        }
        let statements =
            [add, CREDIT, LOCK_WALLETS, "SELECT idempotency_key FROM wallet_events", "TABLE wallet_events"];
        assert_refused(&world, role, &statements).await;
    }
    assert_refused(&world, "operator", &[add, CREDIT, LOCK_WALLETS]).await;
}

#[tokio::test]
async fn receipts_are_noted_and_marked_and_never_changed() {
    let world = World::new().await;
    let statements = [
        "SELECT * FROM rides",
        "SELECT stripe_customer_id FROM users",
        STAGE,
        CUT,
        "SELECT * FROM consumer_states",
        ARCHIVE,
        MAKE_PARTS,
        "UPDATE receipts SET data = '{}'",
        "DELETE FROM receipts",
        "SELECT * FROM tracked_operations",
    ];
    assert_refused(&world, "receipts", &statements).await;
}

#[tokio::test]
async fn the_container_settles_units_and_changes_no_request() {
    let world = World::new().await;
    let client = world.connect_as("container").await;
    client.batch_execute(STAGE).await.unwrap();
    let statements = [
        "SELECT * FROM rides",
        INSERT_RIDE,
        "SELECT data FROM staged_log_records",
        CUT,
        ARCHIVE,
        "SELECT * FROM checkpoints",
        "SELECT * FROM users",
        "UPDATE spools SET spool_id = gen_random_uuid()",
        "INSERT INTO units (uow) VALUES (1)",
        "UPDATE units SET unit_key = gen_random_uuid()",
        "UPDATE units SET content_hash = ''",
        "UPDATE units SET spool_name = 'other'",
        "UPDATE unit_parts SET destination = 'other'",
        "DELETE FROM unit_parts",
        "UPDATE unit_reports SET status = 200",
        "DELETE FROM unit_reports",
        "DELETE FROM destinations",
        "UPDATE manifests SET data = '{}'",
        "DELETE FROM manifests",
    ];
    assert_refused(&world, "container", &statements).await;
    // It deletes only units that are settled and whose files are gone.
    let add = "INSERT INTO spools (spool_id, place) VALUES ('00000000-0000-4000-8000-000000000000', 'x');
               INSERT INTO units (unit_key, resource, subject, state, spool_id, spool_name, content_hash, settled_at)
               SELECT gen_random_uuid(), 'a', '1', state, spool_id, state, '', CASE state WHEN 'committed' THEN now() END
               FROM spools, unnest(ARRAY['queued', 'dead', 'committed']) AS state";
    world.client().batch_execute(add).await.unwrap();
    for state in ["queued", "dead", "committed"] {
        let error = client.batch_execute(&format!("DELETE FROM units WHERE state = '{state}'")).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::RAISE_EXCEPTION), "{state}: {error:?}");
    }
    let gone = "UPDATE units SET file_gone_at = now() WHERE state = 'committed'";
    client.batch_execute(gone).await.unwrap();
    assert_eq!(client.execute("DELETE FROM units WHERE state = 'committed'", &[]).await.unwrap(), 1);
    for role in ["api", "consumer", "dashboard"] {
        assert_refused(&world, role, &["SELECT FROM units", "SELECT FROM unit_parts", "SELECT FROM manifests"]).await;
    }
    let decided = "UPDATE units SET state = 'dropped', settled_at = now()";
    world.connect_as("operator").await.batch_execute(decided).await.unwrap();
    let statements = ["UPDATE units SET status = 200", "UPDATE unit_parts SET attempts = 0", "DELETE FROM units"];
    assert_refused(&world, "operator", &statements).await;
}

#[tokio::test]
async fn the_streamer_cuts_batches_and_neither_deletes_nor_moves_anything() {
    let world = World::new().await;
    let statements = [
        "SELECT * FROM rides",
        INSERT_RIDE,
        STAGE,
        "DELETE FROM staged_log_records",
        "DELETE FROM log_batches",
        "UPDATE log_batches SET reaped_at = now()",
        "INSERT INTO checkpoints (name) VALUES ('mine')",
        "UPDATE checkpoints SET last_offset = 9",
        "DELETE FROM checkpoints",
        "SELECT * FROM consumer_states",
        "SELECT state FROM checkpoints",
        "SELECT * FROM history",
        ARCHIVE,
        MAKE_PARTS,
        "SELECT * FROM dead_letters",
        BURY,
    ];
    assert_refused(&world, "streamer", &statements).await;
}

#[tokio::test]
async fn a_consumer_sees_no_ride_and_writes_nothing_into_the_log() {
    let world = World::new().await;
    let statements = [
        "SELECT * FROM rides",
        INSERT_RIDE,
        STAGE,
        "DELETE FROM staged_log_records",
        CUT,
        "UPDATE log_batches SET reaped_at = now()",
        "DELETE FROM log_batches",
        "UPDATE checkpoints SET name = 'other'",
        "DELETE FROM dead_letters",
    ];
    assert_refused(&world, "consumer", &statements).await;
}

#[tokio::test]
async fn the_reaper_writes_nothing_into_the_log_and_unregisters_nobody() {
    let world = World::new().await;
    let statements = [
        "SELECT * FROM rides",
        INSERT_RIDE,
        STAGE,
        CUT,
        "UPDATE log_batches SET first_offset = 1",
        "UPDATE checkpoints SET name = 'other'",
        "DELETE FROM checkpoints",
        "DELETE FROM dead_letters",
        "UPDATE tracked_operations SET result = ''",
        "SELECT charge_key FROM bookings",
        "DELETE FROM bookings",
        "DELETE FROM reaped_requests",
    ];
    assert_refused(&world, "reaper", &statements).await;
}

#[tokio::test]
async fn an_operator_writes_no_ride_no_record_and_no_order() {
    let world = World::new().await;
    let statements = [
        INSERT_RIDE,
        STAGE,
        "DELETE FROM staged_log_records",
        CUT,
        "UPDATE log_batches SET reaped_at = now()",
        "DELETE FROM log_batches",
        "DELETE FROM checkpoints",
    ];
    assert_refused(&world, "operator", &statements).await;
}

#[tokio::test]
async fn an_operator_reads_everything_and_settles_what_consumers_left() {
    let world = World::new().await;
    world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    let client = world.connect_as("operator").await;
    for table in ["rides", "staged_log_records", "log_batches", "checkpoints", "consumer_states", "dead_letters"] {
        client.execute(&format!("SELECT * FROM {table}"), &[]).await.unwrap();
    }
    for statement in [
        "DELETE FROM dead_letters WHERE name = 'consumer0' AND record_offset = 1",
        BURY,
        "UPDATE checkpoints SET updated_at = now() WHERE name = 'consumer0'",
        "UPDATE checkpoints SET state = state WHERE name = 'consumer0'",
    ] {
        assert_eq!(client.execute(statement, &[]).await.unwrap(), 1, "{statement}");
    }
}

/// The reaper keeps a state of its own, so it must be able to fold.
#[tokio::test]
async fn the_reaper_may_fold_as_a_consumer_does() {
    let world = World::new().await;
    world.write_rides(5).await;
    world.stage_data(r#"{"id":1,"distance_mm":-5}"#).await;
    world.drain_streamer(&mut world.streamer()).await;
    let args = ["consumer".to_owned(), "reaper".to_owned()].into_iter().chain(world.flags("reaper"));
    let config = consumer::Config::parse_from(args);
    let mut consumer = Consumer::new(&config, State::default(), CancellationToken::new());
    let progress = world.drain_consumer(&mut consumer).await;
    assert_eq!((progress.applied_count, progress.dead_letter_count), (5, 1));
    world.assert_converged(&["reaper"]).await;
}

#[tokio::test]
async fn a_grant_that_is_not_in_the_file_is_taken_away() {
    let world = World::new().await;
    let update = "UPDATE checkpoints SET last_offset = 9";
    let grants = "GRANT DELETE ON rides TO rocket_api; GRANT UPDATE (last_offset) ON checkpoints TO rocket_streamer;
                  GRANT SELECT ON rides TO PUBLIC";
    world.client().batch_execute(grants).await.unwrap();
    world.connect_as("streamer").await.batch_execute(update).await.unwrap();
    launcher::apply_roles(world.client()).await.unwrap();
    assert_refused(&world, "api", &["DELETE FROM rides"]).await;
    assert_refused(&world, "streamer", &[update]).await;
    assert_refused(&world, "consumer", &["SELECT * FROM rides"]).await;
}

/// Roles belong to the cluster, but the lock in roles.sql belongs to a database.
#[tokio::test]
async fn two_databases_of_one_cluster_can_get_their_roles_at_once() {
    let postgres = PrivatePostgres::start_with(&["fsync=off"]).await;
    let owner = postgres.connect("postgres").await;
    for round in 0..3 {
        let names = [format!("left_{round}"), format!("right_{round}")];
        let mut clients = Vec::new();
        for name in &names {
            owner.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
            clients.push(postgres.connect(name).await);
            launcher::apply_schema(&clients[clients.len() - 1]).await.unwrap();
        }
        let (left, right) = futures_util::join!(launcher::apply_roles(&clients[0]), launcher::apply_roles(&clients[1]));
        left.unwrap();
        right.unwrap();
        drop(clients);
        for name in &names {
            owner.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
        }
        for role in tests::roles() {
            owner.batch_execute(&format!("DROP ROLE rocket_{role}")).await.unwrap();
        }
    }
}
