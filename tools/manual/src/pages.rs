//! Man pages and completions, made of the same definitions by which the binaries read their flags.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};
use clap_complete::Shell;

/// Writes man pages and shell completions of every binary, where a system looks for them.
#[derive(Debug, Clone, Parser)]
#[command(name = "manual", version)]
pub struct Config {
    /// Where to: /usr/local/share, or a package's share folder. It is made where it is missing.
    #[arg(long, value_name = "FOLDER", default_value = "target/share")]
    pub into: PathBuf,
}

/// A folder for each shell, below the share folder, and what stands before and after a binary's name there.
const SHELLS: [(Shell, &str, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "", ""),
    (Shell::Zsh, "zsh/site-functions", "_", ""),
    (Shell::Fish, "fish/vendor_completions.d", "", ".fish"),
];

/// Every binary of the workspace. A test compares this list with what cargo builds.
pub fn commands() -> Vec<Command> {
    vec![
        api::Config::command(),
        benchmarks::Cli::command(),
        chaos::Config::command(),
        completer::Config::command(),
        consumer::Config::command(),
        dashboard::Config::command(),
        launcher::Config::command(),
        operator::adopt::Config::command(),
        operator::audit::Config::command(),
        operator::dead_letters::Config::command(),
        operator::doctor::Config::command(),
        payments::Config::command(),
        reaper::Config::command(),
        receipts::Config::command(),
        simulator::Config::command(),
        streamer::Config::command(),
        Config::command(),
    ]
}

/// Writes them all. A page that is there is written over.
///
/// # Errors
/// The folder cannot be written to.
pub fn write(config: &Config) -> Result<()> {
    let man = config.into.join("man/man1");
    make(&man)?;
    for command in commands() {
        let name = command.get_name().to_owned();
        for (shell, folder, before, after) in SHELLS {
            let folder = config.into.join(folder);
            make(&folder)?;
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command.clone(), &name, &mut script);
            let path = folder.join(format!("{before}{name}{after}"));
            fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
        }
        clap_mangen::generate_to(command, &man).with_context(|| format!("writing the man page of {name}"))?;
    }
    Ok(())
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}
