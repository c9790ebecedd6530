//! Man pages and completions, generated from the definition by which the program parses its flags. The tool `manual` starts each
//! program with the variable [`FOLDER`] to have them written. Programs that are built without the feature `pages` ignore it.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

/// The environment variable that names the share folder, for example `/usr/local/share`.
pub const FOLDER: &str = "ROCKET_RIDES_PAGES";

/// Each shell, its folder below the share folder, and the prefix and suffix of a file name there.
const SHELLS: [(Shell, &str, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "", ""),
    (Shell::Zsh, "zsh/site-functions", "_", ""),
    (Shell::Fish, "fish/vendor_completions.d", "", ".fish"),
];

/// Writes the pages of this program and ends it, if [`FOLDER`] is set.
pub(crate) fn write_if_asked(command: Command) {
    let Some(share) = std::env::var_os(FOLDER).filter(|share: &OsString| !share.is_empty()) else { return };
    match write(command, Path::new(&share)) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error:#}");
            std::process::exit(1);
        }
    }
}

fn write(command: Command, share: &Path) -> Result<()> {
    let name = command.get_name().to_owned();
    for (shell, folder, before, after) in SHELLS {
        let folder = share.join(folder);
        create(&folder)?;
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut script);
        let path = folder.join(format!("{before}{name}{after}"));
        fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
    }
    let man = share.join("man/man1");
    create(&man)?;
    clap_mangen::generate_to(command, &man).with_context(|| format!("writing the man page of {name}"))
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}
