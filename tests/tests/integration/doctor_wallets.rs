//! The doctor's checks of wallets, each with the fault that it looks for.

use tests::World;

use crate::doctor::findings;
use crate::wallet_tables::use_wallet;

#[tokio::test]
async fn ids_that_sessions_draw_in_advance_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("log.ids");
    let cache = "ALTER TABLE staged_log_records ALTER COLUMN id SET CACHE 20";
    world.client().batch_execute(cache).await.unwrap();
    let all = findings(&world, &[]).await;
    all.assert("log.ids", "warn", "each session draws 20 ids at a time", "SET CACHE 1");
    let fix = all.get("log.ids")["fix"].as_str().unwrap().to_owned();
    world.client().batch_execute(&fix).await.unwrap();
    findings(&world, &[]).await.assert_ok("log.ids");
}

#[tokio::test]
async fn tables_of_wallets_that_take_anything_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("wallets.tables");
    for (harm, name) in [
        ("DROP INDEX wallet_events_accepted", "wallet_events_accepted"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'wallet_events_key'::regclass",
            "wallet_events_key",
        ),
        ("ALTER TABLE wallet_events DISABLE TRIGGER wallet_events_never_change", "wallet_events_never_change"),
        ("DROP TRIGGER wallet_locks_never_change ON wallet_locks", "wallet_locks_never_change"),
    ] {
        world.client().batch_execute(harm).await.unwrap();
        findings(&world, &[]).await.assert("wallets.tables", "fail", name, "schema.sql");
    }
}

#[tokio::test]
async fn wallets_without_a_consumer_that_keeps_their_documents_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("wallets.projector");
    use_wallet(world.client()).await;
    let all = findings(&world, &[]).await;
    all.assert("wallets.projector", "warn", "no consumer with the fold wallets", "consumer wallets --fold wallets");
    let register = "INSERT INTO checkpoints (name, fold, fold_version) VALUES ('wallets', 'wallets', 1)";
    world.client().batch_execute(register).await.unwrap();
    findings(&world, &[]).await.assert_ok("wallets.projector");
}
