//! Connections of the tests to Postgres, as its owner.

use deadpool_postgres::ClientWrapper as Client;
use tokio_postgres::Config;

/// Connects, or fails the test.
pub(crate) async fn connect(config: &Config) -> Client {
    connect::postgres::connect(config, "test", || {}).await.expect("the servers of bin/test answer")
}
