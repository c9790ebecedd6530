//! Receipts for booked rides. A consumer of the log notes each receipt that is asked for, in the transaction that moves its
//! checkpoint; so each is noted once. Beside it, what is noted is delivered, and marked.

mod deliver;
mod fold;

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgGroup, Parser};
use common::shutdown::CancellationToken;
use monitor::declare_counter;

pub use deliver::{Delivery, Sink, deliver};
pub use fold::ReceiptsFold;

/// Notes receipts and delivers them.
#[derive(Debug, Clone, Parser)]
#[command(name = "receipts", version, group(ArgGroup::new("sink").required(true)))]
pub struct Config {
    /// The consumer that notes them.
    #[command(flatten)]
    pub consumer: consumer::Config,

    /// Deliver into this folder, a file a receipt.
    #[arg(long, env = "RECEIPTS_DIR", group = "sink")]
    pub folder: Option<PathBuf>,

    /// Deliver by this mail server, for example smtp://localhost:25
    #[arg(long, env = "RECEIPTS_SMTP_URL", group = "sink", hide_env_values = true)]
    pub smtp_url: Option<String>,

    /// Whom receipts are from.
    #[arg(long, env = "RECEIPTS_FROM", default_value = "receipts@example.com")]
    pub from: String,
}

/// Notes and delivers until `shutdown`; with `--drain`, until the head of the log is reached and all is delivered.
///
/// # Errors
/// The sink cannot be set up; otherwise as [`consumer::run`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let sink = Sink::new(&config)?;
    let health = monitor::start(&config.consumer.process.monitor).await?;
    declare_counter(
        "rocket_rides_receipts_delivered_total",
        "Receipts that the folder or the mail server has taken",
        &[],
    );
    declare_counter("rocket_rides_receipts_refused_total", "Receipts that it has not taken, to be tried again", &[]);
    let noted = shutdown.child_token();
    let delivering = deliver::keep_delivering(&config.consumer, &sink, &noted, &shutdown);
    let noting = async {
        let folded =
            consumer::run_watched(config.consumer.clone(), ReceiptsFold::default(), &health, shutdown.clone()).await;
        noted.cancel();
        folded
    };
    let (folded, delivered) = tokio::join!(noting, delivering);
    folded.and(delivered)
}
