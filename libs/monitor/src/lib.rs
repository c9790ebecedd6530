//! Serves a process's metrics and health over HTTP, on a port of its own:
//!
//! - `/metrics`: its metrics, for Prometheus
//! - `/livez`: 200 as long as the process responds at all
//! - `/readyz`, also called `/healthz`: 200 while every loop succeeds, else 503
//! - `POST /fault`, in development only: injects a fault into the next batch. A process whose faults strike one of several
//!   places takes `POST /fault?at=NAME`
//!
//! Ready means that there is progress while there is work; it is not enough that servers can be reached. Each loop of a
//! process has a [`Pulse`], which beats after every success. If a pulse has not beaten for too long, the process is not ready.
//! The next beat makes it ready again.
//!
//! ```
//! # async fn example(args: monitor::MonitorArgs) -> anyhow::Result<()> {
//! use std::time::Duration;
//!
//! let health = monitor::start(&args).await?;
//! let rounds = health.pulse("rounds", Duration::from_secs(5));
//! loop {
//!     // … a round of work …
//!     rounds.beat();
//!     monitor::counter!("rocket_rides_rounds_total").increment(1);
//!     # break Ok(());
//! }
//! # }
//! ```
//!
//! Metrics are recorded with the macros of the crate `metrics`, which this crate exports. Without a port they cost next to
//! nothing.

mod declare;
mod health;
mod orders;
mod probe;
mod server;

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use web::Hosts;

pub use declare::{declare_counter, declare_gauge};
pub use health::{Health, Pulse};
pub use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
pub use orders::{ORDER_HEADER, OrderBook, Orders, is_order};
pub use probe::{Question, try_statements};
pub use server::start;

/// Where a process serves its metrics and health.
#[derive(Debug, Clone, Args)]
pub struct MonitorArgs {
    /// Serve /metrics, /livez and /readyz on this port; 0 takes a free one. Not set: nowhere
    #[arg(long, env = "MONITOR_PORT")]
    pub monitor_port: Option<u16>,

    /// The address to serve them on. 0.0.0.0 listens to the whole network
    #[arg(long, env = "MONITOR_BIND", default_value = "127.0.0.1")]
    pub monitor_bind: IpAddr,

    /// Names under which every HTTP server of this process answers, such as rides.example.com,b.example; * is any name. It
    /// always answers to IP addresses, localhost, and other names without a dot
    #[arg(long, env = "HTTP_HOSTS")]
    pub http_hosts: Option<Hosts>,

    /// For development: take orders to inject a fault (POST /fault), as the buttons of the live page give them
    #[arg(long, env = "FAULT_ORDERS")]
    pub fault_orders: bool,
}

impl MonitorArgs {
    fn address(&self) -> Option<SocketAddr> {
        Some((self.monitor_bind, self.monitor_port?).into())
    }
}
