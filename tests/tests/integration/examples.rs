//! The examples in Rust run as programs: a foreign table beside the log, and a foreign fold.

use tests::{Process, World, binary};
use tokio::process::Command;

fn example(world: &World, name: &str, role: &str, args: &[&str]) -> Process {
    let mut command = Command::new(binary(&format!("examples/{name}")));
    command.args(args).env("DATABASE_URL", world.database_url_of(role)).env("REDIS_URL", world.redis_url());
    command.env("STREAM_NAME", world.stream_name());
    Process::spawn(name, command)
}

async fn world_with_wallets() -> World {
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
    let world = world_with_wallets().await;
    let mut streamer = Process::start(&world, "streamer", &[]);
    streamer.wait_for("leading").await;
    let output = example(&world, "stage", "owner", &["7", "5"]).succeed().await;
    assert_eq!(output, "wallet 7 has 5\n");
    let output = example(&world, "stage", "owner", &["7", "-100"]).fail(1).await;
    assert!(output.contains("wallets_balance_check"), "{output}");
    let output = example(&world, "stage", "owner", &["seven"]).fail(1).await;
    assert!(output.contains("give a wallet and an amount"), "{output}");
    streamer.wait_for("batch published").await;
    streamer.stop().await;
    assert_eq!(world.number("SELECT balance FROM wallets WHERE id = 7").await, 5);
    let records = world.read_from(1, 10).await;
    assert_eq!(records.len(), 1, "{records:?}");
    let record = &records[0];
    let what = (record.object.as_str(), record.action.as_str(), record.data.as_str());
    assert_eq!(what, ("wallet", "credit", r#"{"id":7,"amount":5}"#));
}

/// The example notifies listeners. No other program stages records here.
#[tokio::test]
async fn the_example_wakes_the_streamer() {
    let world = world_with_wallets().await;
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

#[tokio::test]
async fn the_example_fold_derives_every_balance_whatever_crashes() {
    let world = world_with_wallets().await;
    for (wallet, amount) in [("1", "10"), ("2", "300"), ("1", "-4"), ("3", "7"), ("2", "50")] {
        example(&world, "stage", "owner", &[wallet, amount]).succeed().await;
    }
    // Many further credits, of which one can never be applied, and rides, which this fold does not take.
    let many = "WITH credits AS (SELECT n % 50 AS id, n AS amount FROM generate_series(1, 3000) n), wallets AS (
                    INSERT INTO wallets SELECT id, sum(amount) FROM credits GROUP BY id
                    ON CONFLICT (id) DO UPDATE SET balance = wallets.balance + excluded.balance)
                INSERT INTO staged_log_records (object, action, data)
                SELECT 'wallet', 'credit', json_build_object('id', id, 'amount', amount) FROM credits
                UNION ALL SELECT 'wallet', 'credit', '{\"id\":1}'";
    world.client().batch_execute(many).await.unwrap();
    world.write_rides(100).await;
    world.drain_streamer(&mut world.streamer()).await;
    for (name, faults) in [("balances0", "0.3"), ("balances1", "0")] {
        let args = [name, "--drain", "--fault-rate", faults, "--fault-seed", "7"];
        example(&world, "balances", "consumer", &args).succeed().await;
        let differing = format!(
            "SELECT count(*) FROM wallets FULL JOIN
             (SELECT wallet_id AS id, balance FROM wallet_balances WHERE consumer = '{name}') derived USING (id)
             WHERE wallets.balance IS DISTINCT FROM derived.balance"
        );
        assert_eq!(world.number(&differing).await, 0, "{name}");
        let checkpoint = format!("SELECT last_offset FROM checkpoints WHERE name = '{name}'");
        assert_eq!(world.number(&checkpoint).await, 3106);
        let dead_letters = format!("SELECT count(*) FROM dead_letters WHERE name = '{name}'");
        assert_eq!(world.number(&dead_letters).await, 1);
    }
    assert_eq!(world.number("SELECT count(*) FROM wallets").await, 50);
    assert!(world.number("SELECT crash_count FROM checkpoints WHERE name = 'balances0'").await > 0);
}
