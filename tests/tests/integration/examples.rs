//! The examples in Rust run as programs: a foreign table beside the log, and two foreign folds.

use tests::{Process, World, binary};
use tokio::process::Command;

use crate::fold_life::{archive_and_reap, correct_letter, stage_spoiled_ride};
use crate::own_database::Service;
use pglog::Session;

/// Starts an example under a role.
pub fn example(world: &World, name: &str, role: &str, args: &[&str]) -> Process {
    let mut command = Command::new(binary(&format!("examples/{name}")));
    command.args(args).env("DATABASE_URL", world.database_url_of(role)).env("REDIS_URL", world.redis_url());
    command.env("STREAM_NAME", world.stream_name());
    Process::spawn(name, command)
}

async fn world_with_accounts() -> World {
    let world = World::new().await;
    let sql = [
        include_str!("../../../libs/pglog/examples/stage.sql"),
        include_str!("../../../consumer/examples/balances.sql"),
    ];
    for sql in sql {
        world.client().batch_execute(sql).await.unwrap();
    }
    world
}

#[tokio::test]
async fn the_example_stages_a_record_with_the_change_or_neither() {
    let world = world_with_accounts().await;
    let mut streamer = Process::start(&world, "streamer", &[]);
    streamer.wait_for("leading").await;
    let output = example(&world, "stage", "owner", &["7", "5"]).succeed().await;
    assert_eq!(output, "account 7 has 5\n");
    let output = example(&world, "stage", "owner", &["7", "-100"]).fail(1).await;
    assert!(output.contains("accounts_balance_check"), "{output}");
    let output = example(&world, "stage", "owner", &["seven"]).fail(1).await;
    assert!(output.contains("give an account and an amount"), "{output}");
    streamer.wait_for("batch published").await;
    streamer.stop().await;
    assert_eq!(world.number("SELECT balance FROM accounts WHERE id = 7").await, 5);
    let records = world.read_from(1, 10).await;
    assert_eq!(records.len(), 1, "{records:?}");
    let record = &records[0];
    let what = (record.object.as_str(), record.action.as_str(), record.data.as_str());
    assert_eq!(what, ("account", "credit", r#"{"id":7,"amount":5}"#));
}

/// The example notifies listeners. No other program stages records here.
#[tokio::test]
async fn the_example_wakes_the_streamer() {
    let world = world_with_accounts().await;
    let config: tokio_postgres::Config = world.database_url().parse().unwrap();
    let (listener, mut connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    let (heard, mut hints) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notification(hint) = message {
                let _ = heard.send(hint.channel().to_owned());
            }
        }
    });
    listener.batch_execute(&format!("LISTEN {}", pglog::HINT_CHANNEL)).await.unwrap();
    example(&world, "stage", "owner", &["1", "1"]).succeed().await;
    let hint = tokio::time::timeout(tests::PATIENCE, hints.recv()).await.expect("the hint comes");
    assert_eq!(hint.as_deref(), Some(pglog::HINT_CHANNEL));
}

/// Stages many credits, of which one can never be applied, and rides, which the fold does not take. Returns the number of
/// records.
async fn stage_credits(world: &World) -> i64 {
    for (account, amount) in [("1", "10"), ("2", "300"), ("1", "-4"), ("3", "7"), ("2", "50")] {
        example(world, "stage", "owner", &[account, amount]).succeed().await;
    }
    let many = "WITH credits AS (SELECT n % 50 AS id, n AS amount FROM generate_series(1, 3000) n), accounts AS (
                    INSERT INTO accounts SELECT id, sum(amount) FROM credits GROUP BY id
                    ON CONFLICT (id) DO UPDATE SET balance = accounts.balance + excluded.balance)
                INSERT INTO staged_log_records (object, action, data)
                SELECT 'account', 'credit', json_build_object('id', id, 'amount', amount) FROM credits
                UNION ALL SELECT 'account', 'credit', '{\"id\":1}'";
    world.client().batch_execute(many).await.unwrap();
    world.write_rides(100).await;
    world.drain_streamer(&mut world.streamer()).await;
    assert_eq!(world.number("SELECT count(*) FROM accounts").await, 50);
    3106
}

