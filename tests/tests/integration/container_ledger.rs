//! The example `ledger`: a program that adds a destination of its own, a table in another Postgres database.

use container::contract;
use container::destination::{Attachment, Attachments, Unit};
use nix::sys::signal::Signal;
use reqwest::Client;
use serde_json::Value;
use tests::{Process, World, binary, root, scratch_folder, wait_until};
use tokio::process::Command;

use crate::container_fixture::manifest;

/// The destination of the example, without its program.
#[allow(dead_code, missing_docs, reason = "it is a module of the example")]
#[path = "../../../processes/container/examples/ledger/ledger.rs"]
mod ledger;

const FOLDER: &str = "processes/container/examples/ledger";

struct NoAttachments;

impl Attachments for NoAttachments {
    fn find(&self, _: &str) -> Option<Attachment> {
        None
    }
}

/// The database of the ledger.
async fn ledger_world() -> World {
    let world = World::new().await;
    let sql = std::fs::read_to_string(root().join(FOLDER).join("ledger.sql")).unwrap();
    world.client().batch_execute(&sql).await.unwrap();
    world
}

#[tokio::test]
async fn the_destination_of_the_example_keeps_the_contract() {
    let world = ledger_world().await;
    let ledger = ledger::Ledger::new(world.database_url(), "passenger_ledger").unwrap();
    let make = |uow, key, attempt| Unit {
        uow,
        key,
        attempt,
        resource: "manifests".to_owned(),
        subject: "7".to_owned(),
        document: manifest(7, &["Ada"]).to_string().into(),
        attachments: Box::new(NoAttachments),
    };
    let has = async |unit: &Unit| {
        let Unit { key, attempt, .. } = unit;
        let stored = format!("key = '{key}' AND attempt = {attempt} AND passenger_count = 1");
        world.number(&format!("SELECT count(*) FROM passenger_ledger WHERE {stored}")).await == 1
    };
    contract::check(&ledger, make, has).await.unwrap();
    // The units that were forgotten have left no tombstone.
    assert_eq!(world.number("SELECT count(*) FROM passenger_ledger WHERE uow = 1000 AND is_undone").await, 0);
}

/// The program of the example, its database, and that of its ledger.
struct Scene {
    world: World,
    ledger: World,
    program: Process,
    base: String,
    folder: std::path::PathBuf,
    config: String,
}

impl Scene {
    async fn start(time_out: &str) -> Self {
        let (world, ledger, folder) = (World::new().await, ledger_world().await, scratch_folder());
        let config = std::fs::read_to_string(root().join(FOLDER).join("container.toml")).unwrap();
        assert_eq!(config.matches("time_out = \"5s\"").count(), 1, "{config}");
        let config = config.replace("time_out = \"5s\"", &format!("time_out = \"{time_out}\""));
        let (program, base) = spawn(&world, &ledger, &folder, &config).await;
        Self { world, ledger, program, base, folder, config }
    }

    async fn kill_and_start_again(&mut self) {
        self.program.signal(Signal::SIGKILL);
        self.program.ended().await;
        // The lease of the killed process has run out.
        let sql = "UPDATE units SET due_at = now() WHERE state = 'fanned_out'";
        assert_eq!(self.world.client().execute(sql, &[]).await.unwrap(), 1, "the unit is leased");
        (self.program, self.base) = spawn(&self.world, &self.ledger, &self.folder, &self.config).await;
    }

    fn post(&self, document: &Value) -> reqwest::RequestBuilder {
        Client::new().post(format!("{}/manifests", self.base)).json(document)
    }

    async fn unit(&self, uow: i64) -> Value {
        reqwest::get(format!("{}/units/{uow}", self.base)).await.unwrap().json().await.unwrap()
    }

    /// The passengers of a ride that readers of the ledger see.
    async fn passengers(&self, ride_id: i64) -> i64 {
        let query =
            format!("SELECT coalesce(sum(passenger_count), 0)::bigint FROM passengers WHERE ride = '{ride_id}'");
        self.ledger.number(&query).await
    }

