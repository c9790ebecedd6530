//! The two private servers, and the faults of a server. A killed server is restarted on the same socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::{PostgresBinaries, PostgresServer, RedisServer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The database of the run.
const DATABASE: &str = "chaos";

/// A private PostgreSQL.
pub(crate) struct Postgres {
    folder: PathBuf,
    binaries: PostgresBinaries,
    server: Option<PostgresServer>,
    url: String,
}

impl Postgres {
    pub async fn start(folder: PathBuf) -> Result<Self> {
        let binaries = launcher::find_postgres().map_err(anyhow::Error::msg)?;
        let mut postgres = Self { folder, binaries, server: None, url: String::new() };
        postgres.start_server().await?;
        let server = postgres.server.as_ref().context("no server")?;
        server.create_database(DATABASE).await?;
        postgres.url = server.url(DATABASE);
        Ok(postgres)
    }

    async fn start_server(&mut self) -> Result<()> {
        // Chaos kills processes, not machines: committed data survives that without fsync.
        let settings = ["fsync=off", "max_connections=200"];
        self.server = Some(PostgresServer::start(&self.binaries, &self.folder, &settings).await?);
        Ok(())
    }

    /// Straight to the server, by no proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its socket.
    pub fn socket(&self) -> Result<PathBuf> {
        let config: tokio_postgres::Config = self.url.parse().context("parsing the server's URL")?;
        match config.get_hosts() {
            [tokio_postgres::config::Host::Unix(folder)] => Ok(folder.join(".s.PGSQL.5432")),
            _ => anyhow::bail!("the private server has no socket"),
        }
    }

    /// SIGKILL, and started again at once.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        let server = self.server.take().context("no server")?;
        send(server.pid(), Signal::SIGKILL)?;
        drop(server);
        self.start_server().await
    }

    pub async fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }
}

/// A private Redis.
pub(crate) struct Redis {
    folder: PathBuf,
    binary: PathBuf,
    clock: Option<PathBuf>,
    server: Option<RedisServer>,
    url: String,
    socket: PathBuf,
}

impl Redis {
    /// Starts the server. With `clock_library`, its clock can be stepped.
    pub async fn start(folder: PathBuf, clock_library: Option<PathBuf>) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let folder = folder.canonicalize().context("finding the folder of Redis")?;
        let binary = launcher::find_redis().map_err(anyhow::Error::msg)?;
        let clock = clock_library.map(|library| with_clock(&folder, &library, &binary)).transpose()?;
        let binary = if clock.is_some() { folder.join(WRAPPER) } else { binary };
        let mut redis = Self { folder, binary, clock, server: None, url: String::new(), socket: PathBuf::new() };
        redis.start_server().await?;
        Ok(redis)
    }

    async fn start_server(&mut self) -> Result<()> {
        let server = RedisServer::start(&self.binary, &self.folder, &[]).await?;
        (self.url, self.socket) = (server.url(), server.socket().to_owned());
        self.server = Some(server);
        Ok(())
    }

    /// Straight to the server, by no proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn pid(&self) -> Result<Pid> {
        let pid = self.server.as_ref().and_then(RedisServer::pid).context("redis is not running")?;
        Ok(Pid::from_raw(pid as i32))
    }

    /// Sends SIGKILL, and restarts the server after `pause`.
    pub async fn kill_and_restart(&mut self, pause: Duration) -> Result<()> {
        self.kill()?;
        tokio::time::sleep(pause).await;
        self.start_server().await
    }

    /// Sends SIGKILL, and removes the writes of the last second from the append-only file. Returns the number of lost bytes.
    pub async fn kill_losing_a_second(&mut self) -> Result<u64> {
        let before = newest_part(&self.log_folder())?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.kill()?;
        let (path, len) = newest_part(&self.log_folder())?;
        // A file that was created within this second becomes empty.
        let kept_len = if before.0 == path { before.1 } else { 0 };
        let file = std::fs::File::options().write(true).open(&path).context("opening the append-only file")?;
        file.set_len(kept_len).context("cutting the append-only file")?;
        self.start_server().await?;
        Ok(len - kept_len)
    }

    /// Copies the current data.
    pub fn photograph(&self) -> Result<()> {
        let album = self.folder.join("album");
        remove_folder(&album)?;
        copy_folder(&self.log_folder(), &album)
    }

    /// Sends SIGKILL, and restarts the server on the last copy of its data.
    pub async fn put_back(&mut self) -> Result<()> {
        self.kill()?;
        remove_folder(&self.log_folder())?;
        copy_folder(&self.folder.join("album"), &self.log_folder())?;
        self.start_server().await
    }

    /// Sets the server's clock to `offset_s` seconds from the true time. Returns `false` if this machine has no libfaketime.
    pub fn step_clock(&self, offset_s: i64) -> Result<bool> {
        let Some(clock) = &self.clock else { return Ok(false) };
        std::fs::write(clock, format!("{offset_s:+}")).context("stepping the clock")?;
        Ok(true)
    }

    /// Makes background saves fail, by a folder in the place of the file, or work again.
    pub fn obstruct_saves(&self, obstruct: bool) -> Result<()> {
        let dump = self.folder.join("dump.rdb");
        if obstruct {
            let _ = std::fs::remove_file(&dump);
            std::fs::create_dir_all(dump.join("in the way")).context("obstructing the dump")
        } else {
            remove_folder(&dump)
        }
    }

    pub async fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }

    fn kill(&mut self) -> Result<()> {
        let server = self.server.take().context("redis is not running")?;
        send(server.pid(), Signal::SIGKILL)
    }

    fn log_folder(&self) -> PathBuf {
        self.folder.join("appendonlydir")
    }
}

