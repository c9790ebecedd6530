//! A server that becomes read-only: every process leaves it and finds the writable one, and says meanwhile that it is not ready.

use std::path::PathBuf;

use serde_json::json;
use tests::{Payments, PrivatePostgres, PrivateRedis, Process, Watched, World, free_port, wait_until};

use crate::booking_fixture::{JOURNEY, USER};

/// A primary and its standby, and every process that works on Postgres, with both hosts in its URL.
struct Fleet {
    primary: PrivatePostgres,
    standby: PrivatePostgres,
    /// Connects to the server that is writable.
    world: World,
    database: String,
    processes: Vec<(&'static str, Watched)>,
    api_port: u16,
    folder: PathBuf,
    _payments: Payments,
    _redis: PrivateRedis,
}

/// In which order the URL names the hosts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Primary,
    Standby,
}

impl Fleet {
    async fn start(first: First) -> Self {
        let primary = PrivatePostgres::start().await;
        let redis = PrivateRedis::start(&[]).await;
        let (mut world, standby) = World::with_standby(&primary, &redis).await;
        let database = world.stream_name().to_owned();
        if first == First::Standby {
            world = World::at(&standby.url_with(&primary, &database), &redis.url(), &database).await;
        }
        let payments = Payments::start().await;
        let folder = tests::scratch_folder();
        let (api_port, page_port) = (free_port(), free_port());
        let mut processes = Vec::new();
        for (name, args) in [
            ("api", [&["--api-port", &api_port.to_string()][..], &payments.flags()].concat()),
            ("streamer", vec![]),
            ("consumer", vec!["consumer0"]),
            ("receipts", vec!["receipts", "--folder", folder.to_str().unwrap()]),
            ("completer", [&["--interval", "100ms"][..], &payments.flags()].concat()),
            ("reaper", vec!["--interval", "100ms", "--keep", "0s"]),
            ("dashboard", vec!["--dashboard-port", &page_port.to_string()]),
        ] {
            processes.push((name, Watched::start(&world, name, &args).await));
        }
        let fleet =
            Self { primary, standby, world, database, processes, api_port, folder, _payments: payments, _redis: redis };
        fleet.is_ready().await;
        fleet.carries_rides().await;
        fleet
    }

    async fn is_ready(&self) {
        for (name, process) in &self.processes {
            wait_until(&format!("{name} is ready"), async || process.is_ready().await).await;
        }
        wait_until("the api takes rides", async || self.health().await == 200).await;
    }

    async fn is_not_ready(&self) {
        wait_until("the api takes no rides", async || self.health().await == 503).await;
        for (name, process) in &self.processes {
            wait_until(&format!("{name} is not ready"), async || !process.is_ready().await).await;
        }
    }

    async fn health(&self) -> u16 {
        reqwest::get(format!("http://127.0.0.1:{}/healthz", self.api_port)).await.unwrap().status().as_u16()
    }

    /// Sends rides of a guest and a booked ride, and waits until every process has done its part on the writable server.
    async fn carries_rides(&self) {
        let client = reqwest::Client::new();
        let url = format!("http://127.0.0.1:{}/rides", self.api_port);
        for _ in 0..3 {
            let sent = client.post(&url).json(&json!({"distance": 7})).send().await.unwrap();
            assert_eq!(sent.status().as_u16(), 201);
        }
        let key = format!("key-{:016x}", rand::random::<u64>());
        let booking = client.post(&url).header("authorization", USER).header("idempotency-key", key);
        let booking = booking.header("content-type", "application/x-www-form-urlencoded").body(JOURNEY);
        let booked = booking.send().await.unwrap();
        assert_eq!(booked.status().as_u16(), 201, "{}", booked.text().await.unwrap());
        let database = self.world.connect().await;
        for (what, query) in [
            (
                "consumer0 has folded all",
                "SELECT ride_count = (SELECT count(*) FROM rides)
                    AND total_distance_mm = (SELECT sum(distance_mm) FROM rides)
                 FROM consumer_states WHERE name = 'consumer0'",
            ),
            (
                "the receipts are delivered",
                "SELECT count(delivered_at) = (SELECT count(*) FROM bookings) FROM receipts",
            ),
            (
                "the reaper has followed",
                "SELECT bool_and(last_offset = (SELECT last_offset FROM checkpoints WHERE name = 'consumer0'))
                 FROM checkpoints WHERE is_baseline",
            ),
        ] {
            let holds = async || {
                let row = database.query_opt(query, &[]).await.unwrap();
                row.is_some_and(|row| row.get::<_, Option<bool>>(0) == Some(true))
            };
            wait_until(what, holds).await;
        }
    }

