//! The consumer's flags and environment variables.

use anyhow::{Result, bail};
use clap::Parser;
use common::fault::{FaultArgs, Planned};
use connect::{PostgresArgs, StandbyArgs, parse_url};
use process::ProcessArgs;
use stream::StreamArgs;
use wallet::WalletsArgs;

use crate::bootstrap::{BASELINE, Start};
use crate::fault::Fault;
use crate::kind::Fold;
use crate::registry::Registry;

/// Folds the log, for example into the total distance of all rides.
#[derive(Debug, Clone, Parser)]
#[command(name = "consumer", version)]
pub struct OwnConfig {
    /// The consumer.
    #[command(flatten)]
    pub consumer: Config,

    /// The model of the fold `wallets`.
    #[command(flatten)]
    pub wallets: WalletsArgs,
}

/// The flags of every program that folds.
#[derive(Debug, Clone, Parser)]
#[command(name = "consumer", version)]
// clap names a group of arguments after its struct. Receipts flattens this struct into its own `Config`, so this one must
// make no group.
#[group(skip)]
pub struct Config {
    /// Name of this consumer. Its states and its checkpoints are kept under it; run one process per name, or give each process of the
    /// name partitions of its own.
    #[arg(value_parser = parse_name)]
    pub name: String,

    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// A standby, for the records that the stream lacks.
    #[command(flatten)]
    pub standby: StandbyArgs,

    /// A database of this consumer's own for its checkpoints and states, with the tables of consumer/home.sql. Without it, the log's
    #[arg(long, env = "STATE_DATABASE_URL", hide_env_values = true, value_parser = parse_url)]
    pub state_database_url: Option<tokio_postgres::Config>,

    /// Where the stream is.
    #[command(flatten)]
    pub stream: StreamArgs,

    /// The name of the fold; without it, the program's first one. A registered consumer keeps its fold.
    #[arg(long, value_name = "FOLD")]
    pub fold: Option<String>,

    /// Where a consumer begins that is not registered yet.
    #[arg(long, value_enum, default_value_t, hide_possible_values = false, value_name = "PLACE", conflicts_with_all = ["copy_from", "unregister"])]
    pub from: Start,

    /// Injected crashes.
    #[command(flatten)]
    pub fault: FaultArgs,

    /// For chaos and tests: FAULT:N injects this fault into every batch from the Nth on.
    #[arg(long, hide = true)]
    pub inject: Option<Planned<Fault>>,

    /// Exit with status 0 once nothing is left to read.
    #[arg(long)]
    pub drain: bool,

    /// Register this consumer, also if it was unregistered before; then exit.
    #[arg(long, conflicts_with_all = ["drain", "copy_from", "unregister"])]
    pub register: bool,

    /// Register with state, dead letters and checkpoint of another consumer, or of the reaper's "baseline"; then exit.
    #[arg(long, value_name = "OTHER", conflicts_with_all = ["drain", "unregister"])]
    pub copy_from: Option<String>,

    /// Remove this consumer, its state and its dead letters, so that it holds back the reaper no longer; then exit. It does not
    /// come back when it is started again.
    #[arg(long, conflicts_with = "drain")]
    pub unregister: bool,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// The databases of a consumer.
#[derive(Clone)]
pub(crate) struct Databases {
    /// The log's.
    pub log: tokio_postgres::Config,
    /// Its own, with checkpoints and states; `None`: they are in the log's.
    pub own: Option<tokio_postgres::Config>,
    /// A hot standby of the log's.
    pub standby: Option<tokio_postgres::Config>,
}

impl Config {
    /// Where the log and the states are.
    pub(crate) fn databases(&self) -> Databases {
        Databases {
            log: self.postgres.database_url.clone(),
            own: self.state_database_url.clone(),
            standby: self.standby.standby_database_url.clone(),
        }
    }

    /// Whether the process changes a registration, and exits.
    pub fn administers(&self) -> bool {
        self.register || self.unregister || self.copy_from.is_some()
    }

    /// The fold of `registry` that `--fold` names; without the flag, the first.
    ///
    /// # Errors
    /// There is none of this name.
    pub(crate) fn fold(&self, registry: &Registry) -> Result<Box<dyn Fold>> {
        self.fold.as_deref().map_or_else(|| Ok(registry.first()), |name| registry.find(name))
    }
}

fn parse_name(text: &str) -> Result<String> {
    if !(1..=100).contains(&text.chars().count()) {
        bail!("give a name of 1 to 100 characters, for example consumer0");
    }
    if text == BASELINE {
        bail!("the reaper keeps its own state under this name: choose another, for example consumer0");
    }
    Ok(text.to_owned())
}