/// The consumer has every balance that the accounts have.
async fn assert_balances(world: &World, name: &str) {
    let differing = format!(
        "SELECT count(*) FROM accounts FULL JOIN
         (SELECT account_id AS id, balance FROM account_balances WHERE name = '{name}') derived USING (id)
         WHERE accounts.balance IS DISTINCT FROM derived.balance"
    );
    assert_eq!(world.number(&differing).await, 0, "{name}");
}

/// How many rows of a table are those of a consumer.
async fn row_count(world: &World, table: &str, name: &str) -> i64 {
    world.number(&format!("SELECT count(*) FROM {table} WHERE name = '{name}'")).await
}

/// Kills the consumer at each point of a commit, and then lets it finish among injected crashes.
async fn drain_with_kills(world: &World, program: &str, name: &str) {
    for fault in ["die-before-commit:2", "die-at-commit:1", "die-after-commit:1"] {
        let mut dying = example(world, program, "consumer", &[name, "--inject", fault]);
        assert!(!dying.ended().await.success(), "{fault}: {}", dying.output());
    }
    let args = [name, "--drain", "--fault-rate", "0.5", "--fault-seed", "7"];
    example(world, program, "consumer", &args).succeed().await;
}

#[tokio::test]
async fn the_example_with_rows_derives_every_balance_whatever_crashes() {
    let world = world_with_accounts().await;
    let record_count = stage_credits(&world).await;
    drain_with_kills(&world, "balances", "balances0").await;
    example(&world, "balances", "consumer", &["balances1", "--drain"]).succeed().await;
    for name in ["balances0", "balances1"] {
        assert_balances(&world, name).await;
        let checkpoint = format!("SELECT last_offset FROM checkpoints WHERE name = '{name}'");
        assert_eq!(world.number(&checkpoint).await, record_count);
        assert_eq!(row_count(&world, "dead_letters", name).await, 1);
    }
    assert!(world.number("SELECT crash_count FROM checkpoints WHERE name = 'balances0'").await > 0);
}

