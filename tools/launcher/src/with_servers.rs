//! `bin/test`: runs one command beside private servers.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use nix::sys::signal::Signal;
use tokio::process::Command;

use crate::find::{find_postgres, find_redis};
use crate::leftovers::Register;
use crate::lock::lock;
use crate::postgres_server::PostgresServer;
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

/// Starts both servers, runs the command with DATABASE_URL and REDIS_URL set, and stops the servers. Returns the exit status of the
/// command.
///
/// # Errors
/// A server is missing or does not start, or the command cannot be started.
pub async fn with_servers(config: WithServersConfig) -> Result<ExitCode> {
    // Tests kill servers, not machines. Without fsync a commit still survives the kill of a server.
    const SETTINGS: [&str; 3] = ["fsync=off", "max_connections=300", "shared_buffers=256MB"];
    let stop = process::on_signal()?;
    let parent = config.data.parent().context("the data folder needs a parent")?;
    std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    // Two runs on one folder would remove each other's servers.
    let _lock = lock(&config.data.with_extension("lock"))?
        .with_context(|| format!("another run uses {}: wait for it, or give --data", config.data.display()))?;
    let mut register = Register::open(config.data.with_extension("processes")).await?;
    remove(&config.data)?;
    let postgres =
        PostgresServer::start(&find_postgres().map_err(anyhow::Error::msg)?, &config.data.join("pg"), &SETTINGS)
            .await?;
    register.add(postgres.pid(), Signal::SIGINT)?;
    let redis = RedisServer::start(&find_redis().map_err(anyhow::Error::msg)?, &config.data.join("redis"), &[]).await?;
    register.add(redis.pid(), Signal::SIGTERM)?;
    let outcome = async {
        let mut child = Command::new(&config.command[0])
            .args(&config.command[1..])
            .env("DATABASE_URL", postgres.url("postgres"))
            .env("REDIS_URL", redis.url())
            .spawn()
            .with_context(|| format!("starting {}", config.command[0]))?;
        tokio::select! {
            ended = child.wait() => ended.context("waiting for the command"),
            () = stop.cancelled() => {
                let _ = child.kill().await;
                Err(anyhow!("interrupted"))
            }
        }
    };
    let outcome = outcome.await;
    redis.stop().await?;
    postgres.stop().await?;
    register.clear()?;
    remove(&config.data)?;
    let code = outcome?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

fn remove(folder: &std::path::Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("emptying {}", folder.display()))
        }
        _ => Ok(()),
    }
}
