//! Code of other authors: its licences are allowed, it comes from crates.io, and its notices go with the programs.

use std::collections::BTreeSet;
use std::process::Command;

use tests::{binary, root, scratch_folder};

/// A crate that is in a shipped program.
struct Shipped {
    name: String,
    version: String,
    licence: String,
    /// Where cargo has it from; empty for crates.io.
    source: String,
}

/// The crates of all programs, as `cargo tree` lists them.
fn shipped() -> Vec<Shipped> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let args =
        "tree --offline --locked --workspace --exclude tests --exclude micro --edges normal --prefix none --no-dedupe";
    let mut command = Command::new(cargo);
    command.args(args.split(' ')).args(["--format", "{p}|{l}"]).current_dir(root());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: BTreeSet<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let parse = |line: &str| {
        let (package, licence) = line.split_once('|').unwrap();
        let mut words = package.split(' ');
        let (name, version) = (words.next().unwrap().to_owned(), words.next().unwrap()[1..].to_owned());
        let source = words.filter(|word| *word != "(proc-macro)").collect();
        Shipped { name, version, licence: licence.to_owned(), source }
    };
    lines.into_iter().map(parse).collect()
}

/// The licences in deny.toml.
fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let list = text.split("allow = [").nth(1).unwrap().split(']').next().unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether an expression of SPDX is allowed: of each part between AND, one of the parts between OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let parts = expression.split(" AND ");
    let choices = |part: &str| part.trim_matches(['(', ')']).replace('/', " OR ");
    !expression.is_empty()
        && parts.into_iter().all(|part| choices(part).split(" OR ").any(|choice| allowed.contains(choice.trim())))
}

#[test]
fn every_crate_has_an_allowed_licence_and_comes_from_crates_io() {
    let (allowed, shipped) = (allowed(), shipped());
    assert!(shipped.len() > 100 && allowed.len() > 5);
    for Shipped { name, version, licence, source } in shipped {
        assert!(
            is_allowed(&licence, &allowed),
            "{name} {version} has the licence {licence:?}, which deny.toml does not allow"
        );
        let is_ours = source.starts_with(&format!("({}/", root().display()));
        assert!(source.is_empty() || is_ours, "{name} {version} comes from {source}, and not from crates.io");
    }
    for (expression, is_sound) in [
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-2.0", false),
        ("GPL-2.0/MIT", true),
        ("AGPL-3.0", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), is_sound, "{expression:?}");
    }
}

#[test]
fn the_notices_name_every_crate_and_every_script_and_are_shipped() {
    let folder = scratch_folder();
    let status = Command::new(binary("manual")).arg("--into").arg(&folder).status().unwrap();
    assert!(status.success());
    let notices = std::fs::read_to_string(folder.join("doc/rocket-rides-log/THIRD-PARTY")).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let lines: BTreeSet<&str> = notices.lines().collect();
    // The lines above the texts name the crates that bring them.
    let rule = format!("\n{}\n", "=".repeat(80));
    let heads = notices.split(&rule).skip(1).map(|part| part.split('\n').next().unwrap());
    let with_text: BTreeSet<&str> = heads.flat_map(|head| head.split(", ")).collect();
    let mut without_text = BTreeSet::new();
    for Shipped { name, version, licence, source } in shipped() {
        if source.is_empty() {
            assert!(lines.contains(format!("{name} {version}: {licence}").as_str()), "{name} {version} is missing");
            if !with_text.contains(format!("{name} {version}").as_str()) {
                without_text.insert(name);
            }
        }
    }
    assert!(without_text.len() < 12, "these crates bring no text of their licence: {without_text:?}");
    assert!(with_text.contains("uPlot") && notices.contains("Copyright (c) 2022 Leon Sorokin"), "uPlot");
    assert!(notices.contains("Swagger UI (in the program api): Apache-2.0") && notices.contains("Apache License"));
    // Files of other authors that are in the tree are named too.
    let vendored = std::fs::read_dir(root().join("processes/dashboard/page/vendor")).unwrap();
    for file in vendored.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        assert!(notices.contains(file.split('-').next().unwrap()), "{file} is of another author");
    }
    let dockerfile = std::fs::read_to_string(root().join("ops/Dockerfile")).unwrap();
    for line in ["target/release/manual --into /out/share", "COPY --from=build /out/share/doc/ /usr/local/share/doc/"] {
        assert!(dockerfile.contains(line), "ops/Dockerfile has no {line}");
    }
}
