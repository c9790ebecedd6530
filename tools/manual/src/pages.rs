//! Collects the man pages and completions of all programs that lie beside this one, and writes the notices of third parties.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::notices;

/// Writes man pages and shell completions of every program, in the folders where a system looks for them, and the licences of
/// third parties to doc/rocket-rides-log/THIRD-PARTY.
#[derive(Debug, Clone, Parser)]
#[command(name = "manual", version)]
pub struct Config {
    /// The share folder, for example /usr/local/share. It is created if it is missing.
    #[arg(long, value_name = "FOLDER", default_value = "target/share")]
    pub into: PathBuf,
}

/// Has every program in the folder of this one write its pages. Existing files are overwritten.
///
/// # Errors
/// The folder cannot be written, cargo does not run in the workspace of this program, or a program wrote no pages: it was not built together with this one, or is of another origin.
/// The other programs have written theirs.
pub fn write(config: &Config) -> Result<()> {
    let notices = notices::third_party(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))?;
    let doc = config.into.join("doc/rocket-rides-log");
    fs::create_dir_all(&doc).with_context(|| format!("making {}", doc.display()))?;
    fs::write(doc.join("THIRD-PARTY"), notices).with_context(|| format!("writing to {}", doc.display()))?;
    let own = std::env::current_exe().context("finding this program")?;
    let folder = own.parent().context("finding the folder of this program")?;
    let mut left_out = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        if is_program(&path) && !writes_pages(&path, &config.into)? {
            left_out.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    ensure!(left_out.is_empty(), "these wrote no pages; build them together with manual: {}", left_out.join(", "));
    Ok(())
}

fn is_program(path: &Path) -> bool {
    let is_executable = fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    is_executable && path.extension().is_none()
}

/// A program that cannot write pages prints its help instead, and ends.
fn writes_pages(program: &Path, share: &Path) -> Result<bool> {
    let page = share.join("man/man1").join(program.file_name().unwrap_or_default()).with_extension("1");
    if page.exists() {
        fs::remove_file(&page).with_context(|| format!("removing {}", page.display()))?;
    }
    let mut command = Command::new(program);
    command.arg("--help").env_clear().env(process::pages::FOLDER, share);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("starting {}", program.display()))?;
    Ok(status.success() && page.exists())
}
