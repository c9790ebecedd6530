//! A pooler between a process and Postgres. One that shares sessions is refused by every program; one in session mode works.

use std::time::Duration;

use tests::{Payments, PgBouncer, Process, World, free_port, wait_until};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Starts a program whose `DATABASE_URL` leads to the pooler, for the user that it has without one.
fn start(world: &World, pooler: &PgBouncer, name: &str, args: &[&str]) -> Process {
    let direct: tokio_postgres::Config = world.database_url_of(name).parse().unwrap();
    let url = pooler.url(direct.get_user().unwrap(), world.database_name());
    Process::start(world, name, &[&["--database-url", &url][..], args].concat())
}

/// A client of the pooler that is no program of ours.
async fn stranger(world: &World, pooler: &PgBouncer, user: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&pooler.url(user, world.database_name()), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn first(client: &tokio_postgres::Client, query: &str) -> String {
    let messages = client.simple_query(query).await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
        _ => None,
    });
    row.unwrap()
}

const WAY_OUT: &str = "pool_mode = session";

/// Even if it is the pooler's only client, and leaves no setting behind.
#[tokio::test]
async fn every_program_refuses_a_pooler_that_shares_sessions() {
    every_program_refuses("pool_mode = transaction").await;
    every_program_refuses("pool_mode = statement").await;
}

async fn every_program_refuses(mode: &str) {
    let world = World::new().await;
    let pooler = PgBouncer::start(world.database_url(), &[mode]).await;
    let payments = Payments::start().await;
    let folder = tests::scratch_folder();
    let page_port = free_port().to_string();
    for (name, args) in [
        ("api", vec!["--api-port", "0", "--monitor-port", "0"]),
        ("streamer", vec![]),
        ("consumer", vec!["consumer0"]),
        ("consumer", vec!["consumer0", "--unregister"]),
        ("receipts", vec!["receipts", "--folder", folder.to_str().unwrap()]),
        ("completer", payments.flags().to_vec()),
        ("reaper", vec![]),
        ("dashboard", vec!["--dashboard-port", &page_port]),
        ("audit", vec![]),
        ("dead-letters", vec!["list"]),
        ("adopt", vec![]),
    ] {
        let output = start(&world, &pooler, name, &args).fail(2).await;
        assert!(output.contains(WAY_OUT), "{mode}, {name}: {output}");
    }
    let output = start(&world, &pooler, "doctor", &[]).fail(1).await;
    assert!(output.contains("FAIL postgres.session") && output.contains(WAY_OUT), "{output}");
    for user in ["app", "rocket_api", "rocket_streamer", "rocket_consumer", "rocket_receipts", "rocket_reaper"] {
        let settings =
            "SELECT current_setting('statement_timeout') || ' ' || current_setting('synchronous_commit') || ' ' ||
                        COALESCE(current_setting('rocket_rides.session', true), 'not marked')";
        let left = first(&stranger(&world, &pooler, user).await, settings).await;
        assert_eq!(left, "0 on not marked", "{user}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// An api without a monitor connects with the first request.
#[tokio::test]
async fn an_api_that_finds_the_pooler_late_stops_too() {
    let world = World::new().await;
    let pooler = PgBouncer::start(world.database_url(), &["pool_mode = transaction"]).await;
    let mut api = start(&world, &pooler, "api", &["--api-port", "0"]);
    let url = format!("http://{}/rides", api.address_after("api started").await);
    // The process may end before it responds.
    let response = reqwest::Client::new().post(url).json(&serde_json::json!({"distance": 1})).send().await;
    assert!(response.is_err() || response.unwrap().status() == 503);
    assert!(api.fail(2).await.contains(WAY_OUT));
    assert_eq!(world.number("SELECT count(*) FROM rides").await, 0);
}

#[tokio::test]
async fn a_busy_pooler_that_shares_sessions_is_found_too() {
    for order in ["server_round_robin = 0", "server_round_robin = 1"] {
        let world = World::new().await;
        let settings = ["pool_mode = transaction", "default_pool_size = 3", order];
        let pooler = PgBouncer::start(world.database_url(), &settings).await;
        let mut strangers = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let client = stranger(&world, &pooler, "rocket_streamer").await;
            strangers.spawn(async move {
                loop {
                    client.batch_execute("BEGIN; SELECT pg_sleep(0.002); COMMIT").await.unwrap();
                    tokio::time::sleep(Duration::from_millis(rand::random::<u64>() % 3)).await;
                }
            });
        }
        for _ in 0..5 {
            let output = start(&world, &pooler, "streamer", &[]).fail(2).await;
            assert!(output.contains(WAY_OUT), "{order}: {output}");
        }
        assert!(strangers.try_join_next().is_none(), "the other clients go on");
        strangers.shutdown().await;
        // Each of three clients that are in a transaction at once has another session.
        let mut held = Vec::new();
        for _ in 0..3 {
            let client = stranger(&world, &pooler, "rocket_streamer").await;
            client.batch_execute("BEGIN").await.unwrap();
            let mark =
                first(&client, "SELECT COALESCE(current_setting('rocket_rides.session', true), 'not marked')").await;
            assert_eq!(mark, "not marked", "{order}");
            held.push(client);
        }
    }
}

#[tokio::test]
async fn a_pooler_in_session_mode_works_if_it_resets_its_sessions() {
    let world = World::new().await;
    let pooler = PgBouncer::start(world.database_url(), &["pool_mode = session"]).await;
    let mut api = start(&world, &pooler, "api", &["--api-port", "0", "--monitor-port", "0"]);
    let url = format!("http://{}/rides", api.address_after("api started").await);
    let streamer = start(&world, &pooler, "streamer", &[]);
    for round in 1..=3 {
        // The second consumer gets the session of the first one.
        let consumer = start(&world, &pooler, "consumer", &["consumer0"]);
        let sent = reqwest::Client::new().post(&url).json(&serde_json::json!({"distance": 1})).send().await.unwrap();
        assert_eq!(sent.status().as_u16(), 201);
        let folded = "SELECT COALESCE(max(last_offset), 0) FROM checkpoints";
        wait_until("the ride is folded", async || world.number(folded).await == round).await;
        consumer.stop().await;
    }
    world.assert_converged(&["consumer0"]).await;
    streamer.stop().await;
    api.stop().await;
}

#[tokio::test]
async fn a_pooler_in_session_mode_that_resets_nothing_is_refused() {
    let world = World::new().await;
    let pooler = PgBouncer::start(world.database_url(), &["pool_mode = session", "server_reset_query ="]).await;
    start(&world, &pooler, "consumer", &["consumer0", "--drain"]).succeed().await;
    let output = start(&world, &pooler, "consumer", &["consumer0", "--drain"]).fail(2).await;
    assert!(output.contains("server_reset_query"), "{output}");
}

/// As OPERATING.md says: a service of one's own may stage records through such a pooler.
#[tokio::test]
async fn records_are_staged_in_plain_sql_through_a_pooler_that_shares_sessions() {
    let world = World::new().await;
    let pooler = PgBouncer::start(world.database_url(), &["pool_mode = transaction"]).await;
    let client = stranger(&world, &pooler, "rocket_api").await;
    for number in 1..=10 {
        let stage = format!(
            "BEGIN; INSERT INTO rides (distance_mm) VALUES ({number});
             INSERT INTO staged_log_records (object, action, data)
             VALUES ('ride', 'create', '{{\"id\":{number},\"distance_mm\":{number}}}'); COMMIT"
        );
        client.batch_execute(&stage).await.unwrap();
    }
    world.drain_streamer(&mut world.streamer()).await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
}
