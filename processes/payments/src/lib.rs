//! Payments: [`Stripe`], the client that charges by Stripe's HTTP API, and [`serve`], a small server for development and tests
//! that responds as Stripe does.
//!
//! A charge is requested at least once and made once: the client sends the same key in each attempt, and the server gives a
//! known key the same response again. So after a time-out, a 500 or a crash on either side the client retries the charge.
//! Where a key is too old or spent, the client looks for the charge by its metadata.

mod answer;
mod args;
mod charge;
mod faults;
mod ledger;
mod outcome;
mod paths;
mod request;
mod server;
mod stripe;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use common::fault::FaultArgs;
use common::shutdown::CancellationToken;
use monitor::declare_counter;
use process::ProcessArgs;
use tokio::net::TcpListener;

pub use args::StripeArgs;
pub use charge::{CHARGE_KEY, ChargeError, ChargeForm, ChargeState, Charged};
pub use ledger::{BAD_CUSTOMER, GOOD_CUSTOMER};
pub use server::serve;
pub use stripe::{ChargePage, Stripe, describe_metrics};

/// Takes charges as Stripe does, for development and tests. No money moves.
#[derive(Debug, Clone, Parser)]
#[command(name = "payments", version)]
pub struct Config {
    /// The port to listen on, at 127.0.0.1; 0 takes a free one.
    #[arg(long, env = "PAYMENTS_PORT", default_value_t = 5006)]
    pub payments_port: u16,

    /// The folder of the journal, in which every charge is kept.
    #[arg(long, env = "PAYMENTS_DATA", value_name = "FOLDER", default_value = ".data/payments")]
    pub data: PathBuf,

    /// Let POST /_faults plan what goes wrong with the next charges.
    #[arg(long)]
    pub faults: bool,

    /// Injected time-outs and errors; here the probability is that of a charge.
    #[command(flatten)]
    pub fault: FaultArgs,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Serves on the configured port until `shutdown`.
///
/// # Errors
/// The port is taken, or as [`serve`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let port = config.payments_port;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = listener.await.with_context(|| format!("listening on port {port}: set PAYMENTS_PORT to another"))?;
    monitor::start(&config.process.monitor).await?;
    for outcome in ["made", "declined"] {
        let help = "Charges and customers that were made, and charges that were declined";
        declare_counter("rocket_rides_charges_total", help, &[("outcome", outcome)]);
    }
    serve(listener, config, shutdown).await
}
