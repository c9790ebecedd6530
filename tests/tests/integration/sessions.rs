//! Sessions of processes that are stopped, gone or cut off: Postgres ends them, and what they held is free.

use std::time::Duration;

use nix::sys::signal::Signal;
use tests::{Payments, PrivatePostgres, PrivateRedis, Process, Watched, World, roles, scratch_folder};
use tests::{wait_long_until, wait_until};
use tokio_postgres::Config;

/// No server listens on this port.
const REFUSES: &str = "redis://127.0.0.1:1";

/// Waits until a streamer listens for hints, and has asked for sessions to end once.
async fn wait_for_listener(world: &World) {
    let listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
                     AND application_name = 'streamer hints' AND query LIKE '%end_stuck_sessions%'";
    wait_until("the leader listens", async || world.number(listening).await > 0).await;
}

/// The servers of `bin/test` have unix sockets only, where no keepalive ends a session. A thousand hints fill the socket of
/// a process that does not read, and then Postgres waits in the middle of sending, where no limit of time applies.
#[tokio::test]
async fn a_stopped_leader_with_a_thousand_hints_behind_it_loses_the_lock() {
    let world = World::new().await;
    let mut leader = Process::start(&world, "streamer", &[]);
    leader.wait_for("leading").await;
    wait_for_listener(&world).await;
    let mut standby = Process::start(&world, "streamer", &[]);
    standby.wait_for("standing by").await;
    leader.signal(Signal::SIGSTOP);
    world.write_rides(10).await;
    for _ in 0..1_000 {
        pglog::hint(world.client()).await.unwrap();
    }
    let stuck = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                 AND application_name LIKE 'streamer%' AND wait_event = 'ClientWrite'";
    assert!(world.number(stuck).await > 0, "the socket of the stopped process is full");
    standby.wait_for("batch published").await;
    wait_until("the new leader has ended the session that reads no hints", async || world.number(stuck).await == 0)
        .await;
    leader.signal(Signal::SIGCONT);
    leader.wait_for("standing by").await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
    leader.stop().await;
    standby.stop().await;
}

/// The session with the lock listens for nothing, whatever else the streamer does.
#[tokio::test]
async fn a_hint_wakes_the_leader_through_a_session_that_holds_no_lock() {
    let world = World::new().await;
    let mut leader = Process::start(&world, "streamer", &[]);
    leader.wait_for("leading").await;
    wait_for_listener(&world).await;
    let holders = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                   WHERE locktype = 'advisory' AND datname = current_database() AND application_name = ";
    assert_eq!(world.number(&format!("{holders}'streamer'")).await, 1);
    assert_eq!(world.number(&format!("{holders}'streamer hints'")).await, 0);
    // Without its listener the leader goes on, and it listens again.
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'streamer hints'";
    assert_eq!(world.number(kill).await, 1);
    world.write_rides(10).await;
    wait_until("it publishes", async || world.stream_len().await == 10).await;
    wait_for_listener(&world).await;
    assert_eq!(leader.output().matches(" leading").count(), 1, "{}", leader.output());
    leader.stop().await;
}

#[tokio::test]
async fn a_leader_that_cannot_reach_redis_leaves_the_lead_to_one_that_can() {
    let world = World::new().await;
    let mut cut_off = Process::start(&world, "streamer", &["--redis-url", REFUSES]);
    cut_off.wait_for("leading").await;
    world.write_rides(10).await;
    let is_cut = async || !pglog::is_anything_staged(world.client(), pglog::Partition::FIRST).await.unwrap();
    wait_until("the records have offsets", is_cut).await;
    // Alone, it leads again and again, and goes on cutting batches.
    cut_off.wait_for("stepping down").await;
    world.write_rides(10).await;
    wait_until("the records have offsets", is_cut).await;
    assert_eq!(cut_off.output().matches(" leading").count(), 1, "that is no news: {}", cut_off.output());
    let mut sound = Process::start(&world, "streamer", &[]);
    sound.wait_for("batch published").await;
    cut_off.wait_for("standing by").await;
    world.drain_consumer(&mut world.consumer("consumer0")).await;
    world.assert_converged(&["consumer0"]).await;
    assert!(sound.is_running() && cut_off.is_running());
    cut_off.stop().await;
    sound.stop().await;
}

