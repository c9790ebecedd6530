//! Whether the spool takes a file now.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;
use object_store::ObjectStoreExt;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::{FILES, Spool, SpoolError};

/// The length of the file that is tried, in bytes. A disk with less space takes no body.
const LEN: usize = 64 * 1024;

impl Spool {
    /// Tries whether a file could be written. A folder is written to, without a sync; a bucket is asked. Returns the share of
    /// the disk that is free; `None` for a bucket.
    ///
    /// # Errors
    /// [`SpoolError::Full`] or [`SpoolError::Away`]: requests get 503.
    pub(crate) async fn try_write(&self) -> Result<Option<f64>, SpoolError> {
        let Some(folder) = &self.0.folder else {
            let name = self.0.files.clone().join(Uuid::nil().to_string());
            return match self.0.store.head(&name).await {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(SpoolError::of(error)),
            };
        };
        self.require_mounted().await?;
        let path = folder.path().to_owned();
        let tried = spawn_blocking(move || try_folder(&path)).await.map_err(|error| SpoolError::Away(error.into()))?;
        tried.map(Some).map_err(|error| match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => SpoolError::Full,
            _ => SpoolError::Away(error),
        })
    }
}

/// Writes and removes a file. Its name is that of an unfinished upload: if the process is killed, the next sweep removes it.
fn try_folder(path: &Path) -> Result<f64> {
    let files = path.join(FILES);
    fs::create_dir_all(&files).with_context(|| format!("making {}", files.display()))?;
    let name = files.join(format!("{}#1", Uuid::new_v4()));
    let written = File::create_new(&name).and_then(|mut file| file.write_all(&[0; LEN]));
    let removed = fs::remove_file(&name);
    written.and(removed).with_context(|| format!("writing to {}", files.display()))?;
    let disk = statvfs(path).with_context(|| format!("asking for the free space of {}", path.display()))?;
    Ok(disk.blocks_available() as f64 / (disk.blocks() as f64).max(1.0))
}
