//! A destination of files: a folder with one file per unit and attempt, named `<key>-<attempt>`.
//!
//! The name is the register, and store and undo meet nowhere else:
//!
//! ```text
//! nothing --store: an exclusive hard link--> the file --undo: an atomic replacement--> an empty file, the tombstone
//!    \------------------------------undo: an atomic replacement----------------------------^
//! ```
//!
//! The link of a late store fails, because the name is taken by the tombstone. The name has no extension: an undo does not know
//! the content type, and it must hit the name that a store takes. A content is written to a temporary file in `.unfinished`
//! first, so that a file with a name is always whole.
//!
//! The folder has an id, in the file `.folder-id`. A folder without it is new, or its disk is not mounted: [`Files::open_known`]
//! refuses it. While the process runs, the id file is compared before each step, so that no part is written below a mount point
//! and none counts as gone.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use common::stay_down::StayDown;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::destination::{Attachment, Destination, Outcome, Refusal, Unit, UnitRef};
use crate::mark::Mark;
use crate::points::{Point, pass};

/// A temporary file of this age is of a killed process: no store may take so long.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// A content is written in blocks that are at least as long, except for the last.
const BLOCK_LEN: usize = 64 * 1024;

/// Blocking steps in one folder at one time. A step in a folder that hangs is given up, and its thread stays. All such threads must
/// be few, because the spool needs threads, too.
const STEP_COUNT_MAX: usize = 64;

/// The folder of the temporary files. It is in the same folder, because a link cannot cross file systems.
const UNFINISHED: &str = ".unfinished";

/// The file with the id of the folder.
const ID: &str = ".folder-id";

/// A folder that takes one attachment of each unit.
pub struct Files {
    folder: PathBuf,
    takes: String,
    id: Uuid,
    mark: Mark,
    /// One for each blocking step that runs.
    permits: Arc<Semaphore>,
}

impl Files {
    /// The folder, which is made if necessary, as its id is. `takes` is the name of the attachment: a unit without it is declined.
    /// Temporary files of killed processes are deleted.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub async fn open(folder: &Path, takes: impl Into<String>) -> Result<Self> {
        let made = spawn_blocking({
            let folder = folder.to_owned();
            move || make(&folder).and_then(|()| Ok((id_of(&folder)?, Mark::of(folder.join(ID))?)))
        });
        let (id, mark) = made.await?.with_context(|| format!("making the folder {}", folder.display()))?;
        let files = Self {
            folder: folder.to_owned(),
            takes: takes.into(),
            id,
            mark,
            permits: Arc::new(Semaphore::new(STEP_COUNT_MAX)),
        };
        files.clear_unfinished(UNFINISHED_AGE_MAX).await?;
        Ok(files)
    }

    /// As [`Files::open`], for a folder whose id is known. It makes nothing before it has seen that id.
    ///
    /// # Errors
    /// As [`Files::open`]; with [`StayDown`] if the folder has another id or none, because its disk is not mounted.
    pub async fn open_known(folder: &Path, takes: impl Into<String>, id: Uuid) -> Result<Self> {
        let file = folder.join(ID);
        let found = spawn_blocking(move || read_id(&file)).await?;
        let found = found.with_context(|| format!("reading the id of the folder {}", folder.display()))?;
        if found != Some(id) {
            let found = found.map_or("it has none".to_owned(), |found| format!("it has {found}"));
            return Err(StayDown(anyhow!(
                "the folder {folder} is not the one with the parts of units: its id was {id}, and {found}. Mount its disk. If \
                 another folder replaces it for good, write {id} into {folder}/{ID}",
                folder = folder.display()
            ))
            .into());
        }
        Self::open(folder, takes).await
    }

    /// The id of the folder, which stays.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The file of an attempt. An empty file is a tombstone: the attempt was undone.
    pub fn path(&self, key: Uuid, attempt: i32) -> PathBuf {
        self.folder.join(format!("{key}-{attempt}"))
    }

    /// Deletes the temporary files that are older. Returns their count.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn clear_unfinished(&self, older_than: Duration) -> Result<usize> {
        let unfinished = self.folder.join(UNFINISHED);
        let context = format!("clearing {}", unfinished.display());
        spawn_blocking(move || clear(&unfinished, older_than)).await?.context(context)
    }

    /// A blocking step. It is refused if the process ends meanwhile.
    async fn step<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let ending = || Refusal::new(503, "the process is ending");
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| ending())?;
        let stepped = spawn_blocking(move || {
            let _permit = permit;
            step()
        });
        stepped.await.unwrap_or_else(|_| Err(ending()))
    }

    /// Writes the content block by block. A short content takes one blocking step in all.
    async fn write(&self, unit: &Unit, attachment: Attachment) -> Result<(), Refusal> {
        let mut bytes = attachment.bytes;
        let mut block = next_block(&mut bytes).await?;
        if block.is_empty() {
            // An empty file is a tombstone.
            return Err(Refusal::new(
                422,
                format!("the attachment {:?} is empty: leave it out, or send it", self.takes),
            ));
        }
        let mut writing = Writing {
            folder: self.folder.clone(),
            path: self.path(unit.key, unit.attempt),
            mark: self.mark.clone(),
            subject: unit.subject.clone(),
            file: None,
        };
        loop {
            let is_last = block.len() < BLOCK_LEN;
            // If this future is dropped, the file may get its name later. An undo has put its tombstone there by then, or will
            // replace it.
            writing = self.step(move || writing.write(&block, is_last)).await?;
            if is_last {
                return Ok(());
            }
            block = next_block(&mut bytes).await?;
        }
    }
}

