//! Programs of other projects, without which a case is left out.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// A program that a case needs is not on this machine.
#[derive(Debug)]
pub(crate) struct Missing {
    program: &'static str,
    package: &'static str,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "left out: {} is not here (package {})", self.program, self.package)
    }
}

impl std::error::Error for Missing {}

/// wrk, the HTTP load.
pub(crate) fn wrk() -> Result<PathBuf, Missing> {
    on_path("wrk", "wrk")
}

/// nginx, the HTTP limit.
pub(crate) fn nginx() -> Result<PathBuf, Missing> {
    on_path("nginx", "nginx-light")
}

/// redis-benchmark, the limit of appending to a stream.
pub(crate) fn redis_benchmark() -> Result<PathBuf, Missing> {
    on_path("redis-benchmark", "redis-tools")
}

/// pgbench, which comes with the server.
pub(crate) fn pgbench(postgres: &Path) -> Result<PathBuf, Missing> {
    let beside = postgres.join("pgbench");
    if beside.is_file() { Ok(beside) } else { on_path("pgbench", "postgresql-contrib") }
}

/// Finds a program on the PATH, and in the folders where Debian keeps servers.
fn on_path(program: &'static str, package: &'static str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
        .ok_or(Missing { program, package })
}

/// Compiles the bare reader of a stream, for which Debian has no program.
///
/// # Errors
/// [`Missing`] without the library; the output of the compiler if it fails.
pub(crate) async fn xrange_drain(folder: &Path) -> Result<PathBuf> {
    const SOURCE: &str = include_str!("xrange_drain.c");
    if !["/usr/include", "/usr/local/include"].iter().any(|base| Path::new(base).join("hiredis/hiredis.h").is_file()) {
        return Err(Missing { program: "hiredis", package: "libhiredis-dev" }.into());
    }
    let compiler = on_path("cc", "gcc libc6-dev")?;
    let (source, binary) = (folder.join("xrange_drain.c"), folder.join("xrange_drain"));
    std::fs::write(&source, SOURCE).context("writing the bare reader")?;
    let mut command = Command::new(compiler);
    command.args(["-O2", "-o"]).arg(&binary).arg(&source).arg("-lhiredis");
    let output = command.output().await.context("compiling the bare reader")?;
    ensure!(output.status.success(), "compiling the bare reader: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(binary)
}
