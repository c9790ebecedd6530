//! The processes under test. They are restarted when they die, and must never end by themselves.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::history::History;
use crate::proxy::Proxy;

/// The pause before a process that died is started again.
const RESTART_WAIT: Duration = Duration::from_millis(200);

/// The command of a process.
#[derive(Clone)]
pub(crate) struct Spec {
    /// The name in the history, and of the Postgres role by which its connections are found.
    pub name: String,
    /// The binary, in the same folder as chaos.
    pub program: &'static str,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its settings. They go before the addresses of both servers.
    pub environment: Vec<(&'static str, String)>,
}

/// A place for one process, which is restarted after each death.
pub(crate) struct Slot {
    pub spec: Spec,
    /// The proxies between the process and the servers.
    pub to_postgres: Proxy,
    pub to_redis: Arc<Proxy>,
    environment: Vec<(&'static str, String)>,
    folder: PathBuf,
    history: Arc<History>,
    pid: watch::Sender<Option<Pid>>,
    next_args: Mutex<Vec<String>>,
    stopping: watch::Sender<bool>,
    /// Faults on one process take turns.
    pub turn: tokio::sync::Mutex<()>,
}

impl Slot {
    /// Makes a slot whose process reaches both servers through its own proxies.
    pub async fn new(
        spec: Spec,
        (postgres_socket, redis_socket): (&Path, &Path),
        folder: &Path,
        history: &Arc<History>,
    ) -> Result<Arc<Self>> {
        let to_redis = Arc::new(Proxy::start(redis_socket).await?);
        Self::sharing_redis(spec, postgres_socket, to_redis, folder, history).await
    }

    /// Makes a slot whose process reaches Redis by the same address as another one does.
    pub async fn sharing_redis(
        spec: Spec,
        postgres_socket: &Path,
        to_redis: Arc<Proxy>,
        folder: &Path,
        history: &Arc<History>,
    ) -> Result<Arc<Self>> {
        let to_postgres = Proxy::start(postgres_socket).await?;
        let database_url = format!("postgres://{}@127.0.0.1:{}/chaos", spec.name, to_postgres.port);
        let redis_url = format!("redis://127.0.0.1:{}", to_redis.port);
        // A run with a cluster sets another REDIS_URL. The wallets stay here.
        let servers =
            [("DATABASE_URL", database_url), ("REDIS_URL", redis_url.clone()), ("WALLETS_REDIS_URL", redis_url)];
        Ok(Arc::new(Self {
            environment: servers.into_iter().chain(spec.environment.iter().cloned()).collect(),
            spec,
            to_postgres,
            to_redis,
            folder: folder.to_owned(),
            history: Arc::clone(history),
            pid: watch::channel(None).0,
            next_args: Mutex::default(),
            stopping: watch::channel(false).0,
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// Keeps a process running until [`stop`](Self::stop).
    pub async fn keep_running(self: Arc<Self>) {
        while !*self.stopping.borrow() {
            let extra = std::mem::take(&mut *self.next_args.lock().unwrap_or_else(PoisonError::into_inner));
            let mut child = match self.spawn(&extra) {
                Ok(child) => child,
                Err(error) => return self.history.violation(&format!("{}: {error:#}", self.spec.name)),
            };
            self.pid.send_replace(child.id().map(|pid| Pid::from_raw(pid as i32)));
            self.history.note(&format!("{} started as {:?} {}", self.spec.name, child.id(), extra.join(" ")));
            let ended = child.wait().await;
            self.pid.send_replace(None);
            self.history.note(&format!("{} ended: {ended:?}", self.spec.name));
            // A process may be killed, but it must not exit by itself.
            if let Some(code) = ended.ok().and_then(|status| status.code())
                && !*self.stopping.borrow()
            {
                let log = self.folder.join(format!("{}.log", self.spec.name));
                self.history.violation(&format!(
                    "{} exited with status {code}; see the end of {}",
                    self.spec.name,
                    log.display()
                ));
            }
            tokio::time::sleep(RESTART_WAIT).await;
        }
    }

    /// Starts another process with the same arguments and `extra`.
    pub fn spawn(&self, extra: &[String]) -> Result<Child> {
        let path = self.folder.join(format!("{}.log", self.spec.name));
        let log = std::fs::File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("opening {}", path.display()))?;
        command(self.spec.program)?
            .args(&self.spec.args)
            .args(extra)
            .envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())))
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.spec.program))
    }

    /// Sends a signal to the process, if there is one at the moment.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = *self.pid.borrow() {
            // An error means that the process has just ended.
            let _ = kill(pid, signal);
        }
    }

    /// Sends SIGKILL. The next process also gets the arguments `extra`. Returns when it has started.
    pub async fn restart_with(&self, extra: Vec<String>) {
        *self.next_args.lock().unwrap_or_else(PoisonError::into_inner) = extra;
        let mut pid = self.pid.subscribe();
        let old = *pid.borrow_and_update();
        self.signal(Signal::SIGKILL);
        let _ = pid.wait_for(|new| new.is_some() && *new != old).await;
    }

    /// Waits until the current process has died; `false` if it still lives after `wait`.
    pub async fn dies_within(&self, wait: Duration) -> bool {
        let mut pid = self.pid.subscribe();
        let old = *pid.borrow_and_update();
        tokio::time::timeout(wait, pid.wait_for(|new| *new != old)).await.is_ok()
    }

    /// Sends SIGTERM, and SIGKILL after `wait`. Returns whether SIGTERM sufficed.
    pub async fn stop(&self, wait: Duration) -> bool {
        self.stopping.send_replace(true);
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let mut pid = self.pid.subscribe();
        let stopped = tokio::time::timeout(wait, pid.wait_for(Option::is_none)).await.is_ok();
        self.signal(Signal::SIGKILL);
        stopped
    }
}

/// The command of a binary of this workspace, without settings for faults in its environment.
pub(crate) fn command(name: &str) -> Result<Command> {
    let own = std::env::current_exe().context("finding this program")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.is_file(),
        "{} is not built: run `cargo build --workspace --bins` first, with the same profile as for chaos",
        path.display()
    );
    let mut command = Command::new(path);
    command.env_clear().envs(launcher::clean_environment()).env_remove("FAULT_SEED").stdin(Stdio::null());
    Ok(command)
}
