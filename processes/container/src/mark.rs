//! How a folder is recognised: by a file in it with an id. An unmounted disk leaves an empty folder, and another disk has another
//! file, so nothing is written to the wrong one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The file with the id of a folder, as it was at the start.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    file: PathBuf,
    /// Device and inode. After an unmount, or if another folder took the name, they differ.
    at: (u64, u64),
}

impl Mark {
    /// The mark that the folder has now.
    pub fn of(file: PathBuf) -> io::Result<Self> {
        let at = place_of(&file)?;
        Ok(Self { file, at })
    }

    /// Whether the folder still has this mark.
    pub fn is_there(&self) -> bool {
        place_of(&self.file).is_ok_and(|at| at == self.at)
    }
}

fn place_of(file: &PathBuf) -> io::Result<(u64, u64)> {
    let file = fs::metadata(file)?;
    Ok((file.dev(), file.ino()))
}