    /// The attempts of all units in the ledger, and which of them are undone.
    async fn attempts(&self) -> Vec<(i64, i32, bool)> {
        let query = "SELECT uow, attempt, is_undone FROM passenger_ledger ORDER BY 1, 2";
        let rows = self.ledger.client().query(query, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn spawn(world: &World, ledger: &World, folder: &std::path::Path, config: &str) -> (Process, String) {
    let path = folder.join("container.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(binary("examples/ledger"));
    command.args(["--container-port", "0", "--container-spool"]).arg(folder.join("spool"));
    command.arg("--config").arg(path);
    command.env("DATABASE_URL", world.database_url()).env("LEDGER_DATABASE_URL", ledger.database_url());
    let mut program = Process::spawn("ledger", command);
    let address = program.address_after("container started").await;
    (program, format!("http://{address}"))
}

#[tokio::test]
async fn the_example_stores_in_both_databases_or_in_none() {
    let scene = Scene::start("5s").await;
    let stored = scene.post(&manifest(7, &["Ada", "Bo"])).send().await.unwrap();
    assert_eq!(stored.status(), 200);
    assert_eq!((scene.passengers(7).await, scene.attempts().await), (2, vec![(1, 1, false)]));

    // The container's own database refuses a row, after the ledger has stored its part.
    let few = "ALTER TABLE manifests ADD CONSTRAINT few CHECK (jsonb_array_length(data->'passengers') < 3)";
    scene.world.client().batch_execute(few).await.unwrap();
    let refused = scene.post(&manifest(8, &["Ada", "Bo", "Cy"])).send().await.unwrap();
    let (status, unit) = (refused.status(), refused.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), unit["state"].as_str()), (422, Some("rejected")), "{unit}");
    assert_eq!((scene.passengers(8).await, scene.attempts().await[1..].to_vec()), (0, vec![(2, 1, true)]));

    // The ledger refuses a document for good, and the container stores nothing.
    let refused = scene.post(&serde_json::json!({ "ride_id": 9 })).send().await.unwrap();
    assert_eq!(refused.status(), 422);
    assert_eq!((scene.world.number("SELECT count(*) FROM manifests").await, scene.passengers(9).await), (1, 0));
}

#[tokio::test]
async fn the_example_is_killed_while_it_stores_and_ends_its_unit_afterwards() {
    let mut scene = Scene::start("5s").await;
    let mut blocking = scene.ledger.connect().await;
    let lock = blocking.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE passenger_ledger IN EXCLUSIVE MODE").await.unwrap();
    let request = scene.post(&manifest(7, &["Ada"]));
    let posted = tokio::spawn(async move { request.send().await.is_ok() });
    wait_until("the store waits", async || scene.ledger.waiting_count().await == 1).await;
    scene.kill_and_start_again().await;
    assert!(!posted.await.unwrap(), "the client has no response");
    // The statement of the killed process is still on the server: it is stored late, beside that of the new process.
    wait_until("both stores wait", async || scene.ledger.waiting_count().await == 2).await;
    lock.rollback().await.unwrap();
    wait_until("it is committed", async || scene.unit(1).await["state"] == "committed").await;
    assert_eq!((scene.passengers(7).await, scene.attempts().await), (1, vec![(1, 1, false)]));
}

#[tokio::test]
async fn a_late_store_of_the_example_is_taken_back_and_the_next_attempt_stays() {
    let scene = Scene::start("1s").await;
    let mut blocking = scene.ledger.connect().await;
    let lock = blocking.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE passenger_ledger IN EXCLUSIVE MODE").await.unwrap();
    let request = scene.post(&manifest(7, &["Ada"]));
    let posted = tokio::spawn(async move { request.send().await.unwrap().status().as_u16() });
    // The store has timed out, and its undo does too.
    wait_until("it is rolled back", async || scene.unit(1).await["state"] == "rolling_back").await;
    assert_eq!(posted.await.unwrap(), 202);
    lock.rollback().await.unwrap();
    wait_until("it is committed", async || scene.unit(1).await["state"] == "committed").await;
    let attempts = scene.attempts().await;
    let (last, earlier) = attempts.split_last().unwrap();
    assert!(!last.2 && !earlier.is_empty() && earlier.iter().all(|(_, _, is_undone)| *is_undone), "{attempts:?}");
    assert_eq!(scene.passengers(7).await, 1);
}

#[tokio::test]
async fn the_declaration_of_the_example_is_checked_by_its_program_alone() {
    let config = root().join(FOLDER).join("container.toml");
    let check = |program: &str, url: &str| {
        let mut command = Command::new(binary(program));
        command.arg("--config").arg(&config).arg("--check").env("LEDGER_DATABASE_URL", url);
        Process::spawn("check", command)
    };
    let url = "postgres://ledger:hidden-password@db.example.com/ledger";
    let output = check("examples/ledger", url).succeed().await;
    let line =
        "destination ledger: ledger at db.example.com, database ledger, table passenger_ledger, 8 at once, time-out 5s";
    assert!(output.contains(line) && !output.contains("hidden"), "{output}");
    let output = check("container", url).fail(2).await;
    assert!(output.contains("container.toml:15: the kind \"ledger\" is unknown to this program"), "{output}");
    let output = check("examples/ledger", "hidden-password").fail(2).await;
    assert!(output.contains(":14: `database` is no URL of Postgres") && !output.contains("hidden"), "{output}");
}
