//! The configuration.

use std::path::PathBuf;

use clap::{ArgGroup, Parser};
use lettre::message::Mailbox;
use lettre::{AsyncSmtpTransport, Tokio1Executor};

/// Notes receipts and delivers them.
// Without `skip` the group of all arguments here would have the same name as the group of all the consumer's arguments.
#[derive(Debug, Clone, Parser)]
#[command(name = "receipts", version, group(ArgGroup::new("sink")))]
#[group(skip)]
pub struct Config {
    /// The consumer that notes them.
    #[command(flatten)]
    pub consumer: consumer::Config,

    /// Deliver into this folder, one file per receipt.
    #[arg(long, env = "RECEIPTS_DIR", group = "sink")]
    pub folder: Option<PathBuf>,

    /// Deliver by this mail server, for example smtps://USER:PASSWORD@mail.example.com or smtp://localhost:25
    #[arg(long, env = "RECEIPTS_SMTP_URL", group = "sink", hide_env_values = true, value_parser = parse_smtp_url)]
    pub smtp_url: Option<String>,

    /// The sender of receipts.
    #[arg(long, env = "RECEIPTS_FROM", default_value = "receipts@example.com", value_parser = parse_sender)]
    pub sender: String,
}

fn parse_smtp_url(url: &str) -> Result<String, String> {
    match AsyncSmtpTransport::<Tokio1Executor>::from_url(url) {
        Ok(_) => Ok(url.to_owned()),
        Err(_) => Err("give a URL such as smtp://localhost:25".to_owned()),
    }
}

fn parse_sender(address: &str) -> Result<String, String> {
    match address.parse::<Mailbox>() {
        Ok(_) => Ok(address.to_owned()),
        Err(_) => Err("give an address such as receipts@example.com".to_owned()),
    }
}
