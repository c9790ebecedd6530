//! Settings: one that is missing or wrong stops a process at once, with a line that names it and the fix; and each one is
//! documented.

use std::collections::{BTreeMap, BTreeSet};

use tests::{Process, binary, root, workspace_binaries};
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
            assert!(output.contains(setting), "{name} --help does not name {setting}:\n{output}");
        }
        start(name, &["--version"], &[]).succeed().await;
    }
}

/// A setting without its programs: variable, flag and default, each `-` if there is none.
type Setting = (String, String, String);

/// The text that `--help` of a program prints, or of a subcommand, such as `launcher up`.
fn help_of(program: &str) -> String {
    let mut words = program.split(' ');
    let mut command = std::process::Command::new(binary(words.next().unwrap()));
    let output = command.args(words).arg("--help").env_clear().output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{program} --help: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The settings that a text of `--help` names.
fn settings_in(help: &str) -> BTreeSet<Setting> {
    let between = |text: &str, start: &str| {
        text.split(start).nth(1).map_or("-".to_owned(), |rest| rest.split(['=', ']']).next().unwrap().to_owned())
    };
    let mut settings = BTreeSet::new();
    // An option begins on a line of its own: `--flag`, or `-h, --help`.
    let mut options: Vec<String> = Vec::new();
    for line in help.split("Options:").skip(1).flat_map(str::lines) {
        if line.trim_start().starts_with("--")
            || line.trim_start().get(2..).is_some_and(|rest| rest.starts_with(", --"))
        {
            options.push(String::new());
        }
        if let Some(option) = options.last_mut() {
            option.push_str(line);
        }
    }
    for option in options {
        let flag = option.split_whitespace().find(|word| word.starts_with("--")).unwrap().to_owned();
        if flag != "--help" && flag != "--version" {
            settings.insert((between(&option, "[env: "), flag, between(&option, "[default: ")));
        }
    }
    settings
}

/// The subcommands that a text of `--help` names.
fn subcommands_in(help: &str) -> Vec<&str> {
    let lines = help.split("Commands:").nth(1).map(|rest| rest.trim_start_matches('\n').lines());
    let words = lines.into_iter().flatten().take_while(|line| !line.is_empty());
    words
        .filter_map(|line| {
            line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty() && *word != "help")
        })
        .collect()
}

/// Every setting of every binary and of its subcommands, with the programs that have it.
fn all_settings() -> BTreeMap<Setting, BTreeSet<String>> {
    let mut all: BTreeMap<Setting, BTreeSet<String>> = BTreeMap::new();
    for name in workspace_binaries().into_keys() {
        let help = help_of(&name);
        let own = settings_in(&help);
        for subcommand in subcommands_in(&help) {
            let program = format!("{name} {subcommand}");
            for setting in settings_in(&help_of(&program)).difference(&own) {
                all.entry(setting.clone()).or_default().insert(program.clone());
            }
        }
        for setting in own {
            all.entry(setting).or_default().insert(name.clone());
        }
    }
    all
}

/// The programs of the Procfile.
fn processes() -> BTreeSet<String> {
    let procfile = std::fs::read_to_string(root().join("Procfile")).unwrap();
    let entries = launcher::parse_procfile(&procfile).unwrap();
    let program = |command: &str| command.split_whitespace().next().unwrap().rsplit('/').next().unwrap().to_owned();
    entries.iter().map(|entry| program(&entry.command)).collect()
}

/// The first table of docs/CONFIGURATION.md.
fn documented_settings() -> BTreeMap<Setting, BTreeSet<String>> {
    let page = std::fs::read_to_string(root().join("docs/CONFIGURATION.md")).unwrap();
    let mut table: BTreeMap<Setting, BTreeSet<String>> = BTreeMap::new();
    for row in
        page.lines().skip_while(|line| !line.starts_with("| --- ")).skip(1).take_while(|line| line.starts_with('|'))
    {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, variable, flag, programs, default, meaning, _] = cells[..] else { panic!("not five columns: {row}") };
        assert!(!meaning.is_empty(), "{flag} has no meaning");
        let named = programs.split(", ").flat_map(|program| match program {
            "every process" => processes(),
            program => BTreeSet::from([program.to_owned()]),
        });
        let setting = (variable.to_owned(), flag.to_owned(), default.to_owned());
        let known = table.entry(setting).or_default();
        for program in named {
            assert!(known.insert(program), "{variable} {flag} stands there twice: {row}");
        }
    }
    table
}

#[test]
fn every_setting_is_in_the_table_and_nothing_else() {
    let (all, documented) = (all_settings(), documented_settings());
    for (setting @ (variable, flag, default), programs) in &all {
        let row = documented.get(setting);
        assert_eq!(row, Some(programs), "docs/CONFIGURATION.md: {variable} {flag}, default {default}, of {programs:?}");
    }
    for setting in documented.keys() {
        assert!(all.contains_key(setting), "docs/CONFIGURATION.md names {setting:?}, and no --help does");
    }
}

#[test]
fn every_setting_is_in_the_example_file() {
    let example = std::fs::read_to_string(root().join(".env.example")).unwrap();
    for ((variable, ..), programs) in all_settings() {
        let is_there = variable == "-" || example.lines().any(|line| line.starts_with(&format!("#{variable}=")));
        assert!(is_there, ".env.example does not name {variable} ({programs:?})");
    }
}

#[tokio::test]
async fn without_a_fault_rate_nothing_is_injected() {
    let output = start("streamer", &["--help"], &[]).succeed().await;
    let fault_rate = output.split("--fault-rate").nth(1).unwrap();
    assert!(fault_rate.contains("[default: 0]"), "{fault_rate}");
}
