//! The steps for a spool in a folder that `object_store` does not take.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use super::{FILES, ID};
use crate::mark::Mark;

/// A folder with the id of a spool.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
    mark: Mark,
}

impl Folder {
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path)?;
        let mark = Mark::of(path.join(ID)).with_context(|| format!("read the id of the spool {}", path.display()))?;
        // The first upload would make it, and a sweep comes earlier.
        make(&path.join(FILES)).with_context(|| format!("make the folder {FILES} of the spool {}", path.display()))?;
        Ok(Self { path, mark })
    }

    /// Host and folder.
    pub(super) fn name(&self) -> String {
        let host =
            nix::sys::utsname::uname().map(|host| host.nodename().to_string_lossy().into_owned()).unwrap_or_default();
        format!("{host}:{}", self.path.display())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a folder that has another id file than it had at the start.
    pub(super) async fn require_mounted(&self) -> Result<()> {
        let folder = self.clone();
        blocking(move || {
            ensure!(
                folder.mark.is_there(),
                "the folder {} is not the spool any more: mount it again",
                folder.path.display()
            );
            Ok(())
        })
        .await
    }

    pub(super) async fn sync(&self) -> Result<()> {
        let path = self.path.join(FILES);
        blocking(move || sync_folder(&path).with_context(|| format!("sync {}", path.display()))).await
    }

    /// Deletes what a failed upload of this name has left: both its temporary file and its finished file.
    pub(super) async fn discard(&self, name: &str) -> Result<()> {
        let files = self.path.join(FILES);
        let names = [format!("{name}#1"), name.to_owned()];
        blocking(move || names.iter().try_for_each(|name| Ok(remove(&files.join(name)).map(drop)?))).await
    }

    /// Deletes temporary files that were last written longer ago.
    pub(super) async fn clear_unfinished(&self, older_than: Duration) -> Result<usize> {
        let path = self.path.join(FILES);
        blocking(move || {
            clear_unfinished(&path, older_than).with_context(|| format!("clear unfinished files in {}", path.display()))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Makes a missing folder, for its owner alone, and syncs the folders above it.
pub(super) fn make(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    if path.is_dir() {
        return Ok(());
    }
    let kept = path.ancestors().find(|path| path.is_dir()).unwrap_or(&path).to_owned();
    DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
    path.ancestors().skip(1).take_while(|made| made.starts_with(&kept)).try_for_each(sync_folder)
}

/// Anything in a folder without an id, except for what a killed start leaves, and for the folder that a file system brings along.
pub(super) fn find_anything(path: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "lost+found" && !is_temporary(&name, |base| base == ID) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn clear_unfinished(files: &Path, older_than: Duration) -> io::Result<usize> {
    let entries = match fs::read_dir(files) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut cleared_count = 0;
    for entry in entries {
        let entry = entry?;
        if !is_temporary(&entry.file_name().to_string_lossy(), |base| Uuid::try_parse(base).is_ok()) {
            continue;
        }
        let written_at = match entry.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => metadata?.modified()?,
        };
        let age = SystemTime::now().duration_since(written_at).unwrap_or_default();
        if age >= older_than && remove(&entry.path())? {
            cleared_count += 1;
        }
    }
    Ok(cleared_count)
}

/// Whether `object_store` has made the name for an upload: `<name>#<number>`.
fn is_temporary(name: &str, is_ours: impl Fn(&str) -> bool) -> bool {
    name.split_once('#').is_some_and(|(base, number)| {
        is_ours(base) && !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

/// Removes a file. False: it was gone already.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        result => result.map(|()| true),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
