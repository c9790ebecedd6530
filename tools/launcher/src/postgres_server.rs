//! A private PostgreSQL: its own data folder, a unix socket and no port. `initdb` and `postgres` refuse to run as root;
//! so for root they run in a user namespace without privileges, or else as the user `postgres` of the package.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio_postgres::NoTls;

use crate::bound::bound_server;
use crate::find::PostgresBinaries;
use crate::leftovers::{end_servers_in, stop_child};

/// The longest start: after a crash Postgres first replays the write-ahead log of the last minutes.
const START_WAIT: Duration = Duration::from_secs(60);

/// How long a server that has just started may take to accept one connection.
const CONNECT_WAIT: Duration = Duration::from_secs(3);

/// The time in which the remains of a killed server may prevent a start.
const LEAVING_WAIT: Duration = Duration::from_secs(20);

/// The longest stop: Postgres writes its memory to disk.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// The fast shutdown. SIGTERM would wait until the last client disconnects.
pub(crate) const STOP_SIGNAL: Signal = Signal::SIGINT;

/// The superuser of the private cluster.
const ROLE: &str = "app";

/// A running server. If it is dropped, it is killed.
pub struct PostgresServer {
    child: Child,
    origin: Origin,
    socket_folder: PathBuf,
    /// The part of a URL that names the port, which also names the socket; empty for the usual port.
    url_port: String,
}

/// The arguments with which a server was started.
#[derive(Debug, Clone)]
struct Origin {
    binaries: PostgresBinaries,
    folder: PathBuf,
    settings: Vec<String>,
}

/// The user that runs Postgres, which refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunAs {
    /// The launcher is not root: its own user.
    Ourselves,
    /// The launcher is root: a user namespace. The files still belong to root.
    Namespace,
    /// The launcher is root, and namespaces are forbidden: this user, which must own the folder.
    User(&'static str),
}

impl PostgresServer {
    /// Starts a server on `folder`, which is created if it is not there. `settings` are given as `name=value`.
    ///
    /// # Errors
    /// The server does not start; the error has the last lines of its log. Data of another major version is never touched.
    pub async fn start(binaries: &PostgresBinaries, folder: &Path, settings: &[&str]) -> Result<Self> {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self::start_from(Origin { binaries: binaries.clone(), folder: folder.to_owned(), settings }).await
    }

