//! TLS to both servers: a process that asks for it gets it, and the server must prove its identity.

use std::path::Path;

use tests::{Process, TlsServers, World, binary, wait_until};
use tokio::process::Command;

/// Starts a process with these URLs and an otherwise empty environment.
fn start(world: &World, name: &str, args: &[&str], urls: (&str, &str), ca_file: Option<&Path>) -> Process {
    let mut command = Command::new(binary(name));
    command.args(args).env_clear().env("STREAM_NAME", world.stream_name());
    command.env("DATABASE_URL", urls.0).env("REDIS_URL", urls.1);
    if let Some(ca_file) = ca_file {
        command.env("TLS_CA_FILE", ca_file);
    }
    Process::spawn(name, command)
}

fn assert_no_password(output: &str) {
    for password in [TlsServers::POSTGRES_PASSWORD, TlsServers::REDIS_PASSWORD] {
        assert!(!output.contains(password), "a password is printed:\n{output}");
    }
}

/// Posts a ride to an api that was started with `--api-port 0`.
async fn post_ride(api: &mut Process) -> u16 {
    let form = ("content-type", "application/x-www-form-urlencoded");
    let request = reqwest::Client::new().post(url(api, "/rides").await).header(form.0, form.1);
    request.body("distance=12.5").send().await.unwrap().status().as_u16()
}

/// The URL of a path of that api.
async fn url(api: &mut Process, path: &str) -> String {
    format!("http://{}{path}", api.address_after("api started").await)
}

