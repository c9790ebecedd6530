//! The processes that are measured: the real binaries, timed from start to exit.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::proc_stat::{cpu_seconds, memory_mb, memory_peak_mb};

/// How long a process may take to stop when it is told to.
const STOP_WAIT: Duration = Duration::from_secs(20);

/// How often memory is looked at while a process runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The command of a process.
pub(crate) struct Spec {
    /// The name in logs.
    pub name: String,
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl Spec {
    /// A binary of this workspace, in the same folder as this program.
    pub fn of_workspace(program: &str, args: &[&str]) -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        Self::of_program(program, own.with_file_name(program), args)
    }

    /// Any program.
    pub fn of_program(name: &str, program: PathBuf, args: &[&str]) -> Self {
        Self { name: name.to_owned(), program, args: args.iter().map(|arg| (*arg).to_owned()).collect() }
    }
}

/// A running process, which is killed when this is dropped.
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    started_at: Instant,
}

/// The figures of a process that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// The time from its start until its end was noticed.
    pub elapsed: Duration,
    /// The peak of its memory.
    pub memory_peak_mb: f64,
    /// The CPU time that it was last seen to have used, at most 20 ms before its end.
    pub cpu_seconds: f64,
}

impl Running {
    /// Starts the process.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn start(spec: &Spec, environment: &[(&'static str, String)], folder: &Path) -> Result<Self> {
        ensure!(
            spec.program.is_file(),
            "{} is not built: run `cargo build --release --workspace --bins` first",
            spec.program.display()
        );
        let log = folder.join(format!("{}.log", spec.name));
        let file = std::fs::File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(&spec.program);
        command.env_clear().envs(launcher::clean_environment());
        command.args(&spec.args).envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let started_at = Instant::now();
        let child = command.spawn().with_context(|| format!("starting {}", spec.program.display()))?;
        Ok(Self { name: spec.name.clone(), child, log, started_at })
    }

    /// The name of the process.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The CPU time of the process, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.pid()?).with_context(|| self.last_words())
    }

    /// The resident memory of the process.
    pub fn memory_mb(&self) -> Result<f64> {
        memory_mb(self.pid()?).with_context(|| self.last_words())
    }

    /// The most memory that was ever resident.
    pub fn memory_peak_mb(&self) -> Result<f64> {
        memory_peak_mb(self.pid()?).with_context(|| self.last_words())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()? as i32), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Waits until the process ends with success.
    ///
    /// # Errors
    /// The process failed. The error has its last lines of log.
    pub async fn succeed(mut self) -> Result<Ended> {
        let pid = self.pid()?;
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        let (mut peak, mut cpu) = (0.0_f64, 0.0_f64);
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status.context("waiting for a process")?,
                _ = looks.tick() => {
                    peak = memory_peak_mb(pid).unwrap_or(0.0).max(peak);
                    cpu = cpu_seconds(pid).unwrap_or(0.0).max(cpu);
                }
            }
        };
        let elapsed = self.started_at.elapsed();
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.last_words());
        Ok(Ended { elapsed, memory_peak_mb: peak, cpu_seconds: cpu })
    }

    /// Fails if the process has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("watching a process")? {
            bail!("{} ended with {status}: {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Sends SIGTERM, and waits until the process ends.
    ///
    /// # Errors
    /// The process had ended before, failed, or did not end in time.
    pub async fn stop(mut self) -> Result<()> {
        self.check()?;
        self.signal(Signal::SIGTERM)?;
        let ended = tokio::time::timeout(STOP_WAIT, self.child.wait()).await;
        let status = ended.with_context(|| format!("{} does not stop", self.name))??;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, self.last_words());
        Ok(())
    }

    fn pid(&self) -> Result<u32> {
        self.child.id().with_context(|| format!("{} has ended", self.name))
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}
