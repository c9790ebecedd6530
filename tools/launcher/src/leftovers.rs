//! Stops processes: children, and processes that an earlier launcher left behind when it was killed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

/// The time in which a left-over process must end before it is killed.
const LEFTOVER_WAIT: Duration = Duration::from_secs(10);

/// Sends `signal` and waits. A process that is still there after `wait` is killed.
///
/// # Errors
/// The process had to be killed.
pub(crate) async fn stop_child(child: &mut Child, signal: Signal, wait: Duration) -> Result<()> {
    let Some(pid) = child.id() else { return Ok(()) };
    // An error means that the process has just ended.
    let _ = kill(Pid::from_raw(pid as i32), signal);
    match tokio::time::timeout(wait, child.wait()).await {
        Ok(ended) => {
            ended.context("waiting for a process to end")?;
            Ok(())
        }
        Err(_) => {
            child.kill().await.context("killing a process")?;
            bail!("process {pid} did not end within {} s of {signal} and was killed", wait.as_secs())
        }
    }
}

/// The running processes, kept on disk: if the launcher is killed, the next launcher stops them.
pub struct Register {
    path: PathBuf,
    lines: Vec<String>,
}

impl Register {
    /// Stops the processes that an earlier launcher registered in `path` and did not stop, and starts an empty register.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn open(path: PathBuf) -> Result<Self> {
        if let Ok(text) = std::fs::read_to_string(&path) {
            // Processes first, servers last: the reverse of the order in which they were started.
            for leftover in text.lines().rev().filter_map(Leftover::parse) {
                leftover.stop().await;
            }
        }
        let register = Self { path, lines: Vec::new() };
        register.save()?;
        Ok(register)
    }

    /// Registers a process with its start time, so that a later process with the same id is left alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, pid: Option<u32>, signal: Signal) -> Result<()> {
        if let Some(pid) = pid
            && let Some(started_at) = started_at(pid)
        {
            self.lines.retain(|line| Leftover::parse(line).is_some_and(|leftover| leftover.is_there()));
            self.lines.push(format!("{pid} {started_at} {}", signal as i32));
            self.save()?;
        }
        Ok(())
    }

    /// Empties the register: every process has been stopped.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn clear(&mut self) -> Result<()> {
        self.lines.clear();
        self.save()
    }

    fn save(&self) -> Result<()> {
        write_whole(&self.path, &self.lines.join("\n"))
    }
}

fn write_whole(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).with_context(|| format!("writing {}", beside.display()))?;
    std::fs::rename(&beside, path).with_context(|| format!("writing {}", path.display()))
}

/// A line of the register: `<process id> <start time> <signal that stops it>`.
struct Leftover<'a> {
    pid: u32,
    started_at: &'a str,
    signal: Signal,
}

impl<'a> Leftover<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split(' ');
        let (pid, started_at) = (words.next()?.parse().ok()?, words.next()?);
        let signal = Signal::try_from(words.next()?.parse::<i32>().ok()?).ok()?;
        Some(Self { pid, started_at, signal })
    }

    fn is_there(&self) -> bool {
        started_at(self.pid).is_some_and(|now| now == self.started_at)
    }

    async fn stop(&self) {
        if !self.is_there() {
            return;
        }
        eprintln!("stopping process {}, left behind by an earlier run", self.pid);
        let id = Pid::from_raw(self.pid as i32);
        // An error means that the process has just ended.
        let _ = kill(id, self.signal);
        let deadline = tokio::time::Instant::now() + LEFTOVER_WAIT;
        while self.is_there() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if self.is_there() {
            let _ = kill(id, Signal::SIGKILL);
        }
    }
}

/// The start time of a process, in ticks since the machine booted. `None` if the process is not there or is a zombie, or if there
/// is no /proc.
fn started_at(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces. After it: state, parent, … and the start time as the 22nd field of all.
    let after_name = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    (fields.first()? != &"Z").then(|| fields.get(19).map(|start| (*start).to_owned()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_left_behind_is_stopped_and_another_is_left_in_peace() {
        let folder = std::env::temp_dir().join(format!("leftovers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut left_behind = tokio::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mut unrelated = tokio::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mut register = Register::open(folder.join("processes")).await.unwrap();
        register.add(left_behind.id(), Signal::SIGTERM).unwrap();
        register.lines.push(format!("{} 1 15", unrelated.id().unwrap()));
        register.save().unwrap();

        Register::open(folder.join("processes")).await.unwrap();

        assert!(!left_behind.wait().await.unwrap().success());
        assert!(unrelated.try_wait().unwrap().is_none(), "a process with another start time was stopped");
        unrelated.kill().await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }
}
