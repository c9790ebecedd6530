//! The licences of everything by other authors that a shipped program contains: crates, and the scripts of the two web pages.
//! They ask that their texts go with every copy.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Members of the workspace that are never shipped.
const NOT_SHIPPED: [&str; 2] = ["tests", "micro"];

/// Files that hold a licence or a notice, by the beginning of their names in capital letters.
const TEXTS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// A crate of another author.
struct Crate {
    name: String,
    version: String,
    licence: String,
    folder: PathBuf,
}

/// The notices of all shipped programs, for the file `THIRD-PARTY` beside them.
///
/// # Errors
/// cargo does not run in `workspace`, or a crate's folder cannot be read.
pub(crate) fn third_party(workspace: &Path) -> Result<String> {
    let crates = shipped_crates(workspace)?;
    let mut list = String::new();
    // Many crates have the same text.
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Crate { name, version, licence, folder } in &crates {
        list += &format!("{name} {version}: {licence}\n");
        for text in licence_texts(folder, licence)? {
            texts.entry(text).or_default().insert(format!("{name} {version}"));
        }
    }
    let uplot = workspace.join("processes/dashboard/page/vendor/uPlot-LICENSE");
    let uplot = fs::read_to_string(&uplot).with_context(|| format!("reading {}", uplot.display()))?;
    texts.entry(uplot.trim().to_owned()).or_default().insert("uPlot".to_owned());
    let texts: String = texts
        .iter()
        .map(|(text, names)| {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            format!("\n{}\n{}\n\n{text}\n", "=".repeat(80), names.join(", "))
        })
        .collect();
    Ok(format!(
        "Third-party software in the programs of Rocket Rides Log, with its licences. Where a crate offers a choice that\n\
         includes the MIT License, it is used under the MIT License.\n\n\
         Swagger UI (in the program api): Apache-2.0. Copyright 2020-2021 SmartBear Software Inc. The text of the licence\n\
         is below.\n\
         uPlot (in the program dashboard): MIT. The text of the licence is below.\n\n{list}{texts}"
    ))
}

fn shipped_crates(workspace: &Path) -> Result<Vec<Crate>> {
    let version = cargo(workspace, &["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("cargo does not tell its host")?;
    let metadata = cargo(workspace, &["metadata", "--format-version=1", "--locked", "--filter-platform", host])?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading the metadata of the workspace")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        list(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let needs: BTreeMap<String, Vec<Value>> =
        list(&metadata["resolve"]["nodes"]).iter().map(|node| (text(&node["id"]), list(&node["deps"]))).collect();
    let mut left: Vec<String> = list(&metadata["workspace_members"]).iter().map(text).collect();
    left.retain(|id| packages.get(id).is_some_and(|package| !NOT_SHIPPED.contains(&&*text(&package["name"]))));
    let mut shipped = BTreeSet::new();
    while let Some(id) = left.pop() {
        // A dependency of the build or of tests is not in a program.
        let is_contained = |need: &&Value| list(&need["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
        let needs = needs.get(&id).into_iter().flatten().filter(is_contained).map(|need| text(&need["pkg"]));
        if shipped.insert(id.clone()) {
            left.extend(needs);
        }
    }
    let foreign = shipped.iter().filter_map(|id| packages.get(id)).filter(|package| !package["source"].is_null());
    let mut crates: Vec<Crate> = foreign
        .map(|package| Crate {
            name: text(&package["name"]),
            version: text(&package["version"]),
            licence: text(&package["license"]),
            folder: Path::new(&text(&package["manifest_path"])).parent().map(Path::to_owned).unwrap_or_default(),
        })
        .collect();
    crates.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    Ok(crates)
}

fn cargo(workspace: &Path, args: &[&str]) -> Result<String> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program).args(args).current_dir(workspace).output().context("starting cargo")?;
    ensure!(output.status.success(), "cargo {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).context("reading cargo's output")
}

/// The texts that a crate brings. Of a choice of licences, the MIT License is the shortest.
fn licence_texts(folder: &Path, licence: &str) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && TEXTS.iter().any(|start| name.starts_with(start)) {
            files.push((name, path));
        }
    }
    files.sort();
    if licence.contains("OR") && files.iter().any(|(name, _)| name.contains("MIT")) {
        files.retain(|(name, _)| name.contains("MIT") || name.starts_with("NOTICE"));
    }
    let text = |(_, path): &(String, PathBuf)| {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).replace('\r', "").trim().to_owned())
    };
    files.iter().map(text).collect()
}
