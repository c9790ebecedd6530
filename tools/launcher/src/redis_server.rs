//! A private Redis (or Valkey): its own folder, a unix socket and no port. Its data is a copy: if it does not start on its files,
//! they are set aside, and it starts empty.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, bail};
use nix::sys::signal::Signal;
use tokio::process::Child;

use crate::bound::bound_server;
use crate::leftovers::{end_servers_in, stop_child};
use crate::postgres_server::{new_log, percent_encode, remove_short_folder, short_folder};
use crate::screen::tell;

/// The longest start: Redis first reads its append-only file.
const START_WAIT: Duration = Duration::from_secs(60);

/// The longest stop.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// The signal on which Redis ends cleanly.
pub(crate) const STOP_SIGNAL: Signal = Signal::SIGTERM;

/// The files from which Redis reads its data.
const FILES: [&str; 2] = ["appendonlydir", "dump.rdb"];

/// A running server. If it is dropped, it is killed.
pub struct RedisServer {
    child: Child,
    origin: Origin,
    socket: PathBuf,
}

/// The arguments with which a server was started.
#[derive(Debug, Clone)]
struct Origin {
    binary: PathBuf,
    folder: PathBuf,
    settings: Vec<String>,
}

impl RedisServer {
    /// Starts a server on `folder`, which is created if it is not there. `settings` are given as `--name value`.
    ///
    /// # Errors
    /// The server does not start, not even without its files; the error has the last lines of its log.
    pub async fn start(binary: &Path, folder: &Path, settings: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?;
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self::start_from(Origin { binary: binary.to_owned(), folder, settings }).await
    }

    /// Starts the server that has ended once more.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) async fn start_again(&self) -> Result<Self> {
        Self::start_from(self.origin.clone()).await
    }

    async fn start_from(origin: Origin) -> Result<Self> {
        // Two servers would write into the same files.
        end_servers_in(&origin.folder).await;
        let refusal = match Self::try_start(&origin).await {
            Ok(server) => return Ok(server),
            Err(refusal) => refusal,
        };
        let Some(aside) = set_aside(&origin.folder)? else { return Err(refusal) };
        match Self::try_start(&origin).await {
            Ok(server) => {
                tell(&format!(
                    "redis did not start on its files, which are only a copy of the log: it starts empty, and the \
                     streamer sends the copy again. The files are now in {}. The cause: {refusal:#}",
                    aside.display()
                ));
                Ok(server)
            }
            // The cause is not in the files.
            Err(_) => {
                put_back(&origin.folder, &aside)?;
                Err(refusal)
            }
        }
    }

    async fn try_start(origin: &Origin) -> Result<Self> {
        let Origin { binary, folder, settings } = origin;
        let socket = short_folder(folder)?.join("redis.sock");
        let log_path = folder.join("redis.log");
        let log = new_log(&log_path)?;
        let child = bound_server(&[], binary, Signal::SIGKILL)
            .args(["--port", "0", "--unixsocketperm", "700", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(folder)
            // The stream survives a restart, except its last second, which the streamer sends again.
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""])
            .args(["--maxmemory-policy", "noeviction"])
            .args(settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let mut server = Self { child, origin: origin.clone(), socket };
        if let Err(error) = server.wait_until_ready(&log_path).await {
            // An error means that it has ended already.
            let _ = server.child.kill().await;
            return Err(error);
        }
        Ok(server)
    }

    /// The server's URL.
    pub fn url(&self) -> String {
        let password = self.password().map_or_else(String::new, |password| format!("?pass={password}"));
        format!("redis+unix://{}{password}", percent_encode(&self.socket, "/"))
    }

    /// The password of the setting `--requirepass`, of letters and digits.
    pub(crate) fn password(&self) -> Option<&str> {
        let mut settings = self.origin.settings.iter().skip_while(|setting| *setting != "--requirepass");
        settings.nth(1).map(String::as_str)
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
        let stopped = stop_child(&mut self.child, STOP_SIGNAL, STOP_WAIT).await.context("stopping redis");
        let _ = std::fs::remove_file(&self.socket);
        self.socket.parent().into_iter().for_each(remove_short_folder);
        stopped
    }

    /// Waits until the server ends by itself. Returns its exit status.
    pub(crate) async fn ended(&mut self) -> String {
        self.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    async fn wait_until_ready(&mut self, log_path: &Path) -> Result<()> {
        let client = stream::redis::client(&self.url())?;
        let deadline = tokio::time::Instant::now() + START_WAIT;
        loop {
            if self.child.try_wait().context("watching redis")?.is_some() {
                let words = std::fs::read_to_string(log_path).unwrap_or_default();
                bail!("redis does not start; see {}:\n{}", log_path.display(), words.trim());
            }
            // A server that still reads its files answers INFO, and refuses PING. It may yet find them damaged.
            let ready = async {
                let mut connection = stream::redis::connect(&client).await?;
                let () = redis::cmd("PING").query_async(&mut connection).await?;
                anyhow::Ok(())
            };
            match ready.await {
                Ok(()) => return Ok(()),
                Err(error) if tokio::time::Instant::now() > deadline => {
                    return Err(error.context("redis runs, but takes no connections"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Moves the files of Redis into a new folder beside them. `None`: there are none.
fn set_aside(folder: &Path) -> Result<Option<PathBuf>> {
    let files: Vec<&str> = FILES.into_iter().filter(|name| folder.join(name).exists()).collect();
    if files.is_empty() {
        return Ok(None);
    }
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let aside = folder.join(format!("set-aside-{}", since_1970.as_millis()));
    std::fs::create_dir(&aside).with_context(|| format!("creating {}", aside.display()))?;
    for name in files {
        let to = aside.join(name);
        std::fs::rename(folder.join(name), &to).with_context(|| format!("moving {name} to {}", to.display()))?;
    }
    Ok(Some(aside))
}

/// Undoes [`set_aside`].
fn put_back(folder: &Path, aside: &Path) -> Result<()> {
    for name in FILES.into_iter().filter(|name| aside.join(name).exists()) {
        let to = folder.join(name);
        // An empty server may have begun new files before it ended.
        let _ = std::fs::remove_dir_all(&to).or_else(|_| std::fs::remove_file(&to));
        std::fs::rename(aside.join(name), &to).with_context(|| format!("putting {} back", to.display()))?;
    }
    std::fs::remove_dir(aside).map_err(Error::new).with_context(|| format!("removing {}", aside.display()))
}
