//! The doctor's checks of the container, each with the fault that it looks for.

use tests::{PrivateRedis, World, scratch_folder};

use crate::container_fixture::config;
use crate::doctor::findings;

/// A spool, and a unit in this state that was due for an hour.
async fn add_unit(world: &World, uow: i64, state: &str) {
    let add = format!(
        "INSERT INTO spools (spool_id, place) VALUES ('4bf92f35-77b3-4da6-a3ce-929d0e0e4736', 'host7:/spool')
             ON CONFLICT DO NOTHING;
         INSERT INTO units (uow, unit_key, resource, subject, state, status, error, spool_id, spool_name, content_hash, due_at)
             VALUES ({uow}, gen_random_uuid(), 'manifests', '7', '{state}', 503, 'notices: it is away',
                     '4bf92f35-77b3-4da6-a3ce-929d0e0e4736', gen_random_uuid()::text, '', now() - INTERVAL '1 hour');
         INSERT INTO unit_parts (uow, destination) VALUES ({uow}, 'notices')"
    );
    world.client().batch_execute(&add).await.unwrap();
}

#[tokio::test]
async fn tables_of_units_that_take_anything_are_seen() {
    let world = World::new().await;
    findings(&world, &[]).await.assert_ok("container.tables");
    for (harm, name) in [
        ("DROP INDEX units_idempotency_key", "units_idempotency_key"),
        ("ALTER TABLE units DROP CONSTRAINT units_spool_name_key", "units_spool_name_key"),
        ("DROP INDEX units_due", "units_due"),
    ] {
        world.client().batch_execute(harm).await.unwrap();
        findings(&world, &[]).await.assert("container.tables", "fail", name, "schema.sql");
    }
    world.client().batch_execute("DROP TABLE units CASCADE").await.unwrap();
    findings(&world, &[]).await.assert("container.tables", "fail", "the tables are missing", "schema.sql");
}

#[tokio::test]
async fn units_that_a_person_has_to_look_at_are_seen() {
    let world = World::new().await;
    let all = findings(&world, &[]).await;
    for check in ["container.dead", "container.rollbacks", "container.breakers", "container.spools"] {
        all.assert_ok(check);
    }
    add_unit(&world, 1, "dead").await;
    let all = findings(&world, &[]).await;
    all.assert("container.dead", "warn", "1 units have used up", "container units retry");
    all.assert("container.dead", "warn", "unit 1 (manifests 7): notices: it is away", "");
    all.assert_ok("container.spools");

    add_unit(&world, 2, "fail_queued").await;
    let place = "host7:/spool (4bf92f35-77b3-4da6-a3ce-929d0e0e4736) for 1 units";
    findings(&world, &[]).await.assert("container.spools", "warn", place, "CONTAINER_SPOOL");
    findings(&world, &["--patience", "2h"]).await.assert_ok("container.spools");

    add_unit(&world, 3, "rolling_back").await;
    let report = "INSERT INTO unit_reports (uow, attempt, destination, state, created_at)
                  VALUES (3, 1, 'notices', 'failed_5xx', now() - INTERVAL '1 hour')";
    world.client().batch_execute(report).await.unwrap();
    findings(&world, &[]).await.assert("container.rollbacks", "warn", "unit 3: notices: it is away", "its log names");
    findings(&world, &["--patience", "2h"]).await.assert_ok("container.rollbacks");

    let open =
        "INSERT INTO destinations (name, fingerprint, failure_count, open_until) VALUES ('notices', '', 5, now())";
    world.client().batch_execute(open).await.unwrap();
    let what = "open: notices after 5 failures; 1 units wait";
    findings(&world, &[]).await.assert("container.breakers", "warn", what, "closes the breaker by itself");
}

/// The declaration names variables, which the doctor needs as the container does.
#[tokio::test]
async fn a_declaration_that_does_not_fit_the_units_or_a_redis_that_evicts_is_seen() {
    let redis = PrivateRedis::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let world = World::with_redis(&redis.url()).await;
    let folder = scratch_folder();
    let path = folder.join("container.toml");
    let text =
        config("http://127.0.0.1:9/notices", "").replace("${CONTAINER_DATA}", "/tmp").replace("${BOARD_PREFIX}", "b");
    // A secret of the declaration is a variable, and this one is set.
    let write = |text: &str| std::fs::write(&path, text.replace("NOTICES_SECRET", "CONTAINER_TEST_SECRET")).unwrap();
    let of = ["--config", path.to_str().unwrap()];
    write(&text);
    findings(&world, &of).await.assert("container.declared", "fail", "CONTAINER_TEST_SECRET", "container --check");

    let without = text.split("[destination.notices]").next().unwrap().replace(r#", "notices""#, "");
    write(&without);
    // The variable REDIS_URL is that of the doctor.
    let all = findings(&world, &of).await;
    all.assert_ok("container.declared");
    all.assert("container.board", "warn", "board: maxmemory-policy is allkeys-lru", "noeviction");
    add_unit(&world, 1, "fail_queued").await;
    let what = "units are open that need notices";
    findings(&world, &of).await.assert("container.declared", "fail", what, "retired = true");
    findings(&world, &[]).await.assert_ok("container.tables");
    std::fs::remove_dir_all(&folder).unwrap();
}
