//! Collects the man pages and completions of all programs that lie beside this one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;

/// Writes man pages and shell completions of every program, in the folders where a system looks for them.
#[derive(Debug, Clone, Parser)]
#[command(name = "manual", version)]
pub struct Config {
    /// The share folder, for example /usr/local/share. It is created if it is missing.
    #[arg(long, value_name = "FOLDER", default_value = "target/share")]
    pub into: PathBuf,
}

/// Has every program in the folder of this one write its pages. Existing files are overwritten. A program of another origin
/// ignores the request: it prints its help, if it has one, and ends.
///
/// # Errors
/// The folder cannot be written, or a program cannot be started or fails.
pub fn write(config: &Config) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let folder = own.parent().context("finding the folder of this program")?;
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        if is_program(&path) {
            have_written(&path, &config.into)?;
        }
    }
    Ok(())
}

fn is_program(path: &Path) -> bool {
    let is_executable = fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    is_executable && path.extension().is_none()
}

fn have_written(program: &Path, share: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.arg("--help").env_clear().env(process::pages::FOLDER, share);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("starting {}", program.display()))?;
    ensure!(status.success(), "{} wrote no pages ({status})", program.display());
    Ok(())
}
