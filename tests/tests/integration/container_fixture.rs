//! A container with four destinations, for one test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tests::{Process, World, binary, free_port, scratch_folder, wait_until};
use tokio::process::Command;

/// The secret of notices.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How long a test waits until every unit is final.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A container, its folders, and the receiver of its notices.
pub struct Scene {
    pub world: World,
    pub container: Process,
    pub notices: Process,
    pub client: reqwest::Client,
    pub folder: PathBuf,
    pub base: String,
    pub notices_port: u16,
    config: String,
}

impl Scene {
    /// A container with the destinations of the demo.
    pub async fn start() -> Self {
        let notices_port = free_port();
        Self::start_with(notices_port, &config(&format!("http://127.0.0.1:{notices_port}/notices"), "")).await
    }

    /// The same with another declaration.
    pub async fn start_with(notices_port: u16, config: &str) -> Self {
        Self::start_on(World::new().await, notices_port, config).await
    }

    /// The same in this world, which may have servers of its own.
    pub async fn start_on(world: World, notices_port: u16, config: &str) -> Self {
        let folder = scratch_folder();
        let notices = spawn_notices(&folder, notices_port);
        let (container, base) = spawn(command(&world, &folder, config)).await;
        let client = reqwest::Client::new();
        wait_until("the receiver responds", async || {
            client.get(format!("http://127.0.0.1:{notices_port}/notices")).send().await.is_ok()
        })
        .await;
        Self { world, container, notices, client, folder, base, notices_port, config: config.to_owned() }
    }

    /// Starts the container again, with another declaration if one is given.
    pub async fn start_again(&mut self, config: Option<String>) {
        self.config = config.unwrap_or_else(|| self.config.clone());
        self.start_command(self.command()).await;
    }

    /// Starts the container again, with these flags.
    pub async fn start_again_with(&mut self, flags: &[&str]) {
        let mut command = self.command();
        command.args(flags);
        self.start_command(command).await;
    }

    /// The command that starts the container, for tests that change it.
    pub fn command(&self) -> Command {
        command(&self.world, &self.folder, &self.config)
    }

    /// Starts the container by this command.
    pub async fn start_command(&mut self, command: Command) {
        (self.container, self.base) = spawn(command).await;
    }

    /// Starts another container on the same spool and the same database.
    pub fn spawn(&self, flags: &[&str]) -> Process {
        let mut command = self.command();
        command.args(flags);
        Process::spawn("container", command)
    }

    /// The folder with the spool, the photos in `data`, and the notices.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a container with a declaration that it refuses. Returns its log.
    pub async fn refused(&self, config: &str) -> String {
        Process::spawn("container", command(&self.world, &self.folder, config)).fail(2).await
    }

    /// The URL of a path of the container.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Starts the receiver again.
    pub fn start_notices_again(&mut self) {
        self.notices = spawn_notices(&self.folder, self.notices_port);
    }

    pub fn post(&self, document: &Value) -> RequestBuilder {
        self.client.post(format!("{}/manifests", self.base)).json(document)
    }

    pub fn post_with_photo(&self, document: &Value, photo: &[u8]) -> RequestBuilder {
        let (content_type, body) = multipart(document, photo);
        self.client.post(format!("{}/manifests", self.base)).header("content-type", content_type).body(body)
    }

    pub async fn unit(&self, uow: i64) -> Value {
        self.get(&format!("/units/{uow}")).await.1
    }

