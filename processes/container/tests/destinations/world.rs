//! Folders, servers and units for one test.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use container::destination::{Attachment, Attachments, Unit};
use container::webhook::{Reach, Secret, Webhook};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use reqwest::Url;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

/// The longest start of a server on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The secret of the receiver.
pub const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A new folder, which is deleted at the end of the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("container-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The attachments of a body in memory.
pub struct Photo(pub Vec<Result<Bytes, String>>);

impl Attachments for Photo {
    fn find(&self, name: &str) -> Option<Attachment> {
        let pieces = self.0.clone().into_iter().map(|piece| piece.map_err(anyhow::Error::msg));
        let bytes: BoxStream<'static, Result<Bytes>> = stream::iter(pieces).boxed();
        (name == "photo" && !self.0.is_empty()).then(|| Attachment { content_type: "image/jpeg".to_owned(), bytes })
    }
}

/// A unit about a ride with so many passengers and a photo.
pub fn unit(uow: i64, subject: &str, passenger_count: usize) -> Unit {
    let passengers = vec!["Ada"; passenger_count];
    Unit {
        uow,
        key: Uuid::new_v4(),
        attempt: 1,
        resource: "manifests".to_owned(),
        subject: subject.to_owned(),
        document: serde_json::json!({ "ride_id": subject, "passengers": passengers }).to_string().into(),
        attachments: Box::new(Photo(vec![Ok(Bytes::from_static(b"the first piece, ")), Ok("the second".into())])),
    }
}

/// Another attempt of a unit.
pub fn again(unit: &Unit, attempt: i32) -> Unit {
    let attachments = Box::new(Photo(vec![Ok("the photo of another attempt".into())]));
    let (resource, subject, document) = (unit.resource.clone(), unit.subject.clone(), unit.document.clone());
    Unit { uow: unit.uow, key: unit.key, attempt, resource, subject, document, attachments }
}

/// Waits until the condition holds.
pub async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A Redis that only one test uses.
pub struct Redis {
    folder: Folder,
    server: Child,
}

impl Redis {
    /// Starts a server, which forgets everything when it ends.
    pub async fn start() -> Self {
        let folder = Folder::new();
        let server = Self::spawn(&folder);
        let redis = Self { folder, server };
        redis.wait().await;
        redis
    }

    fn spawn(folder: &Folder) -> Child {
        let mut command = std::process::Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--dir"]).arg(folder.path());
        command.arg("--unixsocket").arg(folder.path().join("redis.sock")).stdout(Stdio::null());
        command.spawn().expect("redis-server: install it, for example with apt-get install redis-server")
    }

    async fn wait(&self) {
        wait_until("Redis responds", async || self.client().get_multiplexed_async_connection().await.is_ok()).await;
    }

    /// SIGKILL, and a start without data.
    pub async fn restart_empty(&mut self) {
        self.kill();
        self.server = Self::spawn(&self.folder);
        self.wait().await;
    }

    /// SIGKILL, and it stays away.
    pub fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    pub fn client(&self) -> redis::Client {
        let url = format!("redis+unix://{}", self.folder.path().join("redis.sock").display());
        redis::Client::open(url).unwrap()
    }

    /// Runs a command.
    pub async fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.client().get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The receiver of notices, in a process of its own, on a free port.
pub struct Receiver {
    child: tokio::process::Child,
    pub url: Url,
}

impl Receiver {
    pub async fn start(folder: &Folder) -> Self {
        Self::try_start(folder).await.unwrap_or_else(|log| panic!("it did not start:\n{log}"))
    }

    /// Starts the process and waits until it serves. Fails with its log if it does not.
    pub async fn try_start(folder: &Folder) -> Result<Self, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_container"));
        command.args(["notices", "--notices-port", "0", "--data"]).arg(folder.path());
        command.env("NOTICES_SECRET", SECRET).env("RUST_LOG", "info");
        command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        while let Some(line) = timeout(PATIENCE, lines.next_line()).await.expect("it says nothing").unwrap() {
            log.push_str(&line);
            log.push('\n');
            if let Some((_, address)) = line.split_once("receiver of notices started address=") {
                let url = format!("http://{}/notices", address.trim()).parse().unwrap();
                // Read the pipe to its end, because a full pipe would stop the process.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok(Self { child, url });
            }
        }
        Err(log)
    }

    /// SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    pub fn webhook(&self) -> Webhook {
        webhook(&self.url, SECRET)
    }

    /// The state of each attempt, in pages.
    pub async fn told(&self) -> Vec<Value> {
        let (mut told, mut after) = (Vec::new(), Some(0));
        while let Some(from) = after {
            let url = format!("{}?after={from}&limit=1000", self.url);
            let mut page: Value = reqwest::get(url).await.unwrap().json().await.unwrap();
            told.append(page["notices"].as_array_mut().unwrap());
            after = page["next"].as_u64();
        }
        told
    }

    /// The state of one attempt.
    pub async fn state(&self, key: Uuid, attempt: i32) -> Option<String> {
        let is_asked = |told: &Value| told["unit"] == key.to_string() && told["attempt"] == attempt;
        self.told().await.into_iter().find(is_asked).map(|told| told["state"].as_str().unwrap().to_owned())
    }
}

/// A webhook that may reach this machine.
pub fn webhook(url: &Url, secret: &str) -> Webhook {
    Webhook::new(url, Secret::parse(secret).unwrap(), Duration::from_secs(10), Reach::Private).unwrap()
}

/// A server whose responses a test determines.
pub async fn serve(router: axum::Router) -> Url {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/notices", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// Any destination.
pub type Any = Arc<dyn container::destination::Destination>;