    /// Starts the server that has ended once more.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) async fn start_again(&self) -> Result<Self> {
        Self::start_from(self.origin.clone()).await
    }

    /// Removes the data of `folder`, wherever it is, if no server runs on it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) async fn remove_data(folder: &Path) -> Result<()> {
        let folder = RunAs::choose().await?.data_folder(folder)?;
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    async fn start_from(origin: Origin) -> Result<Self> {
        let Origin { binaries, folder, settings } = &origin;
        let run_as = RunAs::choose().await?;
        let folder = run_as.data_folder(folder)?;
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        run_as.own(&folder)?;
        let (data, socket_folder) = (folder.join("data"), short_folder(&folder)?);
        run_as.own(&socket_folder)?;
        // A server that does not sync its data need not sync the new cluster either.
        let sync: &[&str] = if settings.iter().any(|setting| setting == "fsync=off") { &["--no-sync"] } else { &[] };
        remove_remains(&data, &socket_folder).await?;
        init_cluster(binaries, run_as, &data, sync).await?;
        let port = settings.iter().find_map(|setting| setting.strip_prefix("port="));
        let url_port = port.map_or_else(String::new, |port| format!(":{port}"));
        let log_path = folder.join("postgres.log");
        let started_at = tokio::time::Instant::now();
        let deadline = started_at + START_WAIT;
        loop {
            let log = new_log(&log_path)?;
            let mut command = run_as.command(&binaries.folder.join("postgres"));
            command.arg("-D").arg(&data).args(["-c", "listen_addresses=", "-c", "unix_socket_permissions=0700"]);
            command.arg("-c").arg(format!("unix_socket_directories={}", socket_folder.display()));
            for setting in settings {
                command.args(["-c", setting]);
            }
            let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
            let child = child.context("starting postgres")?;
            let (origin, socket_folder, url_port) = (origin.clone(), socket_folder.clone(), url_port.clone());
            let mut server = Self { child, origin, socket_folder, url_port };
            if server.wait_until_ready(deadline).await? {
                return Ok(server);
            }
            let words = std::fs::read_to_string(&log_path).unwrap_or_default();
            // After a kill the last processes of the server need a moment to notice and to end, and init needs one to reap them.
            let is_leaving = ["pre-existing shared memory block", "lock file \"postmaster.pid\" already exists"]
                .iter()
                .any(|complaint| words.contains(complaint));
            if !is_leaving || started_at.elapsed() > LEAVING_WAIT {
                bail!("postgres does not start; see {}:\n{}", log_path.display(), words.trim());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The URL of a database on this server.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@{}{}/{database}", percent_encode(&self.socket_folder, ""), self.url_port)
    }

    /// Creates a database, unless it exists.
    ///
    /// # Errors
    /// The server is away.
    pub async fn create_database(&self, database: &str) -> Result<()> {
        let client = connect::postgres::connect(&self.url("postgres").parse()?, "launcher", || {}).await?;
        let query = "-- launcher::create_database
                     SELECT FROM pg_database WHERE datname = $1";
        if client.query_opt(query, &[&database]).await.context("looking for the database")?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE \"{database}\"")).await.context("creating the database")?;
        }
        Ok(())
    }

    /// The process id of the server, to be remembered or killed.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Stops the server: clients are disconnected, and committed transactions are on disk.
    ///
    /// # Errors
    /// The server did not stop in time and was killed; no committed transaction is lost.
    pub async fn stop(mut self) -> Result<()> {
        let stopped = stop_child(&mut self.child, STOP_SIGNAL, STOP_WAIT).await.context("stopping postgres");
        remove_short_folder(&self.socket_folder);
        stopped
    }

    /// Waits until the server ends by itself. Returns its exit status.
    pub(crate) async fn ended(&mut self) -> String {
        self.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Waits until connections are accepted, also by a standby. `false`: the process has ended.
    async fn wait_until_ready(&mut self, deadline: tokio::time::Instant) -> Result<bool> {
        let config: tokio_postgres::Config = self.url("postgres").parse()?;
        loop {
            if self.child.try_wait().context("watching postgres")?.is_some() {
                return Ok(false);
            }
            let connecting = tokio::time::timeout(CONNECT_WAIT, config.connect(NoTls));
            match connecting.await.context("no answer in time").and_then(|connected| Ok(connected?)) {
                Ok(_) => return Ok(true),
                Err(error) if tokio::time::Instant::now() > deadline => {
                    return Err(error.context("postgres runs, but takes no connections"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Ends what is left of an earlier server on this data, and removes its lock files. Postgres itself does not start on a lock file
/// that is empty, or that names a process which is now another program.
async fn remove_remains(data: &Path, socket_folder: &Path) -> Result<()> {
    if !end_servers_in(data).await {
        return Ok(());
    }
    let sockets = std::fs::read_dir(socket_folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".s.PGSQL."));
    for path in sockets.filter(is_ours).chain([data.join("postmaster.pid")]) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn init_cluster(binaries: &PostgresBinaries, run_as: RunAs, data: &Path, sync: &[&str]) -> Result<()> {
    if let Ok(version) = std::fs::read_to_string(data.join("PG_VERSION")) {
        let version = version.trim();
        ensure!(
            !version.is_empty(),
            "{} is damaged: its PG_VERSION is empty. Put a copy of the folder back, or move it away to begin with an empty \
             database",
            data.display()
        );
        ensure!(
            version == binaries.major.to_string(),
            "{} was made by PostgreSQL {version}, and {} was found: set PG_BIN to the folder of version {version}, or \
             move the data away",
            data.display(),
            binaries.major
        );
        return Ok(());
    }
    ensure!(
        std::fs::read_dir(data).map_or(true, |mut entries| entries.next().is_none()),
        "{} holds files, but no PG_VERSION, so it is no data of PostgreSQL: move it away",
        data.display()
    );
    // Created beside the final folder and renamed when complete: a killed start leaves no half-made folder.
    let unfinished = data.with_extension("unfinished");
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).with_context(|| format!("removing {}", unfinished.display()))?;
    }
    let mut command = run_as.command(&binaries.folder.join("initdb"));
    command.arg("-D").arg(&unfinished).args(["-A", "trust", "-U", ROLE, "-E", "UTF8", "--locale=C"]).args(sync);
    let output = command.stdin(Stdio::null()).output().await.context("running initdb")?;
    ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    std::fs::rename(&unfinished, data).with_context(|| format!("putting {} in place", data.display()))
}

impl RunAs {
    async fn choose() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        let mut probe = Command::new("unshare");
        probe.args(["-U", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // For machines on which namespaces are forbidden, and for a test of this case.
        let forbidden = std::env::var_os("LAUNCHER_NO_NAMESPACE").is_some();
        if !forbidden && probe.status().await.is_ok_and(|status| status.success()) {
            return Ok(Self::Namespace);
        }
        for user in ["postgres", "nobody"] {
            if nix::unistd::User::from_name(user).ok().flatten().is_some() {
                return Ok(Self::User(user));
            }
        }
        bail!("postgres refuses to run as root, and there is no other user to run it as: run this as an ordinary user")
    }

    fn command(self, program: &Path) -> Command {
        let mut command = match self {
            Self::Ourselves => bound_server(&[], program, STOP_SIGNAL),
            Self::Namespace => bound_server(&["unshare", "-U"], program, STOP_SIGNAL),
            Self::User(user) => {
                let before = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"];
                bound_server(&before, program, STOP_SIGNAL)
            }
        };
        // A folder that every user may enter: a process cannot start in a folder that is hidden from its user.
        command.current_dir("/");
        command
    }

    /// The folder, or one in its place: another user cannot read a folder below `/root`, for example.
    fn data_folder(self, folder: &Path) -> Result<PathBuf> {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?;
        let elsewhere = Path::new("/var/tmp").join(folder_name(&folder));
        let may_enter = |folder: &Path| folder.metadata().is_ok_and(|folder| folder.permissions().mode() & 0o001 != 0);
        let is_open = folder.ancestors().skip(1).all(may_enter);
        Ok(if matches!(self, Self::User(_)) && (elsewhere.exists() || !is_open) { elsewhere } else { folder })
    }

    fn own(self, folder: &Path) -> Result<()> {
        let Self::User(name) = self else { return Ok(()) };
        let user = nix::unistd::User::from_name(name)?.context("the user is gone")?;
        std::os::unix::fs::chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("giving {} to {name}", folder.display()))
    }
}

/// A new file for the log of a server. The log of the start before stays beside it, with the ending `.before`.
pub(crate) fn new_log(path: &Path) -> Result<std::fs::File> {
    // An error means that there was no start before.
    let _ = std::fs::rename(path, path.with_extension("log.before"));
    std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))
}

/// A folder for sockets: `folder/run`, unless that is too long for the address of a socket (107 bytes, of which the
/// socket's own name takes some twenty).
pub(crate) fn short_folder(folder: &Path) -> Result<PathBuf> {
    let mut run = folder.join("run");
    // Postgres takes a list of folders, so a comma would separate two.
    if run.as_os_str().len() > 80 || run.as_os_str().as_bytes().contains(&b',') {
        run = std::env::temp_dir().join(folder_name(folder));
    }
    std::fs::create_dir_all(&run).with_context(|| format!("creating {}", run.display()))?;
    let only_ours = PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&run, only_ours).with_context(|| format!("closing {} to others", run.display()))?;
    Ok(run)
}

/// Removes a folder that [`short_folder`] has made among the temporary files, if it is empty.
pub(crate) fn remove_short_folder(folder: &Path) {
    if folder.parent() == Some(&*std::env::temp_dir()) {
        // An error means that it holds something that is not ours.
        let _ = std::fs::remove_dir(folder);
    }
}

/// Encodes a path for a URL. Letters, digits and `also` stay unchanged.
pub(crate) fn percent_encode(path: &Path, also: &str) -> String {
    let stays = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte) || also.as_bytes().contains(&byte);
    let encode = |byte: &u8| if stays(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
    path.as_os_str().as_bytes().iter().map(encode).collect()
}

/// A name that is unique to this folder.
pub(crate) fn folder_name(folder: &Path) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    format!("rocket-rides-log-{:016x}", hasher.finish())
}
