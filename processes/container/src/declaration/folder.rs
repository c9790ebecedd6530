//! Whether a folder can be used, without changing anything.

use std::path::Path;

use nix::unistd::{AccessFlags, access};

/// Why files cannot be stored in this folder, which is made when the container starts. `None`: they can.
pub(super) fn refuse(folder: &Path) -> Option<String> {
    let existing = folder.ancestors().find(|path| path.symlink_metadata().is_ok())?;
    let shown = existing.display();
    if !existing.is_dir() {
        return Some(format!("{shown} is no folder: give another path"));
    }
    let error = access(existing, AccessFlags::W_OK | AccessFlags::X_OK).err()?;
    Some(format!("{shown} cannot be written ({}): let this user write into it, or give another path", error.desc()))
}
