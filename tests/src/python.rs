//! Programs in Python that tests run beside ours.

use std::path::{Path, PathBuf};

/// A program of the project's own environment for Python.
///
/// # Panics
/// It is not installed. Says how to install it.
pub fn python_program(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.data/venv/bin").join(name);
    assert!(
        program.is_file(),
        "this test needs {name}, and there is none at {}: run the tests with bin/test, which installs it",
        program.display()
    );
    program
}
