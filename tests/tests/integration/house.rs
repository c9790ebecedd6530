//! The house stays easy to live in: few entries at the root, short files and functions, and no imports in circles.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tests::root;

const FILE_LEN_MAX: usize = 400;
const FUNCTION_LEN_MAX: usize = 70;
const COMMON_LEN_MAX: usize = 800;
const MAIN_LEN_MAX: usize = 5;

/// Entries of the root that git ignores.
const IGNORED: [&str; 4] = [".git", "target", ".data", ".env"];

/// Every Rust file of the workspace with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut folders: Vec<PathBuf> =
        ["api", "streamer", "consumer", "simulator", "common", "libs", "processes", "tools", "tests"]
            .map(|folder| root().join(folder))
            .to_vec();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&entry).unwrap();
                files.push((entry.strip_prefix(root()).unwrap().to_path_buf(), text));
            }
        }
    }
    assert!(files.len() > 200, "{}", files.len());
    files
}

#[test]
fn the_root_has_few_entries() {
    let names = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> = names.filter(|name| !IGNORED.contains(&name.as_str())).collect();
    let visible_count = names.iter().filter(|name| !name.starts_with('.')).count();
    assert!(names.len() <= 30 && visible_count <= 22, "{names:?}");
}

#[test]
fn files_and_functions_are_short() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > FILE_LEN_MAX {
            long.push(format!("{} has {} lines", path.display(), lines.len()));
        }
        for (start, line) in lines.iter().enumerate().filter(|(start, _)| begins_function(&lines[*start..])) {
            // rustfmt puts the closing brace below the first letter of the function.
            let end = format!("{}}}", " ".repeat(line.len() - line.trim_start().len()));
            let len = lines[start..].iter().position(|line| **line == end).map_or(1, |position| position + 1);
            if len > FUNCTION_LEN_MAX {
                long.push(format!("{}:{}: {} has {len} lines", path.display(), start + 1, line.trim()));
            }
        }
    }
    assert!(long.is_empty(), "split these: {long:#?}");
}

/// Whether a function with a body begins on the first of these lines.
fn begins_function(lines: &[&str]) -> bool {
    let mut words = lines[0].trim_start().split(' ');
    let is_function =
        words.find(|word| !["pub", "pub(crate)", "pub(super)", "const", "async"].contains(word)) == Some("fn");
    is_function && lines.iter().find(|line| line.ends_with(['{', ';', '}'])).is_some_and(|line| line.ends_with('{'))
}

#[test]
fn doc_comments_stand_above_attributes_and_a_bool_is_not_matched() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, pair) in lines.windows(2).enumerate() {
            let is_below = pair[0].starts_with("#[") && pair[0].ends_with(']') && pair[1].starts_with("/// ");
            let is_matched = pair[0].contains("match ") && ["true", "false"].iter().any(|arm| pair[1].starts_with(arm));
            if is_below || is_matched && pair[1].contains("=>") {
                found.push(format!("{}:{}: {}", path.display(), number + 2, pair[1]));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_main_is_one_call() {
    for process in ["api", "streamer", "consumer", "simulator"] {
        assert_main_is_short(&root().join(process));
    }
    for entry in std::fs::read_dir(root().join("processes")).unwrap() {
        assert_main_is_short(&entry.unwrap().path());
    }
}

fn assert_main_is_short(folder: &Path) {
    let text = std::fs::read_to_string(folder.join("src/main.rs")).unwrap();
    assert!(text.lines().count() <= MAIN_LEN_MAX, "{}/src/main.rs is more than one call", folder.display());
}

#[test]
fn common_is_small_and_depends_on_no_other_crate_of_the_workspace() {
    let len: usize =
        sources().iter().filter(|(path, _)| path.starts_with("common")).map(|(_, text)| text.lines().count()).sum();
    assert!(len <= COMMON_LEN_MAX, "common has {len} lines: move a part to libs/");
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members =
        workspace.lines().filter(|line| line.contains("{ path = ")).map(|line| line.split(' ').next().unwrap());
    let manifest = std::fs::read_to_string(root().join("common/Cargo.toml")).unwrap();
    for member in members.chain(["axum", "reqwest"]) {
        assert!(!manifest.contains(&format!("\n{member}.workspace")), "common depends on {member}");
    }
}

/// The files of a crate by module path (`consumer::read`; `lib` for the root), each with the modules that it imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut crates: BTreeMap<PathBuf, BTreeMap<String, String>> = BTreeMap::new();
    for (path, text) in sources() {
        let Some(position) = path.iter().position(|part| part == "src") else { continue };
        let folder: PathBuf = path.iter().take(position).collect();
        let parts: Vec<String> =
            path.iter().skip(position + 1).map(|part| part.to_string_lossy().into_owned()).collect();
        if parts[0] != "bin" && parts[0] != "main.rs" {
            let module = parts.join("::").trim_end_matches(".rs").to_owned();
            crates.entry(folder).or_default().insert(module, without_tests_and_comments(&text));
        }
    }
    let mut circles = Vec::new();
    for (folder, modules) in &crates {
        let imports: Imports =
            modules.iter().map(|(module, text)| (module.clone(), imports(module, text, modules))).collect();
        for module in imports.keys() {
            if reaches(&imports, module, module) {
                circles.push(format!("{}: {module} imports {:?}", folder.display(), imports[module]));
            }
        }
    }
    assert!(circles.is_empty(), "these import each other in a circle: {circles:#?}");
}

fn without_tests_and_comments(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).fold(String::new(), |all, line| all + line + "\n")
}

/// The modules that a file names by `crate::` or `super::`. A re-export of `lib.rs` is no import by `lib.rs`.
fn imports(module: &str, text: &str, modules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = BTreeSet::new();
    for (prefix, base) in [("crate::", ""), ("super::", parent)] {
        for rest in text.split(prefix).skip(1) {
            for path in paths(rest) {
                let path = if base.is_empty() { path } else { format!("{base}::{path}") };
                found.insert(longest_module(&path, modules));
            }
        }
    }
    if module == "lib" {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with("pub use "));
        let lines: String = lines.fold(String::new(), |all, line| all + line + "\n");
        found.extend(modules.keys().filter(|name| uses(&lines, name)).cloned());
    }
    found.remove(module);
    found
}

/// Whether the root names a path in this module.
fn uses(text: &str, module: &str) -> bool {
    let path = format!("{module}::");
    text.match_indices(&path)
        .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

/// `a::b::{c, d::e}` as `a::b::c` and `a::b::d::e`; one level of braces is enough for the style of this workspace.
fn paths(rest: &str) -> Vec<String> {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
    let (base, rest) = rest.split_at(end);
    match rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
        Some((items, _)) => items.split(',').map(|item| format!("{base}{}", item.trim())).collect(),
        None => vec![base.to_owned()],
    }
}

/// The file that holds this path, or `lib`.
fn longest_module(path: &str, modules: &BTreeMap<String, String>) -> String {
    let mut path = path;
    loop {
        if modules.contains_key(path) {
            return path.to_owned();
        }
        match path.rsplit_once("::") {
            Some((shorter, _)) => path = shorter,
            None => return "lib".to_owned(),
        }
    }
}

fn reaches(imports: &Imports, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(module) = open.pop() {
        for next in imports.get(&module).into_iter().flatten() {
            if next == to {
                return true;
            }
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    false
}
