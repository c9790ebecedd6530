//! The shipped files: binaries without foreign libraries, and a compose file that fits the binaries.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Map, Value};
use tests::{Help, PrivatePostgres, Process, binary, python_program, root, workspace_binaries};

fn printed_by(command: &mut Command) -> String {
    let output = command.env_remove("DATABASE_URL").env_remove("REDIS_URL").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn every_binary_tells_its_version_and_its_flags() {
    for name in workspace_binaries().keys() {
        let version = printed_by(Command::new(binary(name)).arg("--version"));
        assert_eq!(version, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
        let help = printed_by(Command::new(binary(name)).arg("--help"));
        let usage = format!("Usage: {name}");
        assert!(help.contains(&usage) && help.contains("--version"), "{name}: {help}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn every_binary_needs_no_library_but_those_of_c() {
    let known = ["linux-vdso.", "libc.", "libm.", "libgcc_s.", "/lib/ld-linux", "/lib64/ld-linux"];
    for name in workspace_binaries().keys() {
        let libraries = printed_by(Command::new("ldd").arg(binary(name)));
        for library in libraries.lines().map(str::trim) {
            assert!(known.iter().any(|known| library.starts_with(known)), "{name} needs {library}");
        }
    }
}

/// All services of compose.yaml, and those that run our own binaries.
fn compose() -> (Map<String, Value>, Vec<(String, Value)>) {
    let to_json = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))";
    let file = std::fs::File::open(root().join("ops/compose.yaml")).unwrap();
    let text = printed_by(Command::new(python_program("python")).args(["-c", to_json]).stdin(file));
    let compose: Value = serde_json::from_str(&text).unwrap();
    let services = compose["services"].as_object().unwrap().clone();
    let ours = services.iter().filter(|(_, service)| service["build"]["dockerfile"] == "ops/Dockerfile");
    let ours = ours.map(|(name, service)| (name.clone(), service.clone())).collect();
    (services, ours)
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_service_of_compose_is_a_binary_with_flags_and_variables_that_it_has() {
    let binaries = workspace_binaries();
    let example = std::fs::read_to_string(root().join(".env.example")).unwrap();
    let declaration = std::fs::read_to_string(root().join("ops/container.toml")).unwrap();
    let (_, ours) = compose();
    for (service, settings) in &ours {
        let command = words(&settings["command"]);
        assert!(binaries.contains_key(&command[0]), "{service}: there is no binary {}", command[0]);
        let own_words = if service == "notices" { 2 } else { 1 };
        let help = Help::of(&command[..own_words].join(" "));
        for flag in command.iter().filter(|word| word.starts_with("--")) {
            assert!(help.flags.contains(flag), "{service}: {} has no flag {flag}", command[0]);
        }
        let none = Map::new();
        for variable in settings["environment"].as_object().unwrap_or(&none).keys() {
            let is_declared = service == "container"
                && [format!("\"{variable}\""), format!("${{{variable}}}")]
                    .iter()
                    .any(|name| declaration.contains(name));
            assert!(
                is_declared || help.variables.contains(variable),
                "{service}: {} does not read {variable}",
                command[0]
            );
            assert!(example.contains(&format!("#{variable}=")), ".env.example does not tell of {variable}");
        }
    }
}

#[test]
fn compose_runs_every_process_of_the_procfile_and_waits_for_whom_it_needs() {
    let procfile = std::fs::read_to_string(root().join("Procfile")).unwrap();
    let entries = launcher::parse_procfile(&procfile).unwrap();
    let (services, ours) = compose();
    let names: BTreeSet<&str> = ours.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, entries.iter().map(|entry| entry.name.as_str()).collect());
    for entry in &entries {
        let program = entry.command.split_whitespace().next().unwrap().rsplit('/').next().unwrap();
        assert_eq!(services[&entry.name]["command"][0], program);
    }
    for (name, service) in &services {
        let none = Map::new();
        let waits = service["depends_on"].as_object().unwrap_or(&none);
        for (other, how) in waits {
            let has_check = services[other]["healthcheck"].is_object();
            let wanted = match other.as_str() {
                "schema" => "service_completed_successfully",
                _ if has_check => "service_healthy",
                _ => "service_started",
            };
            assert_eq!(how["condition"], wanted, "{name} waits for {other}");
        }
        let needs = |variable: &str| service["environment"][variable].is_string();
        assert!(!needs("DATABASE_URL") || waits.contains_key("schema"), "{name} does not wait for the tables");
        assert!(!needs("REDIS_URL") || waits.contains_key("redis"), "{name} does not wait for redis");
    }
}

/// Runs the job of compose.yaml with the same files.
#[tokio::test]
async fn the_job_of_compose_makes_tables_and_roles_with_passwords() {
    let postgres = PrivatePostgres::start().await;
    let url = postgres.url();
    let psql = launcher::find_postgres().unwrap().folder.join("psql");
    let (services, _) = compose();
    let job = &services["schema"];
    for _ in 0..2 {
        let mut command = tokio::process::Command::new(&psql);
        command.env("ROLE_PASSWORD", "it's 1 secret");
        command.arg(&url).args(&words(&job["entrypoint"])[1..]);
        // The volumes map each path: `./schema.sql:/sql/schema.sql:ro`.
        let mounted = words(&job["volumes"]);
        for word in words(&job["command"]) {
            let source = mounted.iter().find_map(|volume| volume.split_once(&format!(":{word}:")));
            command.arg(source.map_or(word.clone().into(), |(file, _)| root().join("ops").join(file)));
        }
        Process::spawn("psql", command).succeed().await;
    }
    let client = postgres.connect("postgres").await;
    let without = "SELECT count(*) FROM pg_authid WHERE rolname LIKE 'rocket\\_%' AND rolpassword IS NULL";
    let roles = "SELECT count(*) FROM pg_authid WHERE rolname LIKE 'rocket\\_%'";
    let role_count = tests::roles().len() as i64;
    assert!(role_count > 7, "{role_count}");
    for (query, count) in [(without, 0_i64), (roles, role_count), ("SELECT count(*) FROM rides", 0)] {
        assert_eq!(client.query_one(query, &[]).await.unwrap().get::<_, i64>(0), count, "{query}");
    }
}

#[test]
fn the_image_is_built_of_packages_that_there_are() {
    let dockerfile = std::fs::read_to_string(root().join("ops/Dockerfile")).unwrap();
    let toolchain = std::fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let version = toolchain.split("channel = \"").nth(1).unwrap().split('"').next().unwrap();
    assert!(dockerfile.contains(&format!("FROM rust:{version}-")), "the image is built with another Rust");
    let binaries = workspace_binaries();
    let mut left_out: Vec<&str> =
        dockerfile.split("--exclude ").skip(1).map(|rest| rest.split(' ').next().unwrap()).collect();
    left_out.retain(|package| *package != "tests");
    let packages: BTreeSet<&str> = binaries.values().map(String::as_str).collect();
    assert!(!left_out.is_empty() && left_out.iter().all(|package| packages.contains(package)), "{left_out:?}");
    for (_, service) in compose().1 {
        let package = &binaries[service["command"][0].as_str().unwrap()];
        assert!(!left_out.contains(&package.as_str()), "compose runs {package}, which is not in the image");
    }
}
