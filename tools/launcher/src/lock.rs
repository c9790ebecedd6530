//! One launcher per data folder.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Takes the lock on a file, which is created if it is not there. `None`: another process holds the lock. The system releases it
/// when the process ends, even by a kill.
///
/// # Errors
/// The file cannot be created or locked.
pub fn lock(path: &Path) -> Result<Option<Flock<File>>> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(anyhow!("locking {}: {error}", path.display())),
    }
}
