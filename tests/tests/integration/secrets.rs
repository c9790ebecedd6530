//! No process prints a password, at any level of logging, whatever fails.

use tests::{Process, TlsServers, World, binary};
use tokio::process::Command;

const WRONG_POSTGRES_PASSWORD: &str = "weasel93";
const WRONG_REDIS_PASSWORD: &str = "stoat84";

/// Runs a process with RUST_LOG=trace until it logs `trouble`. Returns its output.
async fn complaint(world: &World, name: &str, urls: (&str, &str), ca_file: &str, trouble: &str) -> String {
    let args = match name {
        "api" => &["--api-port", "0"][..],
        "consumer" => &["consumer0"],
        _ => &[],
    };
    let mut command = Command::new(binary(name));
    command.args(args).env_clear().env("STREAM_NAME", world.stream_name()).env("RUST_LOG", "trace");
    command.env("DATABASE_URL", urls.0).env("REDIS_URL", urls.1).env("TLS_CA_FILE", ca_file);
    let mut process = Process::spawn(name, command);
    if name == "api" {
        process.wait_for("api started").await;
        let output = process.output();
        let address = output.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
        for path in ["rides", "totals"] {
            let status = reqwest::get(format!("http://{address}/{path}")).await.unwrap().status();
            assert_eq!(status.as_u16(), 503, "{path}");
        }
        let request = reqwest::Client::new().post(format!("http://{address}/rides")).body("{\"distance\":1}");
        let answer = request.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 503);
        assert_no_password(&answer.text().await.unwrap());
    }
    process.wait_for(trouble).await;
    let output = process.output();
    assert_no_password(&output);
    output
}

fn assert_no_password(output: &str) {
    let right = [TlsServers::POSTGRES_PASSWORD, TlsServers::REDIS_PASSWORD];
    for password in [WRONG_POSTGRES_PASSWORD, WRONG_REDIS_PASSWORD].iter().chain(&right) {
        assert!(!output.contains(password), "a password is printed:\n{output}");
    }
}

#[tokio::test]
async fn no_password_is_printed_when_a_server_refuses_it_or_is_away() {
    let servers = TlsServers::start().await;
    let world = servers.world().await;
    let ca_file = servers.ca_file().to_str().unwrap();
    let wrong_redis = servers.redis_url("", WRONG_REDIS_PASSWORD);
    let away_redis = format!("redis://:{WRONG_REDIS_PASSWORD}@127.0.0.1:1");
    for name in ["api", "streamer", "consumer", "reaper"] {
        let user = format!("rocket_{name}:{WRONG_POSTGRES_PASSWORD}");
        let wrong = servers.database_url("localhost", &world, &user, "sslmode=require");
        let trouble = "password authentication failed";
        complaint(&world, name, (&wrong, &wrong_redis), ca_file, trouble).await;
        let away = format!("postgres://{user}@127.0.0.1:1/x");
        complaint(&world, name, (&away, &away_redis), "", "connecting to Postgres").await;
    }
    for name in ["streamer", "consumer", "reaper"] {
        let right = servers.database_url_of(&world, name);
        complaint(&world, name, (&right, &wrong_redis), ca_file, "connecting to Redis: Password").await;
        complaint(&world, name, (&right, &away_redis), ca_file, "connecting to Redis").await;
    }
}
