//! Settings: one that is missing or wrong stops a process at once, with a line that names it and the fix; and each one is
//! documented.

use std::collections::{BTreeMap, BTreeSet};

use tests::{Process, World, binary, root, wait_until, workspace_binaries};
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
        ("simulator", &["--rate", "fast"], &[], "bad --rate \"fast\": give rides per second"),
    ] {
        let output = start(name, args, environment).fail(2).await;
        assert!(output.starts_with(line), "{name}: {output}");
        assert!(!output.contains("secret"), "{name}: {output}");
    }
}

#[tokio::test]
async fn a_value_that_a_file_or_a_service_has_spoiled_is_refused_by_its_name() {
    for (name, args, environment, line) in [
        ("reaper", &[][..], &[POSTGRES, REDIS, ("REAPER_KEEP", "banana")][..], "bad REAPER_KEEP \"banana\": "),
        (
            "streamer",
            &[],
            &[POSTGRES, REDIS, ("FAULT_ORDERS", "yes")],
            "bad FAULT_ORDERS \"yes\": give one of true, false",
        ),
        ("streamer", &[], &[REDIS, ("DATABASE_URL", "")], "need DATABASE_URL: "),
        ("streamer", &[], &[POSTGRES, REDIS, ("STREAM_NAME", "rides\r")], "bad STREAM_NAME: it ends with a line end"),
        ("streamer", &[], &[POSTGRES, REDIS, ("STREAM_NAME", "'rides'")], "bad STREAM_NAME: it is in quotes"),
        (
            "streamer",
            &[],
            &[POSTGRES, REDIS, ("STREAM_NAME", " rides")],
            "bad STREAM_NAME: it begins or ends with a blank",
        ),
        (
            "streamer",
            &[],
            &[REDIS, ("DATABASE_URL", "postgres://u:secret@h/d?sslrootcert=ca.pem")],
            "bad DATABASE_URL: it has the parameter sslrootcert: set TLS_CA_FILE",
        ),
        ("streamer", &[], &[POSTGRES, ("REDIS_URL", "rediss://:secret@h/#insecure")], "bad REDIS_URL: "),
        ("completer", &[], &[POSTGRES], "need STRIPE_API_KEY: set it in the environment or pass --stripe-api-key"),
        ("completer", &[], &[POSTGRES, ("STRIPE_API_KEY", "sk_ secret")], "bad STRIPE_API_KEY: give the key"),
        (
            "receipts",
            &["r"],
            &[POSTGRES, REDIS, ("RECEIPTS_DIR", "a"), ("RECEIPTS_SMTP_URL", "smtp://b")],
            "bad RECEIPTS_DIR: RECEIPTS_SMTP_URL is given too",
        ),
    ] {
        let output = start(name, args, environment).fail(2).await;
        assert!(output.starts_with(line), "{name}: {output}");
        assert!(!output.contains("secret"), "{name}: {output}");
    }
    // `receipts r --unregister` needs neither, so this is found when the settings are used.
    let output = start("receipts", &["r"], &[POSTGRES, REDIS]).fail(2).await;
    assert!(output.contains(" stopped: need RECEIPTS_DIR or RECEIPTS_SMTP_URL: set one"), "{output}");
}

/// A value that no setting can have, except the settings that are any text.
const BAD: &str = "= no such value =";

/// The settings that are any text: names, folders, and lists that the program compares with what it finds.
const ANY_TEXT: [&str; 16] = [
    "STREAM_NAME",
    "RECEIPTS_DIR",
    "PAYMENTS_DATA",
    "CONTAINER_CONFIG",
    "CONTAINER_SPOOL",
    "NOTICES_DATA",
    "DATA_DIR",
    "--procfile",
    "--data",
    "--results",
    "--into",
    "--name",
    "--only",
    "--without",
    "--fold",
    "--copy-from",
];

/// Whether a text of `--help` shows the flag with a value.
fn takes_a_value(help: &str, flag: &str) -> bool {
    help.lines().any(|line| line.split(", ").any(|part| part.trim_start().starts_with(&format!("{flag} <"))))
}

#[tokio::test]
async fn every_setting_that_is_refused_is_named_as_it_is_set_with_the_fault_and_the_fix() {
    let mut refused_count = 0;
    for ((variable, flag, _), programs) in all_settings() {
        let name = if variable == "-" { &flag } else { &variable };
        for program in programs {
            let help = help_of(&program);
            let words: Vec<&str> = program.split(' ').collect();
            if takes_a_value(&help, &flag) {
                // The last argument keeps a program from starting that takes the value.
                let bad = format!("{flag}={BAD}");
                let output = start(words[0], &[&words[1..], &[&bad, "--no-such-flag"]].concat(), &[]).fail(2).await;
                if output.contains("unexpected argument '--no-such-flag'") {
                    assert!(ANY_TEXT.contains(&name.as_str()), "{program} takes any text as {flag}");
                    continue;
                }
                assert_refusal(&output, name, &format!("{program} {flag}"));
            }
            if variable != "-" {
                let set = (variable.as_str(), BAD);
                let others = [POSTGRES, REDIS].into_iter().filter(|(other, _)| *other != variable);
                let environment: Vec<_> = others.chain([set]).collect();
                let output = start(words[0], &words[1..], &environment).fail(2).await;
                assert_refusal(&output, name, &format!("{program} {variable}"));
                refused_count += 1;
            }
        }
    }
    assert!(refused_count > 100, "{refused_count}");
}

fn assert_refusal(output: &str, name: &str, case: &str) {
    assert!(output.starts_with(&format!("bad {name}")), "{case}: {output}");
    assert!(output.contains("give ") && output.lines().count() == 1, "{case}: {output}");
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
        ("audit", &["--partitions", "--no-stream", "--json", "DATABASE_URL", "REDIS_URL"]),
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
    let world = World::new().await;
    let mut streamer = Process::start(&world, "streamer", &[]);
    let consumer = Process::start(&world, "consumer", &["consumer0"]);
    streamer.wait_until_publishing(1).await;
    // Each ride is in a batch of its own. With the rate of the Procfile, 100 batches without a fault are one case in 30,000.
    for count in 1..=100 {
        world.write_rides(1).await;
        wait_until("the ride is folded", async || {
            world.number(&format!("SELECT count(*) FROM checkpoints WHERE last_offset = {count}")).await == 1
        })
        .await;
    }
    wait_until("all rides are in the stream", async || world.stream_len().await >= 100).await;
    assert_eq!(world.stream_len().await, 100, "a record was sent twice");
    // A record that was read from Postgres before the streamer had published it comes once more, out of the stream.
    assert_eq!(world.number("SELECT crash_count FROM checkpoints").await, 0);
    assert_eq!(world.number("SELECT greatest(duplicate_count - healed_count, 0) FROM checkpoints").await, 0);
    for process in [streamer, consumer] {
        process.stop().await;
    }
}
