//! The walk through the container with the commands that `docs/CONTAINER.md` shows: real servers, and the real programs curl, jq,
//! redis-cli and psql.

use serde_json::{Value, json};
use tests::{PrivateRedis, Process, World, binary, free_port, root, wait_until};
use tokio::process::Command;

use crate::container_fixture::{Scene, config};

/// The commands of the first block of `docs/CONTAINER.md`.
fn documented() -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/CONTAINER.md")).unwrap();
    let block = page.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    block.lines().map(|line| line.strip_prefix("$ ").expect("a line is one command").to_owned()).collect()
}

/// A shell beside a running system.
struct Shell {
    scene: Scene,
    redis_socket: String,
    uow: String,
}

impl Shell {
    /// Runs a command of the page. Returns what it prints.
    async fn run(&self, command: &str) -> String {
        let command = command.replace("target/debug/container", &format!("'{}'", binary("container").display()));
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &command]);
        shell.env("CONTAINER_PORT", self.scene.url("").rsplit_once(':').unwrap().1);
        shell.env("REDIS_SOCKET", &self.redis_socket).env("uow", &self.uow);
        shell.env("DATABASE_URL", self.scene.world.database_url());
        // psql may be in no folder of the PATH.
        let (path, postgres) = (std::env::var("PATH").unwrap(), launcher::find_postgres().unwrap().folder);
        shell.env("PATH", format!("{path}:{}", postgres.display()));
        Process::spawn("bash", shell).succeed().await
    }

    async fn json(&self, command: &str) -> Value {
        let output = self.run(command).await;
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{command}: {error}: {output}"))
    }
}

#[tokio::test]
async fn the_container_is_walked_through_as_the_page_says() {
    let redis = PrivateRedis::start(&[]).await;
    let redis_socket = redis.url().split_once("://").unwrap().1.split('?').next().unwrap().to_owned();
    let port = free_port();
    let declaration = config(&format!("http://127.0.0.1:{port}/notices"), "");
    let declaration =
        declaration.replace("prefix = \"${BOARD_PREFIX}\"", "prefix = \"${BOARD_PREFIX}\"\ntime_out = \"2s\"");
    let scene = Scene::start_on(World::with_redis(&redis.url()).await, port, &declaration).await;
    let mut shell = Shell { scene, redis_socket, uow: String::new() };
    let commands = documented();
    let [post, read, photo, keyed, again, refused, missing, pause, slow, list, show, records] = &commands[..] else {
        panic!("{commands:#?}")
    };

    let unit = shell.json(post).await;
    assert_eq!((&unit["state"], &unit["parts"][2]["state"]), (&json!("committed"), &json!("declined")), "{unit}");
    assert_eq!(shell.json(read).await, json!({ "ride_id": 900_001, "passengers": ["Ada", "Bo"] }));
    assert_eq!(shell.run(photo).await.matches("\"stored\"").count(), 4);
    assert_eq!(shell.json(read).await["passengers"], json!(["Ada"]));
    assert_eq!(shell.run(keyed).await, shell.run(again).await);
    let unit = shell.json(refused).await;
    assert_eq!((&unit["state"], &unit["status"]), (&json!("rejected"), &json!(422)), "{unit}");
    assert_eq!(shell.json(missing).await["code"], "subject_unknown");

    // Redis is away, and comes back by itself.
    assert_eq!(shell.run(pause).await, "OK\n");
    let (before, uow) = (std::time::Instant::now(), shell.run(&format!("{slow}; echo $uow")).await);
    assert!(before.elapsed().as_secs() >= 4, "there is no verdict within the wait: {:?}", before.elapsed());
    shell.uow = uow.lines().next().unwrap().to_owned();
    let listed = shell.run(list).await;
    assert!(listed.starts_with(&format!("{} rolling_back, attempt 1", shell.uow)), "{listed}");
    assert_eq!(shell.json(show).await["parts"][0]["state"], "timed_out");
    wait_until("it is committed", async || shell.json(show).await["state"] == "committed").await;
    let records = shell.run(records).await;
    assert!(records.contains("commit") && records.contains("fail_queued") && records.contains("(5 rows)"), "{records}");
    assert_eq!(shell.run(list).await, "");
}