    /// Waits until no process but `stays` has a session on this server.
    async fn is_left(&self, server: &PrivatePostgres, stays: &[&str]) {
        let query = format!(
            "SELECT DISTINCT application_name FROM pg_stat_activity
             WHERE datname = '{}' AND application_name <> 'test'",
            self.database
        );
        let left = async || {
            let names = server.run("postgres", &query).await;
            names.iter().all(|name| stays.contains(&name.as_str()))
        };
        wait_until("every process has left the server", left).await;
    }

    async fn end(self) {
        for (_, process) in self.processes {
            process.process.stop().await;
        }
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

const STOP_WRITING: &str = "ALTER SYSTEM SET default_transaction_read_only = on";
const RELOAD: &str = "SELECT pg_reload_conf()";

#[tokio::test]
async fn a_server_that_is_set_to_read_only_is_left_by_every_process() {
    let fleet = Fleet::start(First::Primary).await;
    fleet.primary.run("postgres", STOP_WRITING).await;
    fleet.primary.run("postgres", RELOAD).await;
    fleet.is_not_ready().await;
    fleet.standby.follows(&fleet.primary).await;
    fleet.standby.promote().await;
    fleet.is_ready().await;
    fleet.carries_rides().await;
    fleet.is_left(&fleet.primary, &[]).await;
    fleet.end().await;
}

#[tokio::test]
async fn a_server_that_comes_back_as_a_standby_is_left_by_every_process() {
    let mut fleet = Fleet::start(First::Primary).await;
    fleet.primary.restart_as_standby().await;
    fleet.is_not_ready().await;
    fleet.standby.promote().await;
    fleet.is_ready().await;
    fleet.carries_rides().await;
    fleet.is_left(&fleet.primary, &[]).await;
    fleet.end().await;
}

#[tokio::test]
async fn a_database_that_is_read_only_for_new_sessions_is_left_when_the_old_ones_end() {
    let fleet = Fleet::start(First::Primary).await;
    let database = &fleet.database;
    fleet.primary.run("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;
    let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'");
    fleet.primary.run("postgres", &end).await;
    fleet.is_not_ready().await;
    fleet.standby.follows(&fleet.primary).await;
    fleet.standby.promote().await;
    let writable = format!("ALTER DATABASE {database} RESET default_transaction_read_only");
    fleet.standby.run("postgres", &writable).await;
    fleet.is_ready().await;
    fleet.carries_rides().await;
    fleet.is_left(&fleet.primary, &[]).await;
    fleet.end().await;
}

#[tokio::test]
async fn a_standby_that_the_url_names_first_is_passed_over() {
    let fleet = Fleet::start(First::Standby).await;
    fleet.is_left(&fleet.standby, &[]).await;
    fleet.end().await;
}

/// A server whose machine hangs: the connection is accepted, and nothing is answered.
#[tokio::test]
async fn a_host_that_does_not_answer_is_passed_over() {
    let world = World::new().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = |name: &str| {
        let url = world.database_url_of(name);
        let (user, server) = url.split_once('@').unwrap();
        let (host, database) = server.split_once('/').unwrap();
        let (host, port) = host.split_once(':').unwrap_or((host, "5432"));
        format!("{user}@127.0.0.1:{},{host}:{port}/{database}", silent.local_addr().unwrap().port())
    };
    world.write_rides(5).await;
    world.drain_streamer(&mut world.streamer()).await;
    // One connection of its own, and a pool.
    let consumer = ["consumer0", "--drain", "--database-url", &through("consumer")];
    Process::start(&world, "consumer", &consumer).succeed().await;
    world.assert_converged(&["consumer0"]).await;
    let mut api = Process::start(&world, "api", &["--api-port", "0", "--database-url", &through("api")]);
    let url = format!("http://{}/rides", api.address_after("api started").await);
    let sent = reqwest::Client::new().post(url).json(&json!({"distance": 7})).send().await.unwrap();
    assert_eq!(sent.status().as_u16(), 201);
}

/// A proxy may have led a session to another server, which refuses each statement and reports no setting.
#[tokio::test]
async fn a_statement_that_is_refused_as_read_only_leads_away_too() {
    let fleet = Fleet::start(First::Primary).await;
    fleet.standby.follows(&fleet.primary).await;
    fleet.standby.promote().await;
    let database = &fleet.database;
    fleet.primary.run("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'read_only_sql_transaction'; END $$";
    let refuse = ["rides", "staged_log_records", "log_batches", "checkpoints", "tracked_operations"].iter().fold(
        format!("SET transaction_read_only = off; {refuse};"),
        |script, table| {
            format!(
                "{script} CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {table} EXECUTE FUNCTION refuse();"
            )
        },
    );
    fleet.primary.run(database, &refuse).await;
    // The dashboard only reads, so nothing is refused to it.
    fleet.is_left(&fleet.primary, &["dashboard"]).await;
    fleet.is_ready().await;
    fleet.carries_rides().await;
    fleet.end().await;
}

/// For each process a table or a right that it needs.
#[tokio::test]
async fn a_process_that_lacks_a_table_or_a_right_is_not_ready() {
    let fleet = Fleet::start(First::Primary).await;
    for (name, breaking, mending) in [
        ("api", "ALTER TABLE rides RENAME TO hidden", "ALTER TABLE hidden RENAME TO rides"),
        (
            "api",
            "REVOKE INSERT (object, action, data, traceparent) ON staged_log_records FROM rocket_api",
            "GRANT INSERT (object, action, data, traceparent) ON staged_log_records TO rocket_api",
        ),
        (
            "streamer",
            "REVOKE SELECT ON staged_log_records FROM rocket_streamer",
            "GRANT SELECT ON staged_log_records TO rocket_streamer",
        ),
        (
            "consumer",
            "REVOKE INSERT ON dead_letters FROM rocket_consumer",
            "GRANT INSERT ON dead_letters TO rocket_consumer",
        ),
        (
            "receipts",
            "REVOKE UPDATE (last_offset) ON checkpoints FROM rocket_receipts",
            "GRANT UPDATE (last_offset) ON checkpoints TO rocket_receipts",
        ),
        (
            "receipts",
            "REVOKE UPDATE (delivered_at) ON receipts FROM rocket_receipts",
            "GRANT UPDATE (delivered_at) ON receipts TO rocket_receipts",
        ),
        ("completer", "ALTER TABLE bookings RENAME TO hidden", "ALTER TABLE hidden RENAME TO bookings"),
        ("reaper", "REVOKE DELETE ON log_batches FROM rocket_reaper", "GRANT DELETE ON log_batches TO rocket_reaper"),
        (
            "dashboard",
            "REVOKE SELECT ON checkpoints FROM rocket_dashboard",
            "GRANT SELECT ON checkpoints TO rocket_dashboard",
        ),
    ] {
        fleet.primary.run(&fleet.database, breaking).await;
        let (_, process) = fleet.processes.iter().find(|(other, _)| *other == name).unwrap();
        wait_until(&format!("{name} is not ready after {breaking}"), async || !process.is_ready().await).await;
        if name == "api" {
            assert_eq!(fleet.health().await, 503, "{breaking}");
        }
        fleet.primary.run(&fleet.database, mending).await;
        fleet.is_ready().await;
    }
    fleet.carries_rides().await;
    fleet.end().await;
}