/// Credits a wallet until a read of it comes from Redis.
async fn use_wallet(api: &mut Process) {
    let (client, wallet) = (reqwest::Client::new(), url(api, "/wallet/28skwt5B8zTrs6AqBWrSgCHLcRL").await);
    let credit = client.post(format!("{wallet}/credit")).header("content-type", "application/json");
    assert_eq!(credit.body(r#"{"amount":5}"#).send().await.unwrap().status(), 200, "{}", api.output());
    wait_until("the document is in Redis", async || {
        let response = client.get(format!("{wallet}/balance?min_version=1")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.headers()["read-from"] == "redis"
    })
    .await;
}

#[tokio::test]
async fn the_whole_pipeline_converges_over_tls_with_passwords() {
    let servers = TlsServers::start().await;
    let world = servers.world().await;
    let run = |name: &str, args: &[&str]| {
        let redis_url = servers.redis_url(name, TlsServers::REDIS_PASSWORD);
        start(&world, name, args, (&servers.database_url_of(&world, name), &redis_url), Some(servers.ca_file()))
    };
    // A foreign entry makes the streamer set the stream aside, for which it needs rights, too.
    let mut redis = world.redis().await;
    let () =
        redis::cmd("XADD").arg(world.stream_name()).arg(&["999-0", "a", "b"]).query_async(&mut redis).await.unwrap();
    let mut api = run("api", &["--api-port", "0"]);
    let (mut streamer, first, second) =
        (run("streamer", &[]), run("consumer", &["consumer0"]), run("consumer", &["consumer1"]));
    let urls = (servers.database_url_of(&world, "consumer"), servers.redis_url("wallets", TlsServers::REDIS_PASSWORD));
    let args = ["wallets", "--fold", "wallets"];
    let wallets = start(&world, "consumer", &args, (&urls.0, &urls.1), Some(servers.ca_file()));
    streamer.wait_until_publishing(1).await;
    for _ in 0..20 {
        assert_eq!(post_ride(&mut api).await, 201, "{}", api.output());
    }
    use_wallet(&mut api).await;
    wait_until("all consumers have passed all records", async || {
        world.number("SELECT count(*) FROM checkpoints WHERE last_offset = 21").await == 3
    })
    .await;
    // Consumers may have read from Postgres, ahead of the stream.
    wait_until("all records are in the stream", async || world.stream_len().await == 21).await;

    let roles = |ssl: &str| {
        format!(
            "SELECT count(DISTINCT usename) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE usename LIKE 'rocket_%' AND {ssl}"
        )
    };
    assert_eq!(world.number(&roles("ssl")).await, 3, "api, streamer and consumer are connected, and encrypted");
    assert_eq!(world.number(&roles("NOT ssl")).await, 0);
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
    let address = format!("laddr=127.0.0.1:{} ", servers.redis_port());
    assert_eq!(
        clients.matches(&address).count(),
        6,
        "streamer, consumers and read model use the only port:\n{clients}"
    );

    let reaped = run("reaper", &["--once", "--keep", "0s"]).succeed().await;
    assert!(reaped.contains("record_count=21"), "{reaped}");
    assert!(streamer.output().contains("set aside"), "{}", streamer.output());
    for process in [api, streamer, first, second, wallets] {
        assert_no_password(&process.output());
        assert!(!process.output().contains("NOPERM"), "{}", process.output());
        process.stop().await;
    }
    world.assert_converged(&["consumer0", "consumer1"]).await;
    let urls = (servers.database_url_of(&world, "operator"), servers.redis_url("operator", TlsServers::REDIS_PASSWORD));
    for (tool, words) in [("audit", "documents equal"), ("doctor", "redis.appendfsync")] {
        let mut tool = start(&world, tool, &[], (&urls.0, &urls.1), Some(servers.ca_file()));
        tool.ended().await;
        let output = tool.read_to_end().await;
        assert!(output.contains(words) && !output.contains("NOPERM"), "{output}");
    }
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_refused_with_what_to_do() {
    let servers = TlsServers::start().await;
    let world = servers.world().await;
    let redis_url = servers.redis_url("", TlsServers::REDIS_PASSWORD);
    let advice = "the server's certificate does not verify: set TLS_CA_FILE to the certificate (PEM)";
    for (name, args) in [("streamer", &[][..]), ("consumer", &["consumer0"]), ("reaper", &[])] {
        let mut to_postgres =
            start(&world, name, args, (&servers.database_url_of(&world, name), "redis://127.0.0.1:1"), None);
        to_postgres.wait_for(advice).await;
        assert_no_password(&to_postgres.output());
        let mut to_redis = start(&world, name, args, (&world.database_url_of(name), &redis_url), None);
        to_redis.wait_for(advice).await;
        assert_no_password(&to_redis.output());
    }
    let mut api = start(&world, "api", &["--api-port", "0"], (&servers.database_url_of(&world, "api"), ""), None);
    assert_eq!(post_ride(&mut api).await, 503);
    api.wait_for(advice).await;
    assert_no_password(&api.output());
    let connected = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'rocket_%' AND client_addr IS NOT NULL";
    assert_eq!(world.number(connected).await, 0);
}

#[tokio::test]
async fn a_server_with_a_certificate_for_another_name_is_refused() {
    let servers = TlsServers::start().await;
    let world = servers.world().await;
    let user = format!("rocket_streamer:{}", TlsServers::POSTGRES_PASSWORD);
    for mode in ["require", "verify-ca", "verify-full"] {
        let options = format!("hostaddr=127.0.0.1&sslmode={mode}");
        let database_url = servers.database_url("db.example.com", &world, &user, &options);
        let urls = (database_url.as_str(), "redis://127.0.0.1:1");
        let mut streamer = start(&world, "streamer", &[], urls, Some(servers.ca_file()));
        streamer.wait_for("the server's certificate is for another name: use its name in the URL").await;
        assert_no_password(&streamer.output());
    }
}

#[test]
fn the_rights_that_are_documented_for_redis_are_those_that_were_tried() {
    let root = tests::root();
    let page = std::fs::read_to_string(root.join("docs/SECURITY.md")).unwrap();
    for (user, keys, commands) in tests::REDIS_USERS {
        let line = format!("ACL SETUSER {user} on '>PASSWORD' {keys} {commands}\n");
        assert!(page.contains(&line), "docs/SECURITY.md lacks {line}");
    }
}

#[tokio::test]
async fn without_sslmode_require_a_server_with_any_certificate_is_used_as_it_always_was() {
    let servers = TlsServers::start().await;
    let world = servers.world().await;
    for options in ["", "sslmode=prefer", "sslmode=disable"] {
        let url = servers.database_url("localhost", &world, "app", options);
        let client = connect::postgres::connect(&url.parse().unwrap(), "test", || {}).await.unwrap();
        let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert!(!client.query_one(ssl, &[]).await.unwrap().get::<_, bool>(0), "{options}");
    }
}
