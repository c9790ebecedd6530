//! The journal: a file with a JSON line per charge or customer. An entry is synced before the ledger knows it and before its
//! response is sent. Entries that arrive together are synced together.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::ledger::{Entry, Ledger};

/// The most entries that are synced together, and the most that wait.
const BATCH_LEN_MAX: usize = 256;

struct Pending {
    entry: Entry,
    synced: oneshot::Sender<()>,
}

/// Accepts entries. Clones share the file.
#[derive(Clone)]
pub(crate) struct Journal {
    queue: mpsc::Sender<Pending>,
}

impl Journal {
    /// Starts the writing task. It ends when the last clone of the journal is dropped, or with the first error: after an
    /// error the file's content is unknown until it is read again.
    pub fn start(file: File, ledger: Arc<Mutex<Ledger>>) -> (Self, JoinHandle<io::Result<()>>) {
        let (queue, pending) = mpsc::channel(BATCH_LEN_MAX);
        (Self { queue }, tokio::task::spawn_blocking(move || write(file, pending, &ledger)))
    }

    /// Returns when the entry is on disk and in the ledger; `None` if the writing task has ended.
    pub async fn append(&self, entry: Entry) -> Option<()> {
        let (synced, on_disk) = oneshot::channel();
        self.queue.send(Pending { entry, synced }).await.ok()?;
        on_disk.await.ok()
    }
}

/// Locks the ledger, also after a panic: each change is one entry, which the ledger has wholly or not at all.
pub(crate) fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(mut file: File, mut queue: mpsc::Receiver<Pending>, ledger: &Mutex<Ledger>) -> io::Result<()> {
    let (mut batch, mut lines) = (Vec::new(), Vec::new());
    while queue.blocking_recv_many(&mut batch, BATCH_LEN_MAX) > 0 {
        lines.clear();
        for Pending { entry, .. } in &batch {
            serde_json::to_writer(&mut lines, entry)?;
            lines.push(b'\n');
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        let mut ledger = lock(ledger);
        for Pending { entry, synced } in batch.drain(..) {
            ledger.apply(entry);
            // The client may have left; its charge stays made.
            let _ = synced.send(());
        }
    }
    Ok(())
}

/// Opens the journal of a folder, creates both if necessary, and applies its entries to the ledger. A torn last line is cut
/// off: its request has never received a response.
///
/// # Errors
/// The folder cannot be used, another process uses it, or a line is damaged.
pub(crate) fn open(folder: &Path, ledger: &mut Ledger) -> Result<File> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join("journal.jsonl");
    let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
    let file = opened.with_context(|| format!("opening {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!("{} is in use: stop the other payments process, or set PAYMENTS_DATA to another folder", path.display())
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
        ledger.apply(entry);
        kept_len += line.len() as u64;
        line.clear();
    }
    // Responses may rely on these entries from now on, so the entries and the file's name must be on disk.
    file.set_len(kept_len)
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(folder)?.sync_all())
        .with_context(|| format!("syncing {}", path.display()))?;
    info!(path = %path.display(), line_count, charge_count = ledger.charges.len(), "journal read");
    Ok(file)
}
