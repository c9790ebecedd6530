//! Settings that are missing or wrong stop a process at once, with a line that names them and the fix.

use tests::{Process, binary};
use tokio::process::Command;

fn start(name: &str, args: &[&str], environment: &[(&str, &str)]) -> Process {
    let mut command = Command::new(binary(name));
    command.args(args).env_clear().envs(environment.iter().copied());
    Process::spawn(name, command)
}

const POSTGRES: (&str, &str) = ("DATABASE_URL", "postgres://localhost/x");
const REDIS: (&str, &str) = ("REDIS_URL", "redis://localhost:1");

#[tokio::test]
async fn a_missing_setting_is_named_with_the_fix() {
    for (name, args, environment, line) in [
        ("api", &[][..], &[][..], "need DATABASE_URL: set it in the environment or pass --database-url"),
        ("streamer", &[], &[REDIS], "need DATABASE_URL: "),
        ("streamer", &[], &[POSTGRES], "need REDIS_URL: set it in the environment or pass --redis-url"),
        ("consumer", &["consumer0"], &[POSTGRES], "need REDIS_URL: "),
        ("consumer", &[], &[POSTGRES, REDIS], "need NAME: pass it as the first argument"),
        ("reaper", &[], &[POSTGRES], "need REDIS_URL: "),
        ("audit", &[], &[REDIS], "need DATABASE_URL: "),
        ("dead-letters", &["list"], &[], "need DATABASE_URL: "),
    ] {
        let output = start(name, args, environment).fail(2).await;
        assert!(output.starts_with(line), "{name}: {output}");
        assert_eq!(output.lines().count(), 1, "{name}: {output}");
    }
}

#[tokio::test]
async fn a_bad_setting_is_named_with_what_is_wanted() {
    for (name, args, environment, line) in [
        ("api", &[][..], &[POSTGRES, ("API_PORT", "banana")][..], "bad API_PORT \"banana\": "),
        ("api", &["--api-port", "70000"], &[POSTGRES], "bad API_PORT \"70000\": "),
        (
            "api",
            &[],
            &[POSTGRES, ("API_CORS_ORIGINS", "a.example")],
            "bad API_CORS_ORIGINS \"a.example\": a.example is no origin: give scheme, host and port only",
        ),
        ("streamer", &[], &[POSTGRES, REDIS, ("FAULT_RATE", "7")], "bad FAULT_RATE \"7\": give a probability"),
        ("streamer", &[], &[POSTGRES, REDIS, ("FAULT_SEED", "x")], "bad FAULT_SEED \"x\": "),
        ("streamer", &[], &[POSTGRES, ("REDIS_URL", "http://localhost")], "bad REDIS_URL: give a URL such as redis://"),
        ("streamer", &[], &[("DATABASE_URL", "postgres://u:secret@h:x/"), REDIS], "bad DATABASE_URL: "),
        ("consumer", &[""], &[POSTGRES, REDIS], "bad NAME \"\": give a name"),
        ("consumer", &["baseline"], &[POSTGRES, REDIS], "bad NAME \"baseline\": the reaper keeps its own state"),
        (
            "streamer",
            &[],
            &[POSTGRES, ("REDIS_URL", "rediss://:secret@h:x/")],
            "bad REDIS_URL: give a URL such as redis://",
        ),
        ("api", &[], &[POSTGRES, ("TLS_CA_FILE", "/nowhere")], "bad TLS_CA_FILE \"/nowhere\": No such file"),
        (
            "streamer",
            &[],
            &[POSTGRES, REDIS, ("TLS_CA_FILE", "/dev/null")],
            "bad TLS_CA_FILE \"/dev/null\": it holds no",
        ),
        ("reaper", &[], &[POSTGRES, REDIS, ("RUST_LOG", "info,=x=")], "bad RUST_LOG \"info,=x=\": "),
        (
            "consumer",
            &["c0"],
            &[POSTGRES, REDIS, ("OTEL_EXPORTER_OTLP_ENDPOINT", "u:secret@localhost:4317")],
            "bad OTEL_EXPORTER_OTLP_ENDPOINT: give a URL such as http://",
        ),
        ("simulator", &["--rate", "fast"], &[], "bad RATE \"fast\": give rides per second"),
    ] {
        let output = start(name, args, environment).fail(2).await;
        assert!(output.starts_with(line), "{name}: {output}");
        assert!(!output.contains("secret"), "{name}: {output}");
    }
}

#[tokio::test]
async fn help_lists_every_setting() {
    for (name, settings) in [
        ("api", &["--database-url", "DATABASE_URL", "--api-port", "API_PORT", "API_CORS_ORIGINS"][..]),
        ("streamer", &["DATABASE_URL", "REDIS_URL", "STREAM_NAME", "FAULT_RATE", "FAULT_SEED", "--drain"]),
        ("consumer", &["<NAME>", "DATABASE_URL", "REDIS_URL", "STREAM_NAME", "FAULT_RATE", "FAULT_SEED", "--drain"]),
        ("simulator", &["--rate", "--concurrency", "--count", "--duration", "--seed", "API_PORT"]),
        ("reaper", &["--keep", "--stream-len-max", "DATABASE_URL"]),
        ("launcher", &["up", "with-servers"]),
        ("audit", &["--all-partitions", "--no-stream", "--json", "DATABASE_URL", "REDIS_URL"]),
        ("dead-letters", &["list", "show", "replay", "drop", "DATABASE_URL"]),
    ] {
        let output = start(name, &["--help"], &[]).succeed().await;
        for setting in settings {
            assert!(output.contains(setting), "{name} --help does not tell of {setting}:\n{output}");
        }
        start(name, &["--version"], &[]).succeed().await;
    }
}

#[tokio::test]
async fn every_setting_is_in_the_example_file() {
    let root = tests::root();
    let example = std::fs::read_to_string(root.join(".env.example")).unwrap();
    for name in [
        "api",
        "completer",
        "streamer",
        "consumer",
        "receipts",
        "simulator",
        "reaper",
        "payments",
        "audit",
        "dead-letters",
    ] {
        let help = start(name, &["--help"], &[]).succeed().await;
        for setting in help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap()) {
            assert!(example.contains(&format!("{setting}=")), ".env.example does not tell of {setting} ({name})");
        }
    }
}

#[tokio::test]
async fn without_a_fault_rate_nothing_is_injected() {
    let output = start("streamer", &["--help"], &[]).succeed().await;
    let fault_rate = output.split("--fault-rate").nth(1).unwrap();
    assert!(fault_rate.contains("[default: 0]"), "{fault_rate}");
}
