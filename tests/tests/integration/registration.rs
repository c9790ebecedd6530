//! The registration of a consumer and what the consumer has derived begin together and end together, and a start that fails
//! leaves neither. A consumer that was unregistered stays so until a person says otherwise.

use nix::sys::signal::Signal;
use tests::{Process, World, root, wait_until};
use tokio::process::Command;

use crate::examples::example;
use crate::launcher::UpFolder;
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
                   VALUES ('account', 'credit', '{\"id\":7,\"amount\":5}'), ('account', 'credit', '{\"id\":7,\"amount\":6}')";
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

/// The findings of the doctor, which always finds that the servers of the tests do not wait for the disk.
pub async fn doctor(world: &World, args: &[&str]) -> String {
    let mut doctor = Process::start(world, "doctor", args);
    doctor.ended().await;
    doctor.read_to_end().await
}

/// Runs a command of a message, as it is printed.
fn run(world: &World, command: &str) -> Process {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).env("DATABASE_URL", world.database_url_of("consumer"));
    shell.env("REDIS_URL", world.redis_url()).env("STREAM_NAME", world.stream_name());
    shell.current_dir(root().join("examples/python"));
    Process::spawn("sh", shell)
}

#[tokio::test]
async fn rows_of_a_fold_end_with_the_registration() {
    let world = world_with_credits().await;
    for _ in 0..2 {
        example(&world, "balances", "consumer", &["balances0", "--drain"]).succeed().await;
        assert_eq!(world.number("SELECT balance::bigint FROM account_balances").await, 11);
        python(&world, "consumer", &["lengths.py", "lengths0", "--drain"]).succeed().await;
        assert_eq!(world.number("SELECT sum(ride_count)::bigint FROM ride_lengths").await, 10);
        for flag in ["--unregister", "--register"] {
            example(&world, "balances", "consumer", &["balances0", flag]).succeed().await;
            python(&world, "consumer", &["lengths.py", "lengths0", flag]).succeed().await;
        }
    }
}