/// A service runs the example in its own database, as EMBEDDING.md says.
#[tokio::test]
async fn the_example_with_rows_keeps_them_in_the_database_of_a_service() {
    let world = world_with_accounts().await;
    let record_count = stage_credits(&world).await;
    let service = Service::beside(&world).await;
    service.client.batch_execute(include_str!("../../../consumer/examples/balances.sql")).await.unwrap();
    let own = ["balances0", "--state-database-url", &service.url];
    for fault in ["die-before-commit:2", "die-at-commit:1", "die-after-commit:1"] {
        let mut dying = example(&world, "balances", "consumer", &[&own[..], &["--inject", fault]].concat());
        assert!(!dying.ended().await.success(), "{fault}: {}", dying.output());
    }
    let drain = [&own[..], &["--drain", "--fault-rate", "0.5", "--fault-seed", "7"]].concat();
    example(&world, "balances", "consumer", &drain).succeed().await;
    assert_eq!(service.number("SELECT last_offset FROM checkpoints").await, record_count);
    let letter = service.number("SELECT record_offset FROM dead_letters").await.to_string();
    service.client.batch_execute(r#"UPDATE dead_letters SET data = '{"id":1,"amount":9000}'"#).await.unwrap();
    let replay = [&own[..], &["--replay", &letter]].concat();
    example(&world, "balances", "operator", &replay).succeed().await;
    world.client().batch_execute("UPDATE accounts SET balance = balance + 9000 WHERE id = 1").await.unwrap();
    let balances = "SELECT string_agg(concat(id, ' ', balance), ', ' ORDER BY id)";
    let here: String = world.client().query_one(&format!("{balances} FROM accounts"), &[]).await.unwrap().get(0);
    let there = format!("{balances} FROM (SELECT account_id AS id, balance FROM account_balances) AS derived");
    let there: String = service.client.query_one(&there, &[]).await.unwrap().get(0);
    assert_eq!(there, here);
    assert_eq!(row_count(&world, "account_balances", "balances0").await, 0);
}

#[tokio::test]
async fn the_example_with_rows_lives_its_whole_life() {
    let world = world_with_accounts().await;
    stage_credits(&world).await;
    example(&world, "balances", "consumer", &["old", "--drain"]).succeed().await;
    archive_and_reap(&world).await;
    example(&world, "balances", "consumer", &["new", "--from", "start", "--drain"]).succeed().await;
    example(&world, "balances", "consumer", &["copy", "--copy-from", "old"]).succeed().await;

    // Afterwards it goes on as any consumer does, and its dead letter is folded by its own program only.
    example(&world, "stage", "owner", &["4", "1"]).succeed().await;
    world.drain_streamer(&mut world.streamer()).await;
    world.client().batch_execute("UPDATE accounts SET balance = balance + 9000 WHERE id = 1").await.unwrap();
    let letter = world.number("SELECT min(record_offset) FROM dead_letters").await;
    for name in ["old", "new", "copy"] {
        example(&world, "balances", "consumer", &[name, "--drain"]).succeed().await;
        let offset = letter.to_string();
        let output = Process::start(&world, "dead-letters", &["replay", name, &offset]).fail(1).await;
        assert!(output.contains("has a fold of another program"), "{output}");
        let output = example(&world, "balances", "operator", &[name, "--replay", &offset]).fail(1).await;
        assert!(output.contains("still rejected: data is not a credit"), "{output}");
        correct_letter(&world, name, letter, r#"{"id":1,"amount":9000}"#).await;
        let output = example(&world, "balances", "operator", &[name, "--replay", &offset]).succeed().await;
        assert!(output.contains(&format!("{name} {letter}: folded")), "{output}");
        assert_balances(&world, name).await;
        assert_eq!(row_count(&world, "dead_letters", name).await, 0);
    }

    example(&world, "balances", "consumer", &["old", "--unregister"]).succeed().await;
    for table in ["checkpoints", "account_balances"] {
        assert_eq!(row_count(&world, table, "old").await, 0, "{table}");
    }
    assert_balances(&world, "copy").await;
}

/// The state of the example with a state, from SQL.
const LONGEST: &str =
    "SELECT json_build_object('ride_id', (array_agg(id ORDER BY distance_mm DESC, id))[1], 'distance_mm', max(distance_mm),
                              'ride_count', count(*))::jsonb::text FROM rides";

/// The consumer has the longest of all rides, and their number.
pub async fn assert_longest(world: &World, name: &str) {
    let expected: String = world.client().query_one(LONGEST, &[]).await.unwrap().get(0);
    let find = "SELECT state::jsonb::text FROM checkpoints WHERE name = $1";
    let found: String = world.client().query_one(find, &[&name]).await.unwrap().get(0);
    assert_eq!(found, expected, "{name}");
}

#[tokio::test]
async fn the_example_with_a_state_lives_its_whole_life_whatever_crashes() {
    let world = World::new().await;
    world.write_rides(5000).await;
    world.drain_streamer(&mut world.streamer()).await;
    drain_with_kills(&world, "longest", "old").await;
    assert_longest(&world, "old").await;
    let spoiled = stage_spoiled_ride(&world).await;
    world.write_rides(10).await;
    world.drain_streamer(&mut world.streamer()).await;
    example(&world, "longest", "consumer", &["old", "--drain"]).succeed().await;
    archive_and_reap(&world).await;
    example(&world, "longest", "consumer", &["new", "--from", "start", "--drain"]).succeed().await;
    example(&world, "longest", "consumer", &["copy", "--copy-from", "old"]).succeed().await;
    let letter = world.number("SELECT min(record_offset) FROM dead_letters").await;
    for name in ["old", "new", "copy"] {
        assert_eq!(row_count(&world, "dead_letters", name).await, 1);
        correct_letter(&world, name, letter, &spoiled).await;
        example(&world, "longest", "operator", &[name, "--replay", &letter.to_string()]).succeed().await;
        assert_eq!(row_count(&world, "dead_letters", name).await, 0);
        assert_longest(&world, name).await;
    }
    let output = Process::start(&world, "consumer", &["old", "--drain"]).fail(2).await;
    assert!(output.contains("registered with fold longest version 1, and not with distance version 1"), "{output}");
    example(&world, "longest", "consumer", &["old", "--unregister"]).succeed().await;
    assert_eq!(row_count(&world, "checkpoints", "old").await, 0);
}
