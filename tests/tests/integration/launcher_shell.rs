//! `bin/up` in a shell that has variables for other work, and a shell beside `bin/up`.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use tests::{Payments, Process, World, binary, root, wait_until};
use tokio::process::Command;

use crate::api::Api;
use crate::launcher::UpFolder;

/// Variables that lead to servers and accounts that are not the demo's. Nothing listens on port 1.
const ELSEWHERE: [(&str, &str); 13] = [
    ("DATABASE_URL", "postgres://elsewhere@127.0.0.1:1/elsewhere"),
    ("STANDBY_DATABASE_URL", "postgres://elsewhere@127.0.0.1:1/elsewhere"),
    ("STATE_DATABASE_URL", "postgres://elsewhere@127.0.0.1:1/elsewhere"),
    ("REDIS_URL", "redis://127.0.0.1:1/"),
    ("WALLETS_REDIS_URL", "redis://127.0.0.1:1/"),
    ("STRIPE_API_KEY", "sk_live_elsewhere"),
    ("STRIPE_API_BASE", "https://elsewhere.example"),
    ("RECEIPTS_SMTP_URL", "smtp://elsewhere.example"),
    ("CONTAINER_SPOOL", "s3://elsewhere/spool"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere.example:4318"),
    ("http_proxy", "http://127.0.0.1:1/elsewhere"),
    ("PGPORT", "1"),
    ("PGHOST", "elsewhere.example"),
];

fn environment_of(pid: nix::unistd::Pid) -> String {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    format!("\n{}", String::from_utf8_lossy(&environment).replace('\0', "\n"))
}

#[tokio::test]
async fn the_demo_reaches_nothing_that_it_has_not_started() {
    let folder = UpFolder::with_rate(5).await;
    let mut up = folder.up(&ELSEWHERE);
    up.wait_for("CONVERGED").await;
    up.wait_for(
        "not used  CONTAINER_SPOOL, DATABASE_URL, OTEL_EXPORTER_OTLP_ENDPOINT, RECEIPTS_SMTP_URL, REDIS_URL, STANDBY_DATABASE_URL, \
         STATE_DATABASE_URL, STRIPE_API_BASE, STRIPE_API_KEY, WALLETS_REDIS_URL: ",
    )
    .await;
    // The servers overwrite theirs, and a consumer may just have crashed.
    let environments: Vec<String> = folder.pids_of(8).await.into_iter().map(environment_of).collect();
    assert!(environments.iter().filter(|environment| environment.contains("\nPATH=")).count() >= 4);
    for environment in environments {
        assert!(!environment.contains("elsewhere") && !environment.contains("127.0.0.1:1/"), "{environment}");
    }
    up.signal(Signal::SIGTERM);
    assert!(up.ended().await.success(), "{}", up.output());
}

#[tokio::test]
async fn a_server_is_used_if_a_word_says_so_and_the_banner_names_it() {
    let world = World::new().await;
    world.client().batch_execute("DELETE FROM users").await.unwrap();
    let folder = UpFolder::with_rate(5).await;
    let mut command =
        folder.up_command(&[("DATABASE_URL", world.database_url()), ("REDIS_URL", "redis://127.0.0.1:1/")]);
    command.args(["--use", "DATABASE_URL"]);
    let mut up = Process::spawn("launcher", command);
    up.wait_for("CONVERGED").await;
    let output = up.output();
    let database = world.database_name();
    for words in [
        &format!("database {database}. Tables and simulated rides go into it"),
        "  sql     YOURS: ",
        "  stream  private: redis-cli",
        "not used  REDIS_URL: ",
    ] {
        assert!(output.contains(words), "{words}: {output}");
    }
    let export = output.lines().find(|line| line.contains("export API_PORT=")).unwrap();
    assert!(!export.contains("DATABASE_URL"), "the URL may have a password: {export}");
    // One server and six processes.
    let pids = folder.pids_of(7).await;
    // The buttons of the page may damage a server, so there are none for a server of another owner.
    assert!(pids.into_iter().all(|pid| !environment_of(pid).contains("FAULT_ORDERS=true")));
    // An empty log has converged, too.
    wait_until("a ride is taken", async || world.sql_totals().await.0 > 0).await;
    assert_eq!(world.number("SELECT count(*) FROM users").await, 0, "a database of another owner gets no users");
    up.signal(Signal::SIGTERM);
    assert!(up.ended().await.success(), "{}", up.output());
    for (names, complaint) in [
        ("PATH", "bad --use \"PATH\": give variables that lead to servers"),
        ("REDIS_URL", "bad --use \"REDIS_URL\": this variable is not set"),
    ] {
        let mut command = folder.up_command(&[]);
        command.args(["--use", names]);
        let output = Process::spawn("launcher", command).fail(2).await;
        assert!(output.starts_with(complaint), "{output}");
    }
}

#[tokio::test]
async fn tests_are_run_without_the_settings_of_the_shell() {
    let folder = tests::scratch_folder();
    let mut command = Command::new(binary("launcher"));
    command.args(["with-servers", "--data"]).arg(folder.join("test")).args(["--", "env"]).envs(ELSEWHERE);
    command.envs([("API_PORT", "70000"), ("STREAM_NAME", "elsewhere"), ("FAULT_SEED", "7"), ("RUST_LOG", "elsewhere")]);
    let output = Process::spawn("launcher", command).succeed().await;
    assert!(!output.contains("elsewhere") && !output.contains("70000"), "{output}");
    assert!(output.contains("\nFAULT_SEED=7\n") || output.starts_with("FAULT_SEED=7\n"), "{output}");
    assert_eq!(output.lines().filter(|line| line.starts_with("DATABASE_URL=postgres://app@")).count(), 1);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn the_file_of_settings_is_read_in_the_form_that_it_has() {
    let folder = UpFolder::new().await;
    let mut command = folder.up_command(&[]);
    command.current_dir(folder.data().parent().unwrap()).env_remove("API_PORT");
    std::fs::write(folder.data().with_file_name(".env"), "# a comment\r\nexport API_PORT = \"a b\" # another\r\n")
        .unwrap();
    let output = Process::spawn("launcher", command).fail(2).await;
    assert!(output.starts_with("bad API_PORT \"a b\": invalid digit"), "{output}");
    let mut command = folder.up_command(&[]);
    command.current_dir(folder.data().parent().unwrap());
    std::fs::write(folder.data().with_file_name(".env"), "A=b\nSTRIPE_API_KEY=sk secret\n").unwrap();
    let output = Process::spawn("launcher", command).fail(2).await;
    assert!(output.starts_with(".env: line 2 is no setting: ") && !output.contains("secret"), "{output}");
}

/// The commands between backticks in README.md that speak to a running system.
fn commands_of_readme() -> BTreeSet<String> {
    let page = std::fs::read_to_string(root().join("README.md")).unwrap();
    let prose: String = page.split("```").step_by(2).collect();
    let spans = prose.split('`').skip(1).step_by(2);
    spans
        .filter(|span| ["curl ", "redis-cli "].iter().any(|start| span.starts_with(start)))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn the_commands_of_the_banner_and_of_readme_work_as_pasted() {
    let folder = UpFolder::with_rate(5).await;
    let mut up = folder.up(&[]);
    up.wait_for("CONVERGED").await;
    let output = up.output();
    let line_of = |start: &str| {
        let line = output.lines().find_map(|line| line.trim_start().strip_prefix(start));
        line.unwrap_or_else(|| panic!("{start}: {output}")).trim().to_owned()
    };
    let export = format!("export {}", line_of("export "));
    let mut commands = vec![
        line_of("ride "),
        line_of("wallet "),
        line_of("totals "),
        line_of("stream  private: "),
        format!("{} --command 'SELECT 1'", line_of("sql     private: ")),
        "psql \"$DATABASE_URL\" --command 'SELECT 1'".to_owned(),
        format!("'{}' --no-stream", binary("audit").display()),
    ];
    let readme = commands_of_readme();
    assert!(readme.len() >= 3, "{readme:?}");
    // At last, because one of them empties Redis.
    commands.extend(readme);
    for command in commands {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{export}\n{command}"));
        for name in ["DATABASE_URL", "REDIS_URL", "API_PORT"] {
            shell.env_remove(name);
        }
        let answer = Process::spawn("sh", shell).succeed().await;
        let is_refused = ["\"error\"", "ERR ", "Connection refused"].iter().any(|word| answer.contains(word));
        assert!(!is_refused && !answer.trim().is_empty(), "{command}: {answer}");
    }
    up.signal(Signal::SIGTERM);
    assert!(up.ended().await.success(), "{}", up.output());
}

#[tokio::test]
async fn the_simulator_says_for_which_api_it_waits_and_stops_booking_where_bookings_are_refused() {
    let (world, payments) = (World::new().await, Payments::start().await);
    world.client().batch_execute("DELETE FROM users").await.unwrap();
    let port = tests::free_port();
    let url = format!("http://127.0.0.1:{port}/");
    let flags = ["--api-url", &url, "--rate", "max", "--count", "30", "--booked", "1", "--seed", "7"];
    let mut simulator = Process::start(&world, "simulator", &flags);
    simulator.wait_for("waiting for the api").await;
    simulator.wait_for(&format!("base_url=\"http://127.0.0.1:{port}\"")).await;
    let port = port.to_string();
    let api = Process::start(&world, "api", &[&["--api-port", &port], &payments.flags()[..]].concat());
    simulator.wait_for("the api is ready").await;
    let output = simulator.succeed().await;
    assert!(output.contains("the api refuses bookings, so no more rides are booked"), "{output}");
    assert!(output.contains("sent 30, accepted 29, refused 1 "), "{output}");
    api.stop().await;
}

#[tokio::test]
async fn the_simulator_and_the_summary_do_not_ask_a_proxy() {
    let world = World::new().await;
    let api = Api::start(&world).await;
    let mut command = Command::new(binary("simulator"));
    command.args(["--api-port", &api.port().to_string(), "--rate", "max", "--count", "3"]);
    command.env("http_proxy", "http://127.0.0.1:1").env("ALL_PROXY", "http://127.0.0.1:1");
    let output = Process::spawn("simulator", command).succeed().await;
    assert!(output.contains("accepted 3, refused 0"), "{output}");
    wait_until("the rides are there", async || world.sql_totals().await.0 == 3).await;
}
