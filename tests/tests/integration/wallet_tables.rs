//! The tables of wallets: they are added beside a log that goes on, events stay as they were written, and views only show them.

use deadpool_postgres::ClientWrapper as Client;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tests::{Process, Watched, World};
use tokio_postgres::error::SqlState;
use wallet::WalletId;

use crate::log_alone::catalog;

/// Makes the tables those of before there were wallets. The log's version was 6, as it is now.
const REMOVE_WALLETS: &str = "
    DROP VIEW wallets, wallet_states;
    DROP TABLE wallet_events, wallet_locks;
    DROP FUNCTION refuse_change_of_wallets;
    DROP DOMAIN ksuid";

pub const WALLET: &str = "28skwt5B8zTrs6AqBWrSgCHLcRL";

const OVERDRAWN: &str = "debit of 9 rejected; would cause balance of -4 (overdrawn)";

/// A wallet with a credit of 5, a rejected debit, and a debit of 2.
pub async fn use_wallet(client: &Client) {
    let rows = [
        ("29p8aA0XrY2slsqmEyNzBlS7f61", 1, 500, true, None, "credit", 500),
        ("29p8aA0XrY2slsqmEyNzBlS7f62", 1, 500, false, Some(OVERDRAWN), "debit", -900),
        ("29p8aA0XrY2slsqmEyNzBlS7f63", 2, 300, true, None, "debit", -200),
    ];
    client.execute("INSERT INTO wallet_locks VALUES ($1::text)", &[&WALLET]).await.unwrap();
    for (event_id, version, balance_minor, accepted, reason, action, amount_minor) in rows {
        let insert = "INSERT INTO wallet_events
                          (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor)
                      VALUES ($1::text, $2::text, $3::int, $4::int, $5, $6, $7, $8::int)";
        let params: pglog::Params<'_> =
            &[&event_id, &WALLET, &version, &balance_minor, &accepted, &reason, &action, &amount_minor];
        client.execute(insert, params).await.unwrap();
    }
}

/// The tables of wallets are made beside processes of the log that go on, on their connections and on new ones.
#[tokio::test]
async fn the_upgrade_from_version_6_makes_the_tables_beside_processes_that_go_on_and_happens_once() {
    let world = World::new().await;
    let client = world.client();
    let wanted = catalog(client).await;
    client.batch_execute(REMOVE_WALLETS).await.unwrap();
    assert!(catalog(client).await.len() < wanted.len());
    let (mut streamer, mut consumer) = (world.streamer(), world.consumer("c0"));
    world.carry_rides(1, &mut streamer, &mut consumer).await;
    for head in [2, 3] {
        world.write_rides(1).await;
        launcher::apply_schema(client).await.unwrap();
        launcher::apply_roles(client).await.unwrap();
        assert_eq!(catalog(client).await, wanted);
        assert_eq!(pglog::identity(client).await.unwrap().schema_version, pglog::SCHEMA_VERSION);
        pglog::prepare_session(&world.connect_as("consumer").await).await.unwrap();
        world.drain_streamer(&mut streamer).await;
        world.drain_consumer(&mut consumer).await;
        assert_eq!(world.committed("c0").await.0, head);
    }
    use_wallet(client).await;
}

/// Each program that needs the tables names the file that makes them, and goes on when it was applied.
#[tokio::test]
async fn programs_that_lack_the_tables_say_which_file_makes_them() {
    let world = World::new().await;
    let client = world.client();
    client.batch_execute(REMOVE_WALLETS).await.unwrap();
    let output = Process::start(&world, "consumer", &["wallets", "--fold", "wallets"]).fail(1).await;
    assert!(output.contains("Apply schema.sql and ops/roles.sql"), "{output}");
    assert_eq!(world.number("SELECT count(*) FROM checkpoints").await, 0, "it would hold back the reaper");
    let output = Process::start(&world, "audit", &["--no-stream"]).succeed().await;
    assert!(output.contains("no tables of wallets (schema.sql makes them)"), "{output}");
    let api_port = tests::free_port().to_string();
    let mut api = Watched::start(&world, "api", &["--api-port", &api_port]).await;
    api.process.wait_for("this process cannot work: apply schema.sql and ops/roles.sql").await;
    let healthz = format!("http://127.0.0.1:{api_port}/healthz");
    let status = async || reqwest::get(&healthz).await.unwrap().status().as_u16();
    assert_eq!(status().await, 503);
    api.process.wait_for("the api cannot work: apply schema.sql and ops/roles.sql").await;
    launcher::apply_schema(client).await.unwrap();
    launcher::apply_roles(client).await.unwrap();
    assert_eq!(status().await, 200);
    api.process.stop().await;
}

/// An example made a table of this name before there were wallets.
#[tokio::test]
async fn a_table_with_the_name_of_the_view_stops_the_upgrade_and_nothing_changes() {
    let world = World::new().await;
    let client = world.client();
    client.batch_execute(REMOVE_WALLETS).await.unwrap();
    client.batch_execute("CREATE TABLE wallets (id BIGINT PRIMARY KEY, balance BIGINT)").await.unwrap();
    let before = catalog(client).await;
    let error = launcher::apply_schema(client).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::DUPLICATE_TABLE), "{error:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(catalog(client).await, before);
    client.batch_execute("ALTER TABLE wallets RENAME TO accounts").await.unwrap();
    launcher::apply_schema(client).await.unwrap();
    use_wallet(client).await;
    assert_eq!(world.number("SELECT sum(balance_minor)::bigint FROM wallets").await, 300);
}