const WRAPPER: &str = "redis-with-clock";

/// Writes a script that runs Redis under libfaketime. Returns the file that sets the time.
fn with_clock(folder: &Path, library: &Path, binary: &Path) -> Result<PathBuf> {
    let (wrapper, clock) = (folder.join(WRAPPER), folder.join("clock"));
    std::fs::write(&clock, "+0").context("setting the clock")?;
    // libfaketime changes the wall clock only, because timers of the event loop use the monotonic clock. libc comes before
    // jemalloc: jemalloc asks for the time while libfaketime still looks for the true clock, and both would wait for each other.
    let libc = library.parent().and_then(Path::parent).unwrap_or(Path::new("/")).join("libc.so.6");
    let script = format!(
        "#!/bin/sh\nexport LD_PRELOAD='{}:{}' FAKETIME_TIMESTAMP_FILE='{}' FAKETIME_CACHE_DURATION=1 \
         DONT_FAKE_MONOTONIC=1\nexec '{}' \"$@\"\n",
        library.display(),
        libc.display(),
        clock.display(),
        binary.display()
    );
    std::fs::write(&wrapper, script).context("writing the script that runs redis")?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&wrapper, executable).context("making the script executable")?;
    Ok(clock)
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            // An error means that it has ended.
            let _ = send(server.pid(), Signal::SIGKILL);
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            // An error means that it has ended.
            let _ = send(server.pid(), Signal::SIGKILL);
        }
    }
}

fn send(pid: Option<u32>, signal: Signal) -> Result<()> {
    let pid = pid.context("the server has ended by itself")?;
    kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("sending {signal} to process {pid}"))
}

/// The newest part of the append-only file, and its length.
fn newest_part(folder: &Path) -> Result<(PathBuf, u64)> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".incr.aof") {
            let len = path.metadata().context("reading the length of the append-only file")?.len();
            parts.push((path, len));
        }
    }
    ensure!(!parts.is_empty(), "redis writes no append-only file in {}", folder.display());
    // Each name contains a growing number.
    parts.sort_by_key(|(path, _)| (path.as_os_str().len(), path.clone()));
    parts.pop().context("no part")
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().context("no file name")?;
        std::fs::copy(&path, to.join(name)).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
