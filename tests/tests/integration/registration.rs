//! The registration of a consumer and what the consumer has derived begin together and end together, and a start that fails
//! leaves neither.

use tests::{Process, World};
use tokio::process::Command;

use crate::examples::example;
use crate::python::python;

/// A world with the tables of both examples of a fold with rows, and credits of 11 in all.
async fn world_with_credits() -> World {
    let world = World::new().await;
    let tables =
        [include_str!("../../../consumer/examples/balances.sql"), include_str!("../../../examples/python/lengths.sql")];
    for table in tables {
        world.client().batch_execute(table).await.unwrap();
    }
    let credits = "INSERT INTO staged_log_records (object, action, data)
                   VALUES ('wallet', 'credit', '{\"id\":7,\"amount\":5}'), ('wallet', 'credit', '{\"id\":7,\"amount\":6}')";
    world.client().batch_execute(credits).await.unwrap();
    world.write_rides(10).await;
    world.drain_streamer(&mut world.streamer()).await;
    world
}

/// Registrations under this name.
async fn registered_count(world: &World, name: &str) -> i64 {
    world.number(&format!("SELECT count(*) FROM checkpoints WHERE name = '{name}'")).await
}

/// The command of a message: the text between the first pair of backticks that has these words.
fn command<'a>(output: &'a str, words: &str) -> &'a str {
    output.split('`').skip(1).step_by(2).find(|command| command.contains(words)).unwrap_or_else(|| panic!("{output}"))
}

#[tokio::test]
async fn rows_of_a_fold_end_with_the_registration() {
    let world = world_with_credits().await;
    for _ in 0..2 {
        example(&world, "balances", "consumer", &["balances0", "--drain"]).succeed().await;
        assert_eq!(world.number("SELECT balance::bigint FROM wallet_balances").await, 11);
        example(&world, "balances", "consumer", &["balances0", "--unregister"]).succeed().await;
        python(&world, "consumer", &["lengths.py", "lengths0", "--drain"]).succeed().await;
        assert_eq!(world.number("SELECT sum(ride_count)::bigint FROM ride_lengths").await, 10);
        python(&world, "consumer", &["lengths.py", "lengths0", "--unregister"]).succeed().await;
    }
}

#[tokio::test]
async fn a_fold_whose_rows_would_stay_registers_no_consumer() {
    let world = world_with_credits().await;
    let unbind = "ALTER TABLE wallet_balances DROP CONSTRAINT wallet_balances_name_partition_fkey;
                  ALTER TABLE ride_lengths DROP CONSTRAINT ride_lengths_name_partition_fkey";
    example(&world, "balances", "consumer", &["old", "--drain"]).succeed().await;
    world.client().batch_execute(unbind).await.unwrap();
    let registering: [&[&str]; 2] = [&["new", "--drain"], &["new", "--copy-from", "old"]];
    for args in registering {
        let output = example(&world, "balances", "consumer", args).fail(1).await;
        let (_, fix) = output.split_once("run as its owner: ").unwrap_or_else(|| panic!("{output}"));
        assert_eq!(registered_count(&world, "new").await, 0);
        if args.contains(&"--copy-from") {
            world.client().batch_execute(fix.lines().next().unwrap()).await.unwrap();
            example(&world, "balances", "consumer", args).succeed().await;
        }
    }
    let output = python(&world, "consumer", &["lengths.py", "new-lengths", "--drain"]).fail(1).await;
    assert!(output.contains("ride_lengths must exist and reference checkpoints ON DELETE CASCADE"), "{output}");
    assert_eq!(registered_count(&world, "new-lengths").await, 0);
}

#[tokio::test]
async fn a_consumer_that_could_not_write_is_not_registered() {
    let world = world_with_credits().await;
    let revoke = "REVOKE UPDATE ON wallet_balances, ride_lengths FROM rocket_consumer;
                  REVOKE EXECUTE ON FUNCTION make_history_parts FROM rocket_consumer;
                  REVOKE INSERT ON receipts FROM rocket_receipts";
    world.client().batch_execute(revoke).await.unwrap();
    for starting in [
        example(&world, "balances", "consumer", &["balances"]),
        Process::start(&world, "consumer", &["history", "--fold", "history"]),
        Process::start(&world, "receipts", &["receipts", "--drain", "--folder", "/tmp"]),
    ] {
        let output = starting.fail(1).await;
        assert!(output.contains("permission denied") && output.contains("Nothing is registered"), "{output}");
    }
    let output = python(&world, "consumer", &["lengths.py", "lengths", "--drain"]).fail(1).await;
    assert!(output.contains("permission denied"), "{output}");
    world.client().batch_execute("DROP TABLE wallet_balances, ride_lengths").await.unwrap();
    let output = example(&world, "balances", "consumer", &["balances"]).fail(1).await;
    assert!(output.contains("Make the table if it is missing"), "{output}");
    python(&world, "consumer", &["lengths.py", "lengths", "--drain"]).fail(1).await;
    assert_eq!(world.number("SELECT count(*) FROM checkpoints").await, 0);
}

/// The commands of a refusal are run as they are printed.
#[tokio::test]
async fn advice_names_the_program_that_runs() {
    let world = world_with_credits().await;
    example(&world, "balances", "consumer", &["old", "--drain"]).succeed().await;
    let output = example(&world, "balances", "consumer", &["it's new", "--copy-from", "old"]).succeed().await;
    assert!(output.contains("at offset 12"), "{output}");
    let output = example(&world, "balances", "consumer", &["it's new", "--copy-from", "old"]).fail(1).await;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command(&output, "--unregister")).env("DATABASE_URL", world.database_url_of("consumer"));
    shell.env("REDIS_URL", world.redis_url());
    Process::spawn("sh", shell).succeed().await;
    assert_eq!(registered_count(&world, "it''s new").await, 0);
}

/// The records before the first retained one are gone, and no history has them.
#[tokio::test]
async fn receipts_that_begin_after_reaping_stop_and_take_no_state_of_another_fold() {
    let world = World::new().await;
    world.carry_rides(48, &mut world.streamer(), &mut world.consumer("old")).await;
    Process::start(&world, "reaper", &["--once", "--keep", "0s"]).succeed().await;
    let receipts =
        |args: &[&str]| Process::start(&world, "receipts", &[&["late", "--drain", "--folder", "/tmp"], args].concat());
    let copy = |source: &str| Process::start(&world, "receipts", &["late", "--folder", "/tmp", "--copy-from", source]);
    let output = receipts(&[]).fail(1).await;
    assert!(output.contains("consumer late cannot begin at offset 1: records before 49 are reaped"), "{output}");
    assert!(command(&output, "--from").ends_with("receipts late --fold receipts --from retained"), "{output}");
    for source in ["baseline", "old"] {
        let output = copy(source).fail(1).await;
        assert!(output.contains("has a fold of another program, distance"), "{output}");
    }
    assert_eq!(registered_count(&world, "late").await, 0);
    let output = receipts(&["--from", "retained"]).succeed().await;
    assert!(output.contains("leaves out the records before this offset"), "{output}");
}
