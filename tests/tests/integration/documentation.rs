//! The documents name files, tests and prefixes that exist, and README stays short.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use tests::root;

/// A reader should get through README in ten minutes.
const README_LEN_MAX: usize = 120;

/// Folders that hold nothing of ours.
const FOREIGN: [&str; 4] = ["target", ".data", ".git", "vendor"];

/// Every file of the repository with this extension.
fn files(extension: &str) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
                if !FOREIGN.contains(&name) {
                    folders.push(path);
                }
            } else if path.extension() == Some(OsStr::new(extension)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The documents that people read: results of benchmarks are written by a program.
fn documents() -> Vec<(PathBuf, String)> {
    let pages = files("md").into_iter().filter(|path| !path.starts_with(root().join("tools/benchmarks/results")));
    pages.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

fn sources() -> String {
    files("rs").iter().map(|path| std::fs::read_to_string(path).unwrap() + "\n").collect()
}

/// The text between backticks on one line.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The targets of Markdown links and of images in HTML.
fn links(text: &str) -> BTreeSet<&str> {
    let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let images = text.split("src=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    links.chain(images).filter(|link| !link.starts_with("http")).collect()
}

/// A heading's anchor, as hosting pages make it: `## The hot path` is `the-hot-path`.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    headings.map(|heading| heading.chars().filter(kept).collect::<String>().to_lowercase().replace(' ', "-")).collect()
}

#[test]
fn readme_is_short() {
    let len = std::fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(len <= README_LEN_MAX, "README.md has {len} lines: move something to docs/");
}

#[test]
fn every_link_leads_somewhere() {
    for (page, text) in documents() {
        for link in links(&text) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            assert!(target.exists(), "{} links to {link}, which does not exist", page.display());
            if !anchor.is_empty() {
                let is_heading = anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor);
                assert!(is_heading, "{} links to {link}, and there is no such heading", page.display());
            }
        }
    }
}

#[test]
fn every_file_that_is_spoken_of_exists() {
    for (page, text) in documents() {
        // NAME is to be replaced by the reader.
        let is_file =
            |name: &&str| name.contains('/') && !name.contains(['*', ' ', '{', '…']) && !name.contains("NAME");
        let has_extension = |name: &&str| [".rs", ".sql", ".py", ".yaml"].iter().any(|end| name.ends_with(end));
        for path in quoted(&text).into_iter().filter(is_file).filter(has_extension) {
            assert!(root().join(path).exists(), "{} speaks of {path}, which does not exist", page.display());
        }
    }
}

#[test]
fn every_test_that_proves_something_exists() {
    let sources = sources();
    // A name as long as a sentence is a test.
    let is_test = |name: &&str| {
        name.matches('_').count() >= 3 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    for (page, names_min) in [("ARCHITECTURE.md", 15), ("docs/PROOFS.md", 30)] {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        let names: Vec<&str> = quoted(&text).into_iter().filter(is_test).collect();
        assert!(names.len() >= names_min, "{page}: {names:?}");
        for name in names {
            assert!(sources.contains(&format!("fn {name}(")), "{page} speaks of a test {name}, which does not exist");
        }
    }
}

/// `rl_t07` of `rl_t07_a_record_that_comes_twice_is_folded_once`; `None` for other names.
fn prefix(name: &str) -> Option<&str> {
    let prefix = name.get(..6)?;
    let is_known = ["rl_", "ra_", "an_", "ac_", "un_"].iter().any(|system| prefix.starts_with(system));
    let number = prefix.get(4..)?;
    (is_known && number.chars().all(|c| c.is_ascii_digit())).then_some(prefix)
}

#[test]
fn every_prefix_of_a_test_has_a_key() {
    let sources = sources();
    // Cases of a macro are names on lines of their own.
    let names = sources.lines().map(|line| line.trim().trim_start_matches("async ").trim_start_matches("fn "));
    let used: BTreeSet<&str> = names.filter_map(prefix).collect();
    let page = std::fs::read_to_string(root().join("docs/TESTS.md")).unwrap();
    let explained: BTreeSet<&str> = page.lines().filter_map(|line| prefix(line.strip_prefix("| `")?)).collect();
    assert!(used.len() > 30, "{used:?}");
    assert_eq!(used, explained, "docs/TESTS.md explains each prefix of a test's name, in the first column");
}

#[test]
fn links_and_anchors_are_found() {
    assert_eq!(links("[a](b.md#c) and <img src=\"d.png\"> and [e](https://f)"), BTreeSet::from(["b.md#c", "d.png"]));
    assert_eq!(anchors("## The hot path, `COPY`\ntext"), BTreeSet::from(["the-hot-path-copy".to_owned()]));
}