/// A file on its way to its name.
struct Writing {
    folder: PathBuf,
    path: PathBuf,
    mark: Mark,
    subject: String,
    file: Option<(Temporary, File)>,
}

impl Writing {
    /// Adds a block. After the last one the file is synced and has its name.
    fn write(mut self, block: &[u8], is_last: bool) -> Result<Self, Refusal> {
        let (temporary, mut file) = match self.file.take() {
            Some(begun) => begun,
            None => {
                require_mounted(&self.mark)?;
                let temporary = Temporary::new(&self.folder);
                let file = File::create_new(&temporary.0).map_err(refused)?;
                (temporary, file)
            }
        };
        file.write_all(block).map_err(refused)?;
        if is_last {
            file.sync_all().map_err(refused)?;
            require_mounted(&self.mark)?;
            pass(Point::FileUnnamed, &self.subject);
            link(&temporary, &self.path, &self.folder)?;
        } else {
            self.file = Some((temporary, file));
        }
        Ok(self)
    }
}

/// The next bytes of a content. Fewer than [`BLOCK_LEN`] are the last.
async fn next_block(bytes: &mut BoxStream<'static, Result<Bytes>>) -> Result<Vec<u8>, Refusal> {
    let mut block = Vec::new();
    while block.len() < BLOCK_LEN
        && let Some(piece) = bytes.next().await
    {
        block.extend_from_slice(
            &piece.map_err(|error| Refusal::new(503, format!("reading the attachment: {error:#}")))?,
        );
    }
    Ok(block)
}

impl Destination for Files {
    fn store<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let Some(attachment) = unit.attachments.find(&self.takes) else { return Outcome::Declined };
            match self.write(unit, attachment).await {
                Ok(()) => Outcome::Stored,
                Err(refusal) => Outcome::Failed(refusal),
            }
        })
    }

    fn undo<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        let (folder, path, mark) = (self.folder.clone(), self.path(unit.key, unit.attempt), self.mark.clone());
        let subject = unit.subject.to_owned();
        let bury = move || {
            require_mounted(&mark)?;
            pass(Point::FileBuried, &subject);
            entomb(&path, &folder).map_err(refused)
        };
        Box::pin(self.step(bury))
    }

    fn forget<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        let paths: Vec<PathBuf> = (1..=unit.attempt).map(|attempt| self.path(unit.key, attempt)).collect();
        let mark = self.mark.clone();
        let forget = move || {
            require_mounted(&mark)?;
            forget(&paths).map_err(refused)
        };
        Box::pin(self.step(forget))
    }
}

