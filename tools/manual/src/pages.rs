//! Man pages and completions, generated from the definitions by which the binaries parse their flags.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, Parser};
use clap_complete::Shell;

/// Writes man pages and shell completions of every binary, in the folders where a system looks for them.
#[derive(Debug, Clone, Parser)]
#[command(name = "manual", version)]
pub struct Config {
    /// The share folder, for example /usr/local/share. It is created if it is missing.
    #[arg(long, value_name = "FOLDER", default_value = "target/share")]
    pub into: PathBuf,
}

/// Each shell, its folder below the share folder, and the prefix and suffix of a file name there.
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

/// Writes all pages and completions. Existing files are overwritten.
///
/// # Errors
/// The folder cannot be written.
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
