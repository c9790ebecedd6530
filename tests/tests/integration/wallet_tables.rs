//! The tables of wallets: the upgrade to version 7 makes them, events stay as they were written, and views only show them.

use deadpool_postgres::ClientWrapper as Client;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tests::World;
use tokio_postgres::error::SqlState;
use wallet::WalletId;

use crate::log_alone::catalog;

/// Makes the tables those of version 6.
const MAKE_VERSION_6: &str = "
    DROP VIEW wallets, wallet_states;
    DROP TABLE wallet_events, wallet_locks;
    DROP FUNCTION refuse_change_of_wallets;
    DROP DOMAIN ksuid;
    UPDATE log_identity SET schema_version = 6";

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

#[tokio::test]
async fn the_upgrade_from_version_6_makes_the_tables_and_happens_once() {
    let world = World::new().await;
    let client = world.client();
    let wanted = catalog(client).await;
    client.batch_execute(MAKE_VERSION_6).await.unwrap();
    world.write_rides(3).await;
    assert!(catalog(client).await.len() < wanted.len());
    let error = pglog::prepare_session(client).await.unwrap_err();
    assert!(matches!(error, pglog::Error::SchemaVersion { found: 6, .. }), "{error}");
    for _ in 0..2 {
        launcher::apply_schema(client).await.unwrap();
        launcher::apply_roles(client).await.unwrap();
        assert_eq!(catalog(client).await, wanted);
        pglog::prepare_session(client).await.unwrap();
    }
    use_wallet(client).await;
    world.carry_rides(1, &mut world.streamer(), &mut world.consumer("c0")).await;
    assert_eq!(world.committed("c0").await.0, 4, "no staged record is lost");
}

/// An example of version 6 made a table of this name.
#[tokio::test]
async fn a_table_with_the_name_of_the_view_stops_the_upgrade_and_nothing_changes() {
    let world = World::new().await;
    let client = world.client();
    client.batch_execute(MAKE_VERSION_6).await.unwrap();
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
