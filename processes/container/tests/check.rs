//! `container --check` as a person runs it: output, errors and exit status.

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

const VARIABLES: [(&str, &str); 4] = [
    ("CONTAINER_DATA", "/srv/container"),
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
    let lines = "resource manifests: POST /manifests up to 10.0 MiB to rows, photos, board, notices; \
                 GET /manifests/{ride_id} from rows\n\
                 destination board: board in Redis at localhost:6379 under container, 32 at once, time-out 2s\n\
                 destination notices: webhook at http://127.0.0.1:5009/notices, private addresses allowed, \
                 32 at once, time-out 5s\n\
                 destination photos: files in /srv/container/photos, takes photo, 32 at once, time-out 5s\n\
                 destination rows: rows in the table manifests, 16 at once, time-out 10s\n";
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
    let output = container(&["--config", path.to_str().unwrap()], &[]);

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