#[tokio::test]
async fn a_fold_whose_rows_would_stay_registers_no_consumer() {
    let world = world_with_credits().await;
    let unbind = "ALTER TABLE account_balances DROP CONSTRAINT account_balances_name_partition_fkey;
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
    let revoke = "REVOKE UPDATE ON account_balances, ride_lengths FROM rocket_consumer;
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
    world.client().batch_execute("DROP TABLE account_balances, ride_lengths").await.unwrap();
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
    run(&world, command(&output, "--unregister")).succeed().await;
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

#[tokio::test]
async fn an_unregistered_consumer_stays_away_until_it_is_registered_with_a_word() {
    let world = world_with_credits().await;
    let history = ["history", "--fold", "history", "--drain"];
    Process::start(&world, "consumer", &history).succeed().await;
    Process::start(&world, "consumer", &["history", "--unregister"]).succeed().await;
    // A supervisor does not start a process again that ends with this status.
    let output = Process::start(&world, "consumer", &history).fail(2).await;
    assert!(output.contains("consumer history was unregistered"), "{output}");
    assert_eq!(registered_count(&world, "history").await, 0);
    let word = command(&output, "--register").to_owned();
    run(&world, &word).succeed().await;
    let again = run(&world, &word).fail(1).await;
    assert!(again.contains("is registered already"), "{again}");
    Process::start(&world, "consumer", &history).succeed().await;

    // A copy is a word too, and so is that of the receipts, which deliver nothing then.
    for (name, words) in [("history", &["history", "--copy-from", "other"][..]), ("r", &["r", "--register"])] {
        let process = if name == "r" { "receipts" } else { "consumer" };
        let args: &[&str] = if name == "r" { &["r", "--drain", "--folder", "/tmp"] } else { &history };
        if name == "history" {
            Process::start(&world, "consumer", &["other", "--copy-from", "history"]).succeed().await;
        } else {
            Process::start(&world, process, args).succeed().await;
        }
        Process::start(&world, process, &[name, "--unregister"]).succeed().await;
        Process::start(&world, process, args).fail(2).await;
        Process::start(&world, process, words).succeed().await;
        Process::start(&world, process, args).succeed().await;
    }
    python(&world, "consumer", &["fold.py", "longest0", "--drain"]).succeed().await;
    world.client().batch_execute("DELETE FROM checkpoints WHERE name = 'longest0'").await.unwrap();
    let output = python(&world, "consumer", &["fold.py", "longest0", "--drain"]).fail(2).await;
    assert!(output.contains("fold.py longest0 --register"), "{output}");
    python(&world, "consumer", &["fold.py", "longest0", "--register"]).succeed().await;
    python(&world, "consumer", &["fold.py", "longest0", "--drain"]).succeed().await;
}

/// A supervisor starts the consumer while the registration is being deleted: the INSERT waits for the DELETE, and then refuses.
#[tokio::test]
async fn a_consumer_that_starts_while_it_is_unregistered_stays_away() {
    let world = world_with_credits().await;
    Process::start(&world, "consumer", &["consumer0", "--drain"]).succeed().await;
    let mut client = world.connect_as("consumer").await;
    let deleting = client.transaction().await.unwrap();
    deleting.batch_execute("DELETE FROM checkpoints").await.unwrap();
    let starting = world.connect_as("consumer").await;
    let register = "INSERT INTO checkpoints (name) VALUES ('consumer0') ON CONFLICT DO NOTHING";
    let starting = tokio::spawn(async move { starting.batch_execute(register).await });
    wait_until("it waits", async || world.waiting_count().await == 1).await;
    deleting.commit().await.unwrap();
    let refusal = starting.await.unwrap().unwrap_err();
    assert_eq!(refusal.code().map(|code| code.code()), Some("UNREG"), "{refusal:?}");
}

/// The demo's consumer is unregistered while the launcher keeps it running.
#[tokio::test]
async fn up_does_not_bring_back_a_consumer_that_was_unregistered() {
    let folder = UpFolder::with_rate(20).await;
    let mut up = Process::spawn("launcher", folder.up_command(&[]));
    up.wait_for("CONVERGED").await;
    let url = up.output().split("psql '").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let client = connect::postgres::connect(&url.parse().unwrap(), "test", || {}).await.unwrap();
    let consumers = "SELECT count(*) FROM checkpoints WHERE NOT is_baseline";
    let consumer_count = async || client.query_one(consumers, &[]).await.unwrap().get::<_, i64>(0);
    wait_until("both consumers are registered", async || consumer_count().await == 2).await;
    consumer::unregister(&client, "consumer1", &[pglog::Partition::FIRST]).await.unwrap();
    up.wait_for("consumer1 was unregistered, and does not come back by itself").await;
    up.wait_for("not started again before bin/up is").await;
    let names = "SELECT string_agg(name, ' ') FROM checkpoints WHERE NOT is_baseline";
    let names: Option<String> = client.query_one(names, &[]).await.unwrap().get(0);
    assert_eq!(names.as_deref(), Some("consumer0"));
    up.signal(Signal::SIGINT);
    assert!(up.ended().await.success(), "{}", up.output());
}

/// Everything happens in partition 3, because each process is told so.
#[tokio::test]
async fn advice_names_the_partition() {
    let world = World::cut(8).await;
    let start = |name: &str, args: &[&str]| Process::start(&world, name, &[args, &["--partitions", "3"]].concat());
    let stage = async |distance_mm: i64| {
        let stage = "INSERT INTO staged_log_records (partition, object, action, data)
                     VALUES (3, 'ride', 'create', json_build_object('id', 1, 'distance_mm', $1::bigint))";
        world.client().execute(stage, &[&distance_mm]).await.unwrap();
        start("streamer", &["--drain"]).succeed().await;
    };
    for distance_mm in [5, -5] {
        stage(distance_mm).await;
    }
    start("consumer", &["c0", "--drain"]).succeed().await;
    let output = doctor(&world, &["--partitions", "3"]).await;
    assert!(output.contains("dead-letters list --partitions 3"), "{output}");
    stage(5).await;
    let output = start("reaper", &["--once", "--dead-after", "0s"]).succeed().await;
    assert_eq!(command(&output, "--unregister"), "consumer c0 --unregister --partitions 3");
    let output = doctor(&world, &["--partitions", "3", "--patience", "0s"]).await;
    assert!(output.contains("consumer c0 --unregister --partitions 3"), "{output}");
    start("consumer", &["c0", "--unregister"]).succeed().await;
    let output = start("consumer", &["c0", "--drain"]).fail(2).await;
    assert!(command(&output, "--register").contains("c0 --fold distance --register"), "{output}");
    let output = doctor(&world, &["--partitions", "3"]).await;
    assert!(output.contains("consumer consumer0 --partitions 3"), "{output}");
}
