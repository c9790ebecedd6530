//! `container --check` as a person runs it: output, errors and exit status.

// A test fails by a panic, so it may use unwrap.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Runs the program without the variables of the person who runs the test.
fn container(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_container"));
    command.args(args).env_clear().envs(variables.iter().copied());
    command.output().expect("starting the container")
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ops/container.toml")
}

/// The number of the only line of the demo that begins with `start`.
fn line_of(start: &str) -> usize {
    let text = std::fs::read_to_string(demo()).expect("reading the demo");
    text.lines().position(|line| line.starts_with(start)).expect(start) + 1
}

/// A folder that may be made.
const DATA: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/container");

const VARIABLES: [(&str, &str); 4] = [
    ("CONTAINER_DATA", DATA),
    ("REDIS_URL", "redis://:hidden-password@localhost:6379"),
    ("NOTICES_PORT", "5009"),
    ("NOTICES_SECRET", SECRET),
];

#[test]
fn the_demo_passes_with_one_line_per_resource_and_destination() {
    let path = demo();
    let mut variables = VARIABLES.to_vec();
    variables.push(("CONTAINER_CONFIG", path.to_str().unwrap()));
    let output = container(&["--check"], &variables);

    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = format!(
        "resource manifests: POST /manifests up to 10.0 MiB to rows, photos, board, notices; \
                 GET /manifests/{{ride_id}} from rows\n\
                 destination board: board in Redis at localhost:6379 under container, 32 at once, time-out 2s\n\
                 destination notices: webhook at http://127.0.0.1:5009/notices, private addresses allowed, \
                 32 at once, time-out 5s\n\
                 destination photos: files in {DATA}/photos, takes photo, 32 at once, time-out 5s\n\
                 destination rows: rows in the table manifests, 16 at once, time-out 10s\n"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), lines);
}

#[test]
fn each_fault_is_a_line_of_its_own_and_the_status_is_2() {
    let path = demo();
    let path = path.to_str().unwrap();
    let output = container(&["--config", path, "--check"], &VARIABLES[..1]);

    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
    let lines = format!(
        "{path}:{}: the variable REDIS_URL is not set: set it in the environment\n\
         {path}:{}: the variable NOTICES_PORT is not set: set it in the environment\n\
         {path}:{}: the variable NOTICES_SECRET is not set: set it in the environment\n",
        line_of("redis = "),
        line_of("url = "),
        line_of("secret = ")
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), lines);
}

#[test]
fn a_process_with_a_fault_in_its_declaration_stays_down() {
    let path = demo();
    let database = ("DATABASE_URL", "postgres://localhost/none");
    let output = container(&["--config", path.to_str().unwrap()], &[database]);

    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let log = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let fault = format!("container.toml:{}: the variable CONTAINER_DATA is not set", line_of("folder = "));
    assert!(log.contains(&fault), "{log}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let output = container(&["--config", "/missing/container.toml", "--check"], &[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.starts_with("/missing/container.toml: it cannot be read (No such file"), "{told}");

    let output = container(&["--config", env!("CARGO_BIN_EXE_container"), "--check"], &[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("it is longer than 1048576 bytes") && output.status.code() == Some(2), "{told}");

    let output = container(&["--check"], &[]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("need CONTAINER_CONFIG: ") && output.status.code() == Some(2), "{told}");
}

#[test]
fn a_file_in_another_encoding_is_refused_with_the_line() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("latin1.toml");
    std::fs::write(&path, b"# one\n# Z\xfcrich\n").unwrap();
    let path = path.to_str().unwrap();
    let output = container(&["--config", path, "--check"], &[]);

    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told, format!("{path}:2: this is no UTF-8: save the file in UTF-8\n"));
}

/// Writes the demo, with `new` in place of `old`, and returns its path and the line of `new`.
fn demo_with(name: &str, old: &str, new: &str) -> (String, usize) {
    let text = std::fs::read_to_string(demo()).unwrap();
    assert_eq!(text.matches(old).count(), 1, "{old}");
    let text = text.replace(old, new);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, &text).unwrap();
    (path.to_str().unwrap().to_owned(), text.lines().position(|line| line.contains(new)).unwrap() + 1)
}

/// The complaint of `--check`, and of a start.
fn complaint(path: &str, variables: &[(&str, &str)]) -> String {
    let output = container(&["--config", path, "--check"], variables);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_private_address_is_refused_unless_it_is_allowed() {
    let (path, _) = demo_with("private.toml", "allow_private = true", "allow_private = false");
    let line = line_of("url = ");
    let fault = "`url` cannot be used: the address is private: give a public one, or set allow_private = true";
    assert_eq!(complaint(&path, &VARIABLES), format!("{path}:{line}: {fault}\n"));
}

#[test]
fn a_folder_that_cannot_be_used_is_refused_and_nothing_is_made() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("a-file");
    std::fs::write(&file, "").unwrap();
    let (file, path) = (file.to_str().unwrap(), demo());
    let path = path.to_str().unwrap();
    let with = |folder| {
        let mut variables = VARIABLES;
        variables[0].1 = folder;
        variables
    };
    let line = line_of("folder = ");
    let told = complaint(path, &with(file));
    assert_eq!(told, format!("{path}:{line}: `folder` cannot be used: {file} is no folder: give another path\n"));
    // No user may write there.
    let told = complaint(path, &with("/proc/1"));
    assert!(
        told.starts_with(&format!("{path}:{line}: `folder` cannot be used: /proc/1 cannot be written (")),
        "{told}"
    );
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("not-made");
    let output = container(&["--config", path, "--check"], &with(made.to_str().unwrap()));
    assert_eq!((output.status.code(), made.exists()), (Some(0), false), "{output:?}");
}

#[test]
fn a_secret_that_cannot_be_parsed_is_refused_and_not_shown() {
    let path = demo();
    let path = path.to_str().unwrap();
    for secret in ["whsec_c2hvcnQ=", "whsec_hidden, and no base64 at all"] {
        let mut variables = VARIABLES;
        variables[3].1 = secret;
        let told = complaint(path, &variables);
        let fault = "NOTICES_SECRET is no secret of a webhook: give whsec_ and 24 to 64 random bytes in base64";
        assert!(told.starts_with(&format!("{path}:{}: {fault}", line_of("secret = "))), "{told}");
        assert!(!told.contains(secret), "{told}");
    }
}
