//! Programs in Python that tests run.

use std::path::{Path, PathBuf};

/// A program of the project's own environment for Python.
///
/// # Panics
/// The program is not installed. The message says how to install it.
pub fn python_program(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.data/venv/bin").join(name);
    assert!(
        program.is_file(),
        "this test needs {name}, and there is none at {}: run the tests with bin/test, which installs it",
        program.display()
    );
    program
}
