//! The doctor says which sessions it may not see, and names the sessions that hold vacuum back.

use deadpool_postgres::ClientWrapper as Client;
use tests::{PrivatePostgres, PrivateRedis, World, wait_until};

use crate::doctor::findings;

/// A world on servers of its own, whose Postgres allows everything that can hold vacuum back.
async fn private_world() -> (PrivatePostgres, PrivateRedis, World) {
    let settings = ["fsync=off", "wal_level=logical", "max_prepared_transactions=5"];
    let (postgres, redis) = (PrivatePostgres::start_with(&settings).await, PrivateRedis::start(&[]).await);
    let mut world = World::on(&postgres.url(), &redis.url()).await;
    world.forget_database();
    (postgres, redis, world)
}

/// Cuts a batch, so that everything that is open by now is older than the newest batch.
async fn cut(world: &World) {
    world.write_rides(1).await;
    pglog::assign(world.client(), pglog::Partition::FIRST, rand::random()).await.unwrap();
}

/// A session with this name that has looked at the database, and will not end.
async fn old_session(world: &World, name: &str) -> Client {
    let client = world.connect().await;
    let begin = format!("SET application_name = '{name}'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM rides");
    client.batch_execute(&begin).await.unwrap();
    client
}

#[tokio::test]
async fn a_role_that_may_not_see_the_sessions_of_others_says_so() {
    let (_postgres, _redis, world) = private_world().await;
    let sleeper = old_session(&world, "sleeper").await;
    cut(&world).await;
    let operator = ["--patience", "0s", "--database-url", &world.database_url_of("operator")];
    let all = findings(&world, &operator).await;
    all.assert("postgres.open", "warn", "sleeper", "pg_terminate_backend(");
    world.client().batch_execute("REVOKE pg_read_all_stats FROM rocket_operator").await.unwrap();
    let all = findings(&world, &operator).await;
    let what = "cannot see since when";
    all.assert("postgres.open", "warn", what, "GRANT pg_read_all_stats TO rocket_operator");
    all.assert("postgres.vacuum", "warn", "sleeper of app", "pg_terminate_backend(");
    drop(sleeper);
}

#[tokio::test]
async fn whatever_holds_vacuum_back_is_named() {
    let (_postgres, _redis, world) = private_world().await;
    let now = ["--patience", "0s"];
    cut(&world).await;
    findings(&world, &now).await.assert_ok("postgres.vacuum");

    let sleeper = old_session(&world, "sleeper").await;
    cut(&world).await;
    findings(&world, &now).await.assert("postgres.vacuum", "warn", "(sleeper of app)", "pg_terminate_backend(");
    findings(&world, &[]).await.assert_ok("postgres.vacuum");
    drop(sleeper);
    wait_until("the session has ended", async || {
        findings(&world, &now).await.get("postgres.vacuum")["verdict"] == "ok"
    })
    .await;

    let slot = "SELECT pg_create_logical_replication_slot('left_over', 'pgoutput')";
    world.client().query_one(slot, &[]).await.unwrap();
    let drop_slot = "pg_drop_replication_slot('left_over')";
    findings(&world, &[]).await.assert("postgres.vacuum", "warn", "replication slot left_over (not in use)", drop_slot);
    world.client().query_one(&format!("SELECT {drop_slot}"), &[]).await.unwrap();
    findings(&world, &now).await.assert_ok("postgres.vacuum");

    let prepare = "BEGIN; INSERT INTO rides (distance_mm) VALUES (1); PREPARE TRANSACTION 'for''gotten'";
    world.client().batch_execute(prepare).await.unwrap();
    cut(&world).await;
    let roll_back = "ROLLBACK PREPARED 'for''gotten'";
    findings(&world, &now).await.assert("postgres.vacuum", "warn", "prepared transaction for'gotten", roll_back);
    world.client().batch_execute(roll_back).await.unwrap();
    findings(&world, &now).await.assert_ok("postgres.vacuum");
}
