//! Two logs in one database, in two schemas. Each has tables, locks and hints of its own. The database's default isolation is
//! stricter than the one that the programs need, and changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tests::{Process, World, scratch_folder, wait_until};

use crate::bootstrap::{Traffic, converge, more_rides};
use crate::registration::doctor;

/// A log in the schema `other`, beside that of `world` in `public`. The search_path has both, in this order.
async fn log_beside(world: &World) -> World {
    let database = world.client().query_one("SELECT quote_ident(current_database())", &[]).await.unwrap();
    let prepare = format!(
        "ALTER DATABASE {} SET default_transaction_isolation = 'repeatable read'; CREATE SCHEMA other",
        database.get::<_, &str>(0)
    );
    world.client().batch_execute(&prepare).await.unwrap();
    let separator = if world.database_url().contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}options=-c%20search_path%3Dother%2Cpublic", world.database_url());
    let other = World::at(&url, world.redis_url(), &format!("{}-other", world.stream_name())).await;
    launcher::apply_schema(other.client()).await.unwrap();
    launcher::apply_roles(other.client()).await.unwrap();
    other.client().batch_execute(launcher::SEED).await.unwrap();
    pglog::prepare_session(other.client()).await.unwrap();
    other
}

/// Everything that a schema has: tables, indexes, views, triggers, constraints, functions and domains.
async fn catalog(world: &World, schema: &str) -> Vec<String> {
    let query = format!(
        "WITH home AS (SELECT '{schema}'::regnamespace AS oid)
         SELECT replace(line, '{schema}', 'home') AS line FROM (
             SELECT concat_ws(' ', relkind, relname, reloptions) FROM pg_class, home WHERE relnamespace = home.oid
             UNION ALL SELECT concat_ws(' ', tgname, tgtype) FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid, home
             WHERE relnamespace = home.oid AND NOT tgisinternal
             UNION ALL SELECT concat_ws(' ', conname, contype) FROM pg_constraint, home WHERE connamespace = home.oid
             UNION ALL SELECT concat_ws(' ', proname, proconfig, prosecdef) FROM pg_proc, home WHERE pronamespace = home.oid
             UNION ALL SELECT concat_ws(' ', relname, attname, typname, typnamespace = home.oid)
             FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid JOIN pg_class ON pg_class.oid = attrelid, home
             WHERE relnamespace = home.oid AND typtype = 'd'
         ) AS lines (line) ORDER BY 1"
    );
    let rows = world.client().query(&query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_log_beside_another_has_everything_of_its_own() {
    let world = World::new().await;
    let other = log_beside(&world).await;
    let (mine, others) = (catalog(&world, "public").await, catalog(&world, "other").await);
    assert!(mine.len() > 100, "{mine:?}");
    assert_eq!(mine, others);
    // Applied again, the file changes nothing. Nothing of this log is gone with the other one.
    launcher::apply_schema(other.client()).await.unwrap();
    world.client().batch_execute("DROP SCHEMA public CASCADE").await.unwrap();
    assert_eq!(catalog(&other, "other").await, others);
    other.carry_rides(5, &mut other.streamer(), &mut other.consumer("c0")).await;
    other.assert_converged(&["c0"]).await;
}

#[tokio::test]
async fn locks_and_hints_of_two_logs_do_not_meet() {
    let world = World::new().await;
    let other = log_beside(&world).await;
    let heard = [Arc::<AtomicU32>::default(), Arc::default()];
    let mut listeners = Vec::new();
    for (world, heard) in [&world, &other].into_iter().zip(&heard) {
        let heard = Arc::clone(heard);
        let on_notice = move || {
            heard.fetch_add(1, Ordering::Relaxed);
        };
        let config = world.database_url().parse().unwrap();
        let listener = connect::postgres::connect(&config, "test", on_notice).await.unwrap();
        pglog::listen(&listener).await.unwrap();
        listeners.push(listener);
    }
    pglog::hint(other.client()).await.unwrap();
    wait_until("the hint arrives", async || heard[1].load(Ordering::Relaxed) == 1).await;
    pglog::hint(world.client()).await.unwrap();
    wait_until("the hint arrives", async || heard[0].load(Ordering::Relaxed) > 0).await;
    // Postgres delivers hints in order: the first one would have come before this one.
    assert_eq!([0, 1].map(|place| heard[place].load(Ordering::Relaxed)), [1, 1], "each has heard its own");

    // A reaper of the first log keeps no consumer of the second from registering.
    let mut reaper = world.connect().await;
    let reaping = reaper.transaction().await.unwrap();
    pglog::hold_registration(&reaping).await.unwrap();
    other.carry_rides(5, &mut other.streamer(), &mut other.consumer("c0")).await;
    reaping.rollback().await.unwrap();
}

/// Both run every process, under the roles of roles.sql.
#[tokio::test(flavor = "multi_thread")]
async fn two_whole_pipelines_run_in_one_database() {
    let world = World::new().await;
    let other = log_beside(&world).await;
    let folder = scratch_folder();
    let mut runs = Vec::new();
    for world in [&world, &other] {
        let fault = ["--fault-rate", "0.1"];
        let processes = vec![
            Process::start(world, "streamer", &fault),
            Process::start(world, "consumer", &[&["c0"][..], &fault].concat()),
            Process::start(world, "consumer", &[&["c1"][..], &fault].concat()),
            Process::start(world, "consumer", &["history", "--fold", "history"]),
            Process::start(world, "receipts", &["receipts", "--folder", folder.to_str().unwrap()]),
            Process::start(world, "reaper", &["--keep", "0s", "--interval", "10ms"]),
        ];
        runs.push((world, Traffic::start(world).await, processes));
    }
    for (world, _, processes) in &mut runs {
        processes[0].wait_for("leading").await;
        let receipt = "INSERT INTO staged_log_records (object, action, data) VALUES
                       ('receipt', 'create', '{\"ride_id\":1,\"user_id\":1,\"amount\":500,\"currency\":\"usd\"}')";
        world.client().batch_execute(receipt).await.unwrap();
        more_rides(world, 300).await;
    }
    for (world, traffic, processes) in runs {
        traffic.stop().await;
        converge(world, &["c0", "c1"]).await;
        let delivered = "SELECT count(*) FROM receipts WHERE delivered_at IS NOT NULL";
        wait_until("the receipt is delivered", async || world.number(delivered).await == 1).await;
        let audited = Process::start(world, "audit", &[]).succeed().await;
        assert!(audited.contains("all is equal") && audited.contains(" 0 strangers"), "{audited}");
        for role in ["streamer", "consumer", "reaper"] {
            let url = world.database_url_of(role);
            let args = ["--for", role, "--database-url", &url];
            let findings = doctor(world, &args).await;
            assert!(findings.contains("has every privilege it needs"), "{findings}");
            assert!(!findings.contains("FAIL log.") && !findings.contains("FAIL redis.stream"), "{findings}");
        }
        for process in processes {
            process.stop().await;
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
