//! The container: one HTTP request for several destinations. All of them store it, or none does.

pub mod declaration;

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Parser;
use common::shutdown::CancellationToken;
use common::stay_down::StayDown;

use crate::declaration::{Declaration, environment};
use process::{BAD_SETTING, ProcessArgs};

/// Stores each request in several destinations, or in none.
#[derive(Debug, Clone, Parser)]
#[command(name = "container", version)]
pub struct Config {
    /// The file that declares resources and destinations, for example ops/container.toml
    #[arg(long, env = "CONTAINER_CONFIG", value_name = "FILE")]
    pub config: PathBuf,

    /// Check the file and the variables that it names, print the result, and exit. It connects to no server.
    #[arg(long)]
    pub check: bool,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// Checks the declaration, with `--check`.
///
/// # Errors
/// The declaration has a fault. With `--check` the process exits at once, with one line per fault and status 2.
pub async fn run(config: Config, _shutdown: CancellationToken) -> Result<()> {
    let declaration = Declaration::read(&config.config, &environment);
    if config.check {
        match declaration {
            Ok(declaration) => println!("{declaration}"),
            Err(complaint) => {
                complaint.lines().iter().for_each(|line| eprintln!("{line}"));
                std::process::exit(BAD_SETTING.into())
            }
        }
        return Ok(());
    }
    declaration.map_err(|complaint| StayDown(complaint.into()))?;
    Err(StayDown(anyhow!("the container does not serve yet: pass --check")).into())
}