/// Over TCP, because Postgres has no keepalives on a unix socket.
#[tokio::test]
async fn every_session_has_limits_by_which_the_server_ends_it() {
    let port = tests::free_port();
    let settings = ["fsync=off", "listen_addresses=127.0.0.1", &format!("port={port}")];
    let postgres = PrivatePostgres::start_with(&settings).await;
    let (mut config, by_socket) = (Config::new(), postgres.url().parse::<Config>().unwrap());
    config.host("127.0.0.1").port(port).user(by_socket.get_user().unwrap()).dbname("postgres");
    let pool = connect::postgres::pool(&config, "test", 1).unwrap();
    let (pooled, alone) = (
        connect::postgres::take(&pool).await.unwrap(),
        connect::postgres::connect(&config, "test", || {}).await.unwrap(),
    );
    for client in [&**pooled, &*alone] {
        for (setting, limit) in [
            ("idle_session_timeout", "5min"),
            ("idle_in_transaction_session_timeout", "1min"),
            ("statement_timeout", "30s"),
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "25000"),
        ] {
            let row = client.query_one("SELECT current_setting($1)", &[&setting]).await.unwrap();
            assert_eq!(row.get::<_, &str>(0), limit, "{setting}");
        }
    }
}

#[tokio::test]
async fn a_pool_closes_idle_connections_before_the_server_does() {
    let world = World::new().await;
    let config = world.database_url_of("api").parse().unwrap();
    let pool = connect::postgres::pool(&config, "test pool", 2).unwrap();
    let both = (connect::postgres::take(&pool).await.unwrap(), connect::postgres::take(&pool).await.unwrap());
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test pool'
                AND datname = current_database()";
    assert_eq!(world.number(open).await, 2);
    drop(both);
    // The server would wait five minutes.
    wait_long_until(Duration::from_secs(150), "both are closed", async || world.number(open).await == 0).await;
    assert_eq!(pool.status().size, 0);
    connect::postgres::take(&pool).await.unwrap().simple_query("SELECT 1").await.unwrap();
}

/// The operator's own limit takes precedence over that of the processes. Here it is short.
#[tokio::test]
async fn a_stopped_process_of_any_kind_leaves_no_session_behind() {
    let (postgres, redis) = (PrivatePostgres::start().await, PrivateRedis::start(&[]).await);
    let world = World::on(&postgres.url(), &redis.url()).await;
    for role in roles() {
        let limit = format!("ALTER ROLE rocket_{role} SET idle_session_timeout = '8s'");
        world.client().batch_execute(&limit).await.unwrap();
    }
    let (payments, folder) = (Payments::start().await, scratch_folder());
    let (booking, api_port) = (payments.flags(), tests::free_port().to_string());
    let mut processes = Vec::new();
    for (name, args) in [
        ("api", [&["--api-port", &api_port], &booking[..]].concat()),
        ("streamer", vec![]),
        ("consumer", vec!["consumer0"]),
        ("consumer", vec!["history", "--fold", "history"]),
        ("reaper", vec!["--interval", "1s"]),
        ("completer", booking.to_vec()),
        ("receipts", vec!["receipts", "--folder", folder.to_str().unwrap()]),
        ("dashboard", vec!["--dashboard-port", "0"]),
    ] {
        processes.push(Watched::start(&world, name, &args).await);
    }
    let url = format!("http://127.0.0.1:{api_port}/rides");
    let ride = async || {
        let request = reqwest::Client::new().post(&url).header("content-type", "application/x-www-form-urlencoded");
        request.body("distance=5").send().await.unwrap().status()
    };
    assert_eq!(ride().await, 201);

    // Sessions that live long say something now and then, although there is nothing to do.
    let longest =
        ["streamer", "streamer hints", "consumer consumer0", "consumer history", "receipts", "dashboard", "monitor"];
    let lived = "SELECT count(DISTINCT application_name) FROM pg_stat_activity
                 WHERE application_name = ANY($1) AND backend_start < now() - INTERVAL '20 s'";
    wait_until("the sessions are older than the limit", async || {
        world.client().query_one(lived, &[&&longest[..]]).await.unwrap().get::<_, i64>(0) == longest.len() as i64
    })
    .await;
    for watched in &processes {
        wait_until("every process is ready", async || watched.is_ready().await).await;
        watched.process.signal(Signal::SIGSTOP);
    }
    let left = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'rocket\\_%'";
    // A process may have been stopped in a transaction, which ends after a minute.
    wait_long_until(Duration::from_secs(120), "no session is left", async || world.number(left).await == 0).await;
    for watched in &processes {
        watched.process.signal(Signal::SIGCONT);
    }
    wait_until("rides are taken again", async || ride().await == 201).await;
    for watched in &processes {
        wait_until("every process is ready again", async || watched.is_ready().await).await;
    }
    world.drain_consumer(&mut world.consumer("another")).await;
    wait_until("all is folded", async || world.committed("consumer0").await.0 == 2).await;
    drop(processes);
    std::fs::remove_dir_all(folder).unwrap();
}
