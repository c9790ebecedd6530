//! The harness of the integration tests: each test gets a database and a stream of its own, real processes, and the
//! assertion that nothing was lost.
//!
//! A test that finds no server fails and names the command that starts one. It is never skipped.

mod begin_proxy;
mod cluster;
mod commit_proxy;
mod connection;
mod cut;
mod dump;
mod mail;
mod payments;
mod pgbouncer;
mod process;
mod python;
mod records;
mod servers;
mod template;
mod terminal;
mod tls_servers;
mod wallets;
mod watched;
mod workspace;
mod world;

use std::time::{Duration, Instant};

pub use begin_proxy::{BeginProxy, Begins};
pub use cluster::PrivateCluster;
pub use commit_proxy::{AtCommit, CommitProxy};
pub use cut::{start_streamer, unpublished};
pub use dump::Dump;
pub use mail::MailServer;
pub use payments::Payments;
pub use pgbouncer::PgBouncer;
pub use process::{Process, binary};
pub use python::python_program;
pub use records::{ReadRecord, falsify};
pub use servers::{Backup, PrivatePostgres, PrivateRedis, free_port, is_alive, scratch_folder};
pub use terminal::{Look, Terminal};
pub use tls_servers::{REDIS_USERS, TlsServers, write_certificate};
pub use wallets::{WalletReader, WalletTraffic, change_wallets, mark, new_wallets};
pub use watched::{Monitor, Watched};
pub use workspace::{Help, root, workspace_binaries};
pub use world::{World, roles, write_rides};

/// How long a test waits for a condition before it fails. It is long: no test asserts how fast something is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds, asking again every few milliseconds.
///
/// # Panics
/// The condition did not hold within [`PATIENCE`].
pub async fn wait_until(what: &str, condition: impl AsyncFnMut() -> bool) {
    wait_long_until(PATIENCE, what, condition).await;
}

/// Like [`wait_until`], with the limit `patience`.
///
/// # Panics
/// The condition did not hold within `patience`.
pub async fn wait_long_until(patience: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {patience:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
