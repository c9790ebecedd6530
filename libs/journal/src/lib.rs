//! A journal: a file with a JSON line per entry, and the state that its entries make. An entry is synced before the state knows
//! it and before its response is sent. Entries that arrive together are synced together. The order of the lines decides: when
//! the file is read again, each entry has the same outcome. Users: payments, and the receiver of notices in the container.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// The most entries that are synced together, and the most that wait.
const BATCH_LEN_MAX: usize = 256;

/// A state that is made of the entries of a journal.
pub trait Journaled: Send + 'static {
    /// One line of the journal.
    type Entry: Serialize + DeserializeOwned + Send + 'static;

    /// The outcome of an entry, for the request that has brought it.
    type Outcome: Send + 'static;

    /// Applies an entry that is on disk. The outcome depends on the earlier entries and on nothing else.
    fn apply(&mut self, entry: Self::Entry) -> Self::Outcome;
}

struct Pending<S: Journaled> {
    entry: S::Entry,
    applied: oneshot::Sender<S::Outcome>,
}

/// Accepts entries. Clones share the file.
pub struct Journal<S: Journaled> {
    queue: mpsc::Sender<Pending<S>>,
}

impl<S: Journaled> Clone for Journal<S> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<S: Journaled> Journal<S> {
    /// Starts the writing task on the file from [`open`]. The task ends when the last clone of the journal is dropped, or with
    /// the first error: after an error the file's content is unknown until it is read again.
    pub fn start(file: File, state: Arc<Mutex<S>>) -> (Self, JoinHandle<io::Result<()>>) {
        let (queue, pending) = mpsc::channel(BATCH_LEN_MAX);
        (Self { queue }, tokio::task::spawn_blocking(move || write(file, pending, &state)))
    }

    /// Returns when the entry is on disk and in the state; `None` if the writing task has ended.
    pub async fn append(&self, entry: S::Entry) -> Option<S::Outcome> {
        let (applied, outcome) = oneshot::channel();
        self.queue.send(Pending { entry, applied }).await.ok()?;
        outcome.await.ok()
    }
}

/// Locks the state, also after a panic: each change is one entry, which the state has wholly or not at all.
pub fn lock<S>(state: &Mutex<S>) -> MutexGuard<'_, S> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write<S: Journaled>(mut file: File, mut queue: mpsc::Receiver<Pending<S>>, state: &Mutex<S>) -> io::Result<()> {
    let (mut batch, mut lines) = (Vec::new(), Vec::new());
    while queue.blocking_recv_many(&mut batch, BATCH_LEN_MAX) > 0 {
        lines.clear();
        for Pending { entry, .. } in &batch {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        let mut state = lock(state);
        for Pending { entry, applied } in batch.drain(..) {
            // The client may have left. Its entry is on disk all the same.
            let _ = applied.send(state.apply(entry));
        }
    }
    Ok(())
}

/// Opens the journal of a folder, creates both if necessary, and applies its entries to the state. A torn last line is cut off:
/// its request has never received a response. `setting` names the setting of the folder, for the error.
///
/// # Errors
/// The folder cannot be used, another process uses it, or a line is damaged.
pub fn open<S: Journaled>(folder: &Path, setting: &str, state: &mut S) -> Result<File> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join("journal.jsonl");
    let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
    let file = opened.with_context(|| format!("opening {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!("{} is in use: stop the other process, or set {setting} to another folder", path.display())
    })?;
    let (mut reader, mut line, mut kept_len, mut line_count) = (BufReader::new(&file), Vec::new(), 0, 0_u64);
    while reader.read_until(b'\n', &mut line).with_context(|| format!("reading {}", path.display()))? > 0 {
        if !line.ends_with(b"\n") {
            warn!(path = %path.display(), cut_len = line.len(), "cut off a torn last line, which was never answered");
            break;
        }
        line_count += 1;
        let entry = serde_json::from_slice(&line)
            .with_context(|| format!("line {line_count} of {} is damaged", path.display()))?;
        state.apply(entry);
        kept_len += line.len() as u64;
        line.clear();
    }
    // Responses may rely on these entries from now on, so the entries and the file's name must be on disk.
    file.set_len(kept_len)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(folder)?.sync_all())
        .with_context(|| format!("syncing {}", path.display()))?;
    info!(path = %path.display(), line_count, "journal read");
    Ok(file)
}
