//! The workspace: its root, and the binaries that cargo builds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::binary;

/// The root folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The binaries of the workspace by name, each with its package, from `cargo metadata`.
pub fn workspace_binaries() -> BTreeMap<String, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let args = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = Command::new(cargo).args(args).current_dir(root()).output().unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let is_binary = |target: &&Value| target["kind"].as_array().unwrap().iter().any(|kind| kind == "bin");
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .flat_map(|package| package["targets"].as_array().unwrap().iter().map(move |target| (package, target)))
        .filter(|(_, target)| is_binary(target))
        .map(|(package, target)| (name(target), name(package)))
        .collect()
}

/// The flags and the environment variables in a binary's `--help`.
pub struct Help {
    /// `--database-url`, …
    pub flags: BTreeSet<String>,
    /// `DATABASE_URL`, …
    pub variables: BTreeSet<String>,
}

impl Help {
    /// Runs `--help` of the binary `name`, or of a subcommand, such as `container notices`.
    ///
    /// # Panics
    /// The binary cannot be run, or fails.
    pub fn of(name: &str) -> Self {
        let mut words = name.split(' ');
        let mut command = Command::new(binary(words.next().unwrap()));
        let output = command.args(words).arg("--help").env_clear().output().unwrap();
        assert!(output.status.success(), "{name} --help ended with {}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        let flags = text.split_whitespace().filter(|word| word.starts_with("--")).map(str::to_owned).collect();
        let variables = text.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap().to_owned());
        Self { flags, variables: variables.collect() }
    }
}
