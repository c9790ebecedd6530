//! The documentation speaks of files and tests that are there.

use std::collections::BTreeSet;

use tests::root;

/// What stands between backticks on one line.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

fn sources() -> String {
    let mut text = String::new();
    for folder in ["tests/tests/integration", "api/src", "common/src", "tools/launcher/src"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}

#[test]
fn every_test_that_proves_an_invariant_exists() {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let sources = sources();
    // A name of a sentence's length is a test.
    let names: Vec<&str> = quoted(&architecture).into_iter().filter(|name| name.matches('_').count() >= 3).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(
            sources.contains(&format!("fn {name}(")),
            "ARCHITECTURE.md speaks of a test {name}, which does not exist"
        );
    }
}

#[test]
fn every_file_that_is_spoken_of_exists() {
    for page in ["README.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        let files = quoted(&text).into_iter().filter(|name| name.ends_with(".rs") && name.contains('/'));
        for path in links.chain(files).filter(|path| !path.starts_with("http")) {
            assert!(root().join(path).exists(), "{page} speaks of {path}, which does not exist");
        }
    }
}
