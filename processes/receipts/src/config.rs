//! The configuration.

use std::path::PathBuf;

use clap::{ArgGroup, Parser};

/// Notes receipts and delivers them.
// Without `skip` the group of all arguments here would have the same name as the group of all the consumer's arguments.
#[derive(Debug, Clone, Parser)]
#[command(name = "receipts", version, group(ArgGroup::new("sink").required(true)))]
#[group(skip)]
pub struct Config {
    /// The consumer that notes them.
    #[command(flatten)]
    pub consumer: consumer::Config,

    /// Deliver into this folder, one file per receipt.
    #[arg(long, env = "RECEIPTS_DIR", group = "sink")]
    pub folder: Option<PathBuf>,

    /// Deliver by this mail server, for example smtps://USER:PASSWORD@mail.example.com or smtp://localhost:25
    #[arg(long, env = "RECEIPTS_SMTP_URL", group = "sink", hide_env_values = true)]
    pub smtp_url: Option<String>,

    /// The sender of receipts.
    #[arg(long, env = "RECEIPTS_FROM", default_value = "receipts@example.com")]
    pub sender: String,
}