/// Makes the folder and its folder of temporary files, if they are missing. Only their owner may read them.
fn make(folder: &Path) -> io::Result<()> {
    let unfinished = folder.join(UNFINISHED);
    if unfinished.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(unfinished)?;
    // The folder's own name must be as durable as the names in it.
    sync(folder)?;
    sync(&folder.join(".."))
}

/// The id of a folder. `None`: it has none.
fn read_id(file: &Path) -> io::Result<Option<Uuid>> {
    match fs::read_to_string(file) {
        Ok(text) => Uuid::try_parse(text.trim()).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The id of a folder, which gets one if it has none. Of two processes at the same time, the second reads the id of the first.
fn id_of(folder: &Path) -> io::Result<Uuid> {
    let file = folder.join(ID);
    if let Some(id) = read_id(&file)? {
        return Ok(id);
    }
    let temporary = Temporary::new(folder);
    let mut written = File::create_new(&temporary.0)?;
    writeln!(written, "{}", Uuid::new_v4())?;
    written.sync_all()?;
    match fs::hard_link(&temporary.0, &file) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => sync(folder)?,
    }
    read_id(&file)?.ok_or_else(|| ErrorKind::NotFound.into())
}

/// Links the temporary file to its name, unless the name is taken: by an earlier store of the attempt, or by a tombstone.
fn link(temporary: &Temporary, path: &Path, folder: &Path) -> Result<(), Refusal> {
    match fs::hard_link(&temporary.0, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        linked => linked.map_err(refused)?,
    }
    if is_tombstone(path).map_err(refused)? {
        return Err(Refusal::undone());
    }
    // Also after an earlier store: its process may have been killed before it synced the folder.
    sync(folder).map_err(refused)
}

/// Puts a tombstone under the name. It replaces any file that has the name.
fn entomb(path: &Path, folder: &Path) -> io::Result<()> {
    let temporary = Temporary::new(folder);
    File::create_new(&temporary.0)?.sync_all()?;
    fs::rename(&temporary.0, path)?;
    sync(folder)
}

/// Deletes the tombstones, and no file with a content.
fn forget(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        match is_tombstone(path).and_then(|is_tombstone| if is_tombstone { fs::remove_file(path) } else { Ok(()) }) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_tombstone(path: &Path) -> io::Result<bool> {
    fs::symlink_metadata(path).map(|file| file.len() == 0)
}

/// Makes new names in the folder durable.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn clear(unfinished: &Path, older_than: Duration) -> io::Result<usize> {
    let mut cleared_count = 0;
    for entry in fs::read_dir(unfinished)? {
        let entry = entry?;
        // A file that is gone was finished meanwhile. A clock that was set back makes a file young.
        let Ok(modified) = entry.metadata().and_then(|file| file.modified()) else { continue };
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if age >= older_than && fs::remove_file(entry.path()).is_ok() {
            cleared_count += 1;
        }
    }
    Ok(cleared_count)
}

/// The name of a temporary file, which is deleted when this is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(folder: &Path) -> Self {
        Self(folder.join(UNFINISHED).join(Uuid::new_v4().to_string()))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A tombstone has been renamed. A file that stays is cleared by its age.
        let _ = fs::remove_file(&self.0);
    }
}

/// 507 if the disk is full, and 503 for every other error of the folder. The error of the system names no path.
fn refused(error: io::Error) -> Refusal {
    let status = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => 507,
        _ => 503,
    };
    Refusal::new(status, format!("the folder cannot be used: {error}"))
}

/// Refuses a folder that is not the one that was opened.
fn require_mounted(mark: &Mark) -> Result<(), Refusal> {
    let reason = "the folder is not the one that was opened at the start: mount its disk again";
    mark.is_there().then_some(()).ok_or_else(|| Refusal::new(503, reason))
}
