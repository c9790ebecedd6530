//! `bin/test`: runs one command beside private servers.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use common::shutdown::CancellationToken;
use nix::sys::signal::Signal;

use crate::bound::bound_to_terminal;
use crate::find::{find_postgres, find_redis};
use crate::leftovers::{Register, stop_child};
use crate::lock::lock;
use crate::outside::clean_environment;
use crate::postgres_server::{PostgresServer, folder_name};
use crate::redis_server::RedisServer;

/// Runs a command beside private servers, which are created for it and removed after it.
#[derive(Debug, Clone, Args)]
pub struct WithServersConfig {
    /// The folder in which the servers keep their data while the command runs. It is emptied before and after.
    #[arg(long, default_value = ".data/test")]
    pub data: PathBuf,

    /// The command and its arguments.
    #[arg(required = true, last = true)]
    pub command: Vec<String>,
}

/// The time in which the command ends the tests that run.
const COMMAND_WAIT: Duration = Duration::from_secs(30);

/// Tests kill servers, not machines. Without fsync a commit still survives the kill of a server.
const SETTINGS: [&str; 3] = ["fsync=off", "max_connections=300", "shared_buffers=256MB"];

/// Starts both servers, runs the command with DATABASE_URL and REDIS_URL set, and stops the servers. Returns the exit status of the
/// command. No other setting and no variable that leads outside reaches the command.
///
/// # Errors
/// A server is missing or does not start, the command cannot be started, or it left temporary files behind.
pub async fn with_servers(config: WithServersConfig) -> Result<ExitCode> {
    let stop = process::on_signal()?;
    let name = config.data.file_name().context("the data folder needs a name")?;
    let parent = config.data.parent().context("the data folder needs a parent")?;
    std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let data = parent.join(".").canonicalize().context("finding the data folder")?.join(name);
    // Two runs on one folder would remove each other's servers.
    let _lock = lock(&data.with_extension("lock"))?
        .with_context(|| format!("another run uses {}: wait for it, or give --data", data.display()))?;
    let mut register = Register::open(data.with_extension("processes")).await?;
    // A run that was killed has left both.
    let temporary = std::env::temp_dir().join(folder_name(&data));
    PostgresServer::remove_data(&data.join("pg")).await?;
    remove(&data)?;
    remove(&temporary)?;
    std::fs::create_dir(&temporary).with_context(|| format!("creating {}", temporary.display()))?;
    let outcome = run_beside_servers(&config.command, &data, &temporary, &mut register, &stop).await;
    register.clear()?;
    let left = std::fs::read_dir(&temporary).context("looking at the temporary files")?.flatten();
    let left: Vec<String> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    PostgresServer::remove_data(&data.join("pg")).await?;
    remove(&data)?;
    remove(&temporary)?;
    let status = outcome?;
    ensure!(
        !status.success() || left.is_empty(),
        "the command left temporary files behind, which are removed now: {}",
        left.join(", ")
    );
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

async fn run_beside_servers(
    words: &[String],
    data: &Path,
    temporary: &Path,
    register: &mut Register,
    stop: &CancellationToken,
) -> Result<ExitStatus> {
    let binaries = find_postgres().map_err(anyhow::Error::msg)?;
    let postgres = PostgresServer::start(&binaries, &data.join("pg"), &SETTINGS).await?;
    register.add(postgres.pid(), Signal::SIGINT);
    let redis = RedisServer::start(&find_redis().map_err(anyhow::Error::msg)?, &data.join("redis"), &[]).await?;
    register.add(redis.pid(), Signal::SIGTERM);
    let outcome = async {
        let mut command = bound_to_terminal(&words[0], Signal::SIGTERM)
            .args(&words[1..])
            .env_clear()
            .envs(clean_environment())
            .env("DATABASE_URL", postgres.url("postgres"))
            .env("REDIS_URL", redis.url())
            .env("TMPDIR", temporary)
            .spawn()
            .with_context(|| format!("starting {}", words[0]))?;
        register.add(command.id(), Signal::SIGTERM);
        tokio::select! {
            ended = command.wait() => ended.context("waiting for the command"),
            () = stop.cancelled() => {
                stop_child(&mut command, Signal::SIGTERM, COMMAND_WAIT).await?;
                Err(anyhow!("interrupted"))
            }
        }
    };
    let outcome = outcome.await;
    let stopped = redis.stop().await;
    postgres.stop().await?;
    stopped?;
    outcome
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("emptying {}", folder.display()))
        }
        _ => Ok(()),
    }
}
