//! The history of a run: every fault, and every start and end of a process. It is written to a file, and its last lines are
//! printed when an invariant is violated. The first violation ends the run.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use tokio::sync::Notify;

/// The number of lines that are printed with a violation.
const TAIL_LEN: usize = 80;

pub(crate) struct History {
    started_at: Instant,
    bar: ProgressBar,
    inner: Mutex<Inner>,
    violated: Notify,
}

struct Inner {
    file: std::fs::File,
    tail: VecDeque<String>,
    violations: Vec<String>,
}

impl History {
    /// Creates a history that writes to `path` and prints above `bar`.
    pub fn create(path: &Path, bar: ProgressBar) -> Result<Self> {
        let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let inner = Inner { file, tail: VecDeque::new(), violations: Vec::new() };
        Ok(Self { started_at: Instant::now(), bar, inner: Mutex::new(inner), violated: Notify::new() })
    }

    /// Writes a line to the file.
    pub fn note(&self, line: &str) {
        let line = format!("{:9.3} {line}", self.started_at.elapsed().as_secs_f64());
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(inner.file, "{line}");
        if inner.tail.len() == TAIL_LEN {
            inner.tail.pop_front();
        }
        inner.tail.push_back(line);
    }

    /// Writes a line to the file, and prints it.
    pub fn tell(&self, line: &str) {
        self.note(line);
        let line = format!("{:7.1}s {line}", self.started_at.elapsed().as_secs_f64());
        if self.bar.is_hidden() {
            println!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Reports that an invariant does not hold. This ends the run.
    pub fn violation(&self, what: &str) {
        self.note(&format!("VIOLATION {what}"));
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).violations.push(what.to_owned());
        self.violated.notify_one();
    }

    /// Returns at the first violation.
    pub async fn violated(&self) {
        self.violated.notified().await;
        // Wakes a further task that waits.
        self.violated.notify_one();
    }

    /// All violations so far, and the last lines of the history.
    pub fn verdict(&self) -> (Vec<String>, Vec<String>) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.violations.clone(), inner.tail.iter().cloned().collect())
    }
}