    /// The manifest of a ride that readers see.
    pub async fn current(&self, ride_id: i64) -> Option<Value> {
        let (status, body) = self.get(&format!("/manifests/{ride_id}")).await;
        (status == StatusCode::OK).then_some(body)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.client.get(format!("{}{path}", self.base)).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    /// What the receiver was told: attempt and state of each notice about this unit.
    pub async fn told(&self, uow: i64) -> Vec<(i64, String)> {
        let notices = self.notices().await;
        let notices = notices.iter().filter(|notice| notice["uow"] == uow);
        notices.map(|one| (one["attempt"].as_i64().unwrap(), one["state"].as_str().unwrap().to_owned())).collect()
    }

    /// The register of the receiver.
    pub async fn notices(&self) -> Vec<Value> {
        let (mut notices, mut next) = (Vec::new(), json!(0));
        while let Some(after) = next.as_u64() {
            let url = format!("http://127.0.0.1:{}/notices?limit=1000&after={after}", self.notices_port);
            let mut page: Value = self.client.get(url).send().await.unwrap().json().await.unwrap();
            notices.append(page["notices"].as_array_mut().unwrap());
            next = page["next"].take();
        }
        notices
    }

    /// The lengths of the photos.
    pub fn photos(&self) -> Vec<u64> {
        files(&self.folder.join("data/photos")).iter().map(|path| path.metadata().unwrap().len()).collect()
    }

    /// The number of files in the spool.
    pub fn spooled(&self) -> usize {
        files(&self.folder.join("spool/files")).len()
    }

    /// Makes the files in the spool seem an hour old.
    pub fn make_spool_old(&self) {
        let hour_ago = SystemTime::now() - Duration::from_secs(60 * 60);
        for path in files(&self.folder.join("spool/files")) {
            File::options().write(true).open(path).unwrap().set_modified(hour_ago).unwrap();
        }
    }

    /// The passengers of a ride on the board.
    pub async fn on_board(&self, ride_id: i64) -> Option<f64> {
        let key = format!("{}:board", self.world.stream_name());
        let mut zscore = redis::cmd("ZSCORE");
        zscore.arg(key).arg(ride_id).query_async(&mut self.world.redis().await).await.unwrap()
    }

    /// The actions of the log records of a unit.
    pub async fn records(&self, uow: i64) -> Vec<String> {
        let query =
            "SELECT action FROM staged_log_records WHERE object = 'unit' AND (data->>'uow')::bigint = $1 ORDER BY id";
        let rows = self.world.client().query(query, &[&uow]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The files of a folder that are visible.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_file() && !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}

/// The declaration of the demo with this webhook, and further lines.
pub fn config(webhook: &str, further: &str) -> String {
    format!(
        r#"
[[resource]]
name = "manifests"
subject = "ride_id"
document = "manifest"
reader = "rows"
destinations = ["rows", "photos", "board", "notices"]
[[resource.attachment]]
name = "photo"
content_types = ["image/png"]
[destination.rows]
kind = "rows"
table = "manifests"
[destination.photos]
kind = "files"
folder = "${{CONTAINER_DATA}}/photos"
takes = "photo"
[destination.board]
kind = "board"
redis = "REDIS_URL"
prefix = "${{BOARD_PREFIX}}"
[destination.notices]
kind = "webhook"
url = "{webhook}"
secret = "NOTICES_SECRET"
allow_private = true
time_out = "2s"
{further}"#
    )
}

fn spawn_notices(folder: &Path, port: u16) -> Process {
    let mut command = Command::new(binary("container"));
    command.args(["notices", "--notices-port", &port.to_string(), "--data"]).arg(folder.join("notices"));
    command.env("NOTICES_SECRET", SECRET);
    Process::spawn("notices", command)
}

/// The command that starts a container, under its own role.
fn command(world: &World, folder: &Path, config: &str) -> Command {
    let path = folder.join("container.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(binary("container"));
    command
        .args(["--container-port", "0", "--config"])
        .arg(path)
        .env("CONTAINER_SPOOL", folder.join("spool"))
        .env("DATABASE_URL", world.database_url_of("container"))
        .env("REDIS_URL", world.redis_url())
        .env("CONTAINER_DATA", folder.join("data"))
        .env("NOTICES_PORT", "5009")
        .env("BOARD_PREFIX", world.stream_name())
        .env("NOTICES_SECRET", SECRET);
    command
}

/// Starts a container. Returns it with its URL.
pub async fn spawn(command: Command) -> (Process, String) {
    let mut container = Process::spawn("container", command);
    let base = base_of(&mut container).await;
    (container, base)
}

/// The URL of a container, when it has started.
pub async fn base_of(container: &mut Process) -> String {
    format!("http://{}", container.address_after("container started").await)
}

/// Content type and body of a request with a photo.
pub fn multipart(document: &Value, photo: &[u8]) -> (String, Vec<u8>) {
    let boundary = "one-boundary";
    let mut body = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"manifest\"\r\n\r\n{document}\r\n--{boundary}\r\n\
         content-disposition: form-data; name=\"photo\"; filename=\"p.png\"\r\ncontent-type: image/png\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(photo);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

/// A manifest.
pub fn manifest(ride_id: i64, passengers: &[&str]) -> Value {
    json!({ "ride_id": ride_id, "passengers": passengers })
}