#[tokio::test]
async fn events_are_never_changed_not_even_by_the_owner() {
    let world = World::new().await;
    use_wallet(world.client()).await;
    for table in ["wallet_events", "wallet_locks"] {
        for statement in
            ["UPDATE {} SET wallet_id = wallet_id", "DELETE FROM {}", "DELETE FROM {} WHERE false", "TRUNCATE {}"]
        {
            let statement = statement.replace("{}", table);
            let error = world.client().batch_execute(&statement).await.expect_err(&statement);
            assert_eq!(error.code(), Some(&SqlState::RAISE_EXCEPTION), "{statement}: {error:?}");
        }
    }
    assert_eq!(world.number("SELECT count(*) FROM wallet_events").await, 3);
}

#[tokio::test]
async fn the_views_show_states_and_nothing_is_written_through_them() {
    let world = World::new().await;
    let client = world.client();
    use_wallet(client).await;
    client.batch_execute("INSERT INTO wallet_locks VALUES ('000000000000000000000000000')").await.unwrap();
    let rows = |query: &'static str| async move {
        let rows = client.query(&format!("SELECT r::text FROM ({query}) AS r"), &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    let wallets = rows("SELECT * FROM wallets ORDER BY id").await;
    assert_eq!(wallets, ["(000000000000000000000000000,0,0)".to_owned(), format!("({WALLET},2,300)")]);
    let states = rows("SELECT version, balance_minor, amount_minor FROM wallet_states ORDER BY version").await;
    assert_eq!(states, ["(1,500,500)", "(2,300,-200)"], "one row for each accepted change");
    for (view, column, values) in [
        ("wallets", "id", "'000000000000000000000000001', 1, 1"),
        ("wallet_states", "wallet_id", "'000000000000000000000000001', 1, 1, 1, '000000000000000000000000001', now()"),
    ] {
        for statement in [
            format!("INSERT INTO {view} VALUES ({values})"),
            format!("UPDATE {view} SET {column} = {column}"),
            format!("DELETE FROM {view}"),
        ] {
            let error = client.batch_execute(&statement).await.expect_err(&statement);
            assert_eq!(error.code(), Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE), "{statement}: {error:?}");
        }
    }
}

/// W2 and W3 are also conditions of the tables: a writer with a fault cannot break them.
#[tokio::test]
async fn the_tables_refuse_two_events_of_one_version_and_a_balance_below_0() {
    let world = World::new().await;
    let client = world.client();
    use_wallet(client).await;
    for (version, balance_minor, accepted, reason, amount_minor, refused_by) in [
        (2, 300_i64, true, "NULL", 1, "wallet_events_accepted"),
        (3, -1, true, "NULL", -301, "wallet_events_balance_in_range"),
        (3, 9_007_199_254_740_992, true, "NULL", 1, "wallet_events_balance_in_range"),
        (-1, 0, true, "NULL", 1, "wallet_events_version_not_negative"),
        (3, 300, false, "NULL", 1, "wallet_events_rejected_has_reason"),
        (3, 301, true, "'no'", 1, "wallet_events_rejected_has_reason"),
        (3, 300, true, "NULL", 0, "wallet_events_amount_not_zero"),
    ] {
        let insert = format!(
            "INSERT INTO wallet_events
                 (event_id, wallet_id, version, balance_minor, accepted, reason, action, amount_minor)
             VALUES ('29p8aA0XrY2slsqmEyNzBlS7f64', '{WALLET}', {version}, {balance_minor}, {accepted}, {reason}, 'credit',
                     {amount_minor})"
        );
        let error = client.batch_execute(&insert).await.expect_err(&insert).as_db_error().unwrap().clone();
        assert_eq!(error.constraint(), Some(refused_by), "{insert}: {error:?}");
    }
}

/// The library and the domain of the tables take the same texts.
#[tokio::test]
async fn the_tables_take_the_same_ids_as_the_library() {
    let world = World::new().await;
    let mut runner = TestRunner::default();
    let near = prop_oneof!["[0-9A-Za-z]{27}", "aWgEPTl1tmebfsQzFP4bxwgy8[0-9A-Za-z]{2}", "[0-9A-Za-z]{26,28}", ".{27}"];
    let mut texts: Vec<String> =
        [WALLET, "aWgEPTl1tmebfsQzFP4bxwgy80V", "aWgEPTl1tmebfsQzFP4bxwgy80W", ""].map(str::to_owned).into();
    texts.extend((0..500).map(|_| near.new_tree(&mut runner).unwrap().current()));
    texts.retain(|text| !text.contains('\0'));
    let mut taken_count = 0;
    for text in texts {
        let is_taken = world.client().query_one("SELECT $1::text::ksuid::text", &[&text]).await.is_ok();
        assert_eq!(is_taken, text.parse::<WalletId>().is_ok(), "{text:?}");
        taken_count += usize::from(is_taken);
    }
    assert!(taken_count > 20, "{taken_count}");
}
