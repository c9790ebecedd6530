//! Sessions of processes that are stopped, gone or cut off: Postgres ends them, and what they held is free.

use std::time::Duration;

use tests::{PrivatePostgres, World, wait_long_until};
use tokio_postgres::Config;

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
