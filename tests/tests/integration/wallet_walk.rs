//! UN-18, the walk through one wallet, with the commands that `docs/WALLETS.md` shows: the real api, streamer and projector, and
//! the real programs curl, jq, redis-cli and psql.

use serde_json::{Value, json};
use tests::{Process, Watched, World, root, wait_until};
use tokio::process::Command;
use wallet::model::mark_key;

/// The commands of the first block of `docs/WALLETS.md`.
fn documented() -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/WALLETS.md")).unwrap();
    let block = page.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    block.lines().map(|line| line.strip_prefix("$ ").expect("a line is one command").to_owned()).collect()
}

/// A shell beside a running system.
struct Shell {
    world: World,
    api_port: String,
    wallet: String,
}

impl Shell {
    /// Runs a command of the page. Returns what it prints.
    async fn run(&self, command: &str) -> String {
        let redis_socket = self.world.redis_url().split_once("://").unwrap().1.split('?').next().unwrap();
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", command]);
        shell.env("API_PORT", &self.api_port).env("id", &self.wallet).env("REDIS_SOCKET", redis_socket);
        shell.env("DATABASE_URL", self.world.database_url());
        // psql may be in no folder of the PATH.
        let (path, postgres) = (std::env::var("PATH").unwrap(), launcher::find_postgres().unwrap().folder);
        shell.env("PATH", format!("{path}:{}", postgres.display()));
        Process::spawn("bash", shell).succeed().await
    }

    /// Runs a command that prints JSON.
    async fn json(&self, command: &str) -> Value {
        let output = self.run(command).await;
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{command}: {error}: {output}"))
    }

    /// Version and balance as the document in Redis and the api have them, once the document has this version.
    async fn assert_read_model(&self, redis_cli: &str, (version, balance): (i64, f64)) {
        wait_until("the document has the version", async || {
            let output = self.run(redis_cli).await;
            serde_json::from_str::<Value>(&output).is_ok_and(|document| document["version_id"] == version)
        })
        .await;
        let document = self.json(redis_cli).await;
        assert_eq!(
            (&document["name"], &document["entity_id"]),
            (&json!(format!("wallet.{}", self.wallet)), &json!(self.wallet))
        );
        assert_eq!(document["data"]["balance"], balance, "{document}");
        let shown = self.json("curl -s localhost:$API_PORT/wallet/$id/balance").await;
        assert_eq!((&shown["version"], &shown["balance"]), (&version.into(), &balance.into()));
        assert!(shown["timestamp"].is_string());
    }
}

#[tokio::test]
async fn un_18_a_wallet_is_walked_through_as_the_page_says() {
    let world = World::new().await;
    let mut api = Watched::start(&world, "api", &["--api-port", "0"]).await;
    let address = api.process.address_after("api started").await;
    let processes = [
        Process::start(&world, "streamer", &[]),
        Process::start(&world, "consumer", &["wallets", "--fold", "wallets"]),
    ];
    let (mut redis, mark) = (world.redis().await, mark_key(world.stream_name()));
    wait_until("the read model has begun", async || {
        redis::cmd("EXISTS").arg(&mark).query_async::<i64>(&mut redis).await.unwrap() == 1
    })
    .await;
    let api_port = address.rsplit_once(':').unwrap().1.to_owned();
    let mut shell = Shell { world, api_port, wallet: String::new() };
    let commands = documented();
    let [new, debit, credit, debit_again, transactions, redis_cli, events, states] = &commands[..] else {
        panic!("{commands:#?}")
    };

    shell.wallet = shell.run(&format!("{new}\necho $id")).await.trim().to_owned();
    assert_eq!(shell.wallet.len(), 27);
    assert_eq!(shell.run(redis_cli).await.trim(), "", "a wallet that was never used has no document");

    // Debit 5 at balance 0 fails, and is in the event log.
    let rejected = shell.json(debit).await;
    let reason = r#"failed to handle endpoint="debit": debit of 5 rejected; would cause balance of -5 (overdrawn)"#;
    assert_eq!((&rejected["success"], &rejected["error"]), (&json!(false), &json!(reason)), "{rejected}");
    assert_eq!(rejected["detail"], "An error occurred");
    assert!(shell.run(events).await.contains("(1 row)"));
    assert!(shell.run(states).await.contains("(0 rows)"));

    // Credit 5.
    let credited = shell.json(credit).await;
    let detail = |endpoint: &str| json!(format!("handled endpoint=\"{endpoint}\""));
    assert_eq!((&credited["success"], &credited["detail"]), (&json!(true), &detail("credit")), "{credited}");
    shell.assert_read_model(redis_cli, (1, 5.0)).await;
    assert!(shell.run(states).await.contains("(1 row)"));

    // Debit 5 succeeds.
    let debited = shell.json(debit_again).await;
    assert_eq!((&debited["success"], &debited["detail"]), (&json!(true), &detail("debit")), "{debited}");
    shell.assert_read_model(redis_cli, (2, 0.0)).await;

    // The event log has all attempts, the state log one state per accepted change, and the transactions follow.
    assert!(shell.run(events).await.contains("(3 rows)"));
    assert!(shell.run(states).await.contains("(2 rows)"));
    let listed = shell.json(transactions).await;
    let amounts: Vec<&Value> = listed["transactions"].as_array().unwrap().iter().map(|one| &one["amount"]).collect();
    assert_eq!(amounts, [&json!(-5.0), &json!(5.0)], "{listed}");
    assert!(listed["transactions"].as_array().unwrap().iter().all(|one| one["source_entity_id"] == "world"));

    // The log has a record of each, the projector has passed them, and everything agrees.
    let passed = "SELECT count(*) FROM checkpoints WHERE name = 'wallets' AND last_offset = 3";
    wait_until("the projector has passed all records", async || shell.world.number(passed).await == 1).await;
    let output = Process::start(&shell.world, "audit", &[]).succeed().await;
    assert!(
        output.contains("wallets: 1, with 0 cents; 3 events, 1 of them rejected, and 3 records: equal"),
        "{output}"
    );
    assert!(output.contains(": 1 documents equal, 0 different"), "{output}");
    for process in processes {
        process.stop().await;
    }
    api.process.stop().await;
}
