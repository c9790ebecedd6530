//! A private Redis (or Valkey): its own folder, a unix socket and no port.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use crate::leftovers::stop_child;
use crate::postgres_server::{percent_encode, short_folder};

/// The longest start: Redis first reads its append-only file.
const START_WAIT: Duration = Duration::from_secs(60);

/// The longest stop.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// A running server.
pub struct RedisServer {
    child: Child,
    socket: PathBuf,
}

impl RedisServer {
    /// Starts a server on `folder`, which is created if it is not there. `settings` are given as `--name value`.
    ///
    /// # Errors
    /// The server does not start; the error has the last lines of its log.
    pub async fn start(binary: &Path, folder: &Path, settings: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?;
        let socket = short_folder(&folder)?.join("redis.sock");
        let log_path = folder.join("redis.log");
        let log = std::fs::File::create(&log_path).with_context(|| format!("creating {}", log_path.display()))?;
        let child = Command::new(binary)
            .args(["--port", "0", "--unixsocketperm", "700", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(&folder)
            // The stream survives a restart, except its last second, which the streamer sends again.
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""])
            .args(["--maxmemory-policy", "noeviction"])
            .args(settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut server = Self { child, socket };
        server.wait_until_ready(&log_path).await?;
        Ok(server)
    }

    /// The server's URL.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", percent_encode(&self.socket, "/"))
    }

    /// The socket on which it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process id of the server, to be remembered or killed.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Stops the server.
    ///
    /// # Errors
    /// The server did not stop in time and was killed.
    pub async fn stop(mut self) -> Result<()> {
        stop_child(&mut self.child, Signal::SIGTERM, STOP_WAIT).await.context("stopping redis")
    }

    async fn wait_until_ready(&mut self, log_path: &Path) -> Result<()> {
        let client = stream::redis::client(&self.url())?;
        let deadline = tokio::time::Instant::now() + START_WAIT;
        loop {
            if self.child.try_wait().context("watching redis")?.is_some() {
                let words = std::fs::read_to_string(log_path).unwrap_or_default();
                bail!("redis does not start; see {}:\n{}", log_path.display(), words.trim());
            }
            match stream::redis::connect(&client).await {
                Ok(_) => return Ok(()),
                Err(error) if tokio::time::Instant::now() > deadline => {
                    return Err(error.context("redis runs, but takes no connections"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}
