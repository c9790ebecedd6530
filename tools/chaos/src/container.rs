//! The containers under test: two on one spool, with the destinations of the demo, and the receiver of their notices.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::fleet::{self, Slot, Spec};
use crate::history::History;
use crate::manifest_ledger::ManifestLedger;
use crate::proxy::Proxy;

/// The declaration of the demo.
const DECLARATION: &str = include_str!("../../../ops/container.toml");

/// The leaderboard in Redis, under the prefix of the declaration.
pub(crate) const BOARD: &str = "container:board";

const NOTICES_SECRET: &str = "whsec_Y2hhb3MgaGFzIGEgc2VjcmV0IG9mIGl0cyBvd24=";

pub(crate) struct Containers {
    pub pair: [Arc<Slot>; 2],
    pub notices: Arc<Slot>,
    pub notices_url: String,
    pub ledger: ManifestLedger,
    urls: [String; 2],
    folder: PathBuf,
}

impl Containers {
    /// Makes the slots of the containers and of the receiver, which listen on these ports.
    pub async fn new(
        folder: &Path,
        ports: [u16; 3],
        sockets: (&Path, &Path),
        logs: &Path,
        history: &Arc<History>,
    ) -> Result<Self> {
        let folder = folder.join("container");
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let declaration = folder.join("container.toml");
        std::fs::write(&declaration, DECLARATION).with_context(|| format!("writing {}", declaration.display()))?;
        let in_folder = |name: &str| folder.join(name).display().to_string();
        let [port_a, port_b, notices_port] = ports.map(|port| port.to_string());
        // One address for both containers: by it they know the board, and they refuse to start with another one.
        let to_redis = Arc::new(Proxy::start(sockets.1).await?);
        let slot = async |name: &str, args: &[&str]| {
            let environment = vec![
                ("NOTICES_SECRET", NOTICES_SECRET.to_owned()),
                ("NOTICES_PORT", notices_port.clone()),
                ("CONTAINER_DATA", in_folder("")),
            ];
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            let spec = Spec { name: name.to_owned(), program: "container", args, environment };
            Slot::sharing_redis(spec, sockets.0, Arc::clone(&to_redis), logs, history).await
        };
        let (config, spool, data) = (in_folder("container.toml"), in_folder("spool"), in_folder("notices"));
        // Shorter than the time-out of a destination, so that some responses come before the verdict.
        let serving = ["--config", &config, "--container-spool", &spool, "--reply-wait", "2s", "--container-port"];
        let container = async |name: &str, port: &str| slot(name, &[&serving[..], &[port]].concat()).await;
        Ok(Self {
            pair: [container("container_a", &port_a).await?, container("container_b", &port_b).await?],
            notices: slot("notices", &["notices", "--data", &data]).await?,
            notices_url: format!("http://127.0.0.1:{notices_port}"),
            ledger: ManifestLedger::default(),
            urls: [port_a, port_b].map(|port| format!("http://127.0.0.1:{port}")),
            folder,
        })
    }

    /// The processes, in the order in which they are to be stopped.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.pair.iter().chain([&self.notices])
    }

    /// The address of one of the containers, drawn anew for each request.
    pub fn url(&self, rng: &mut StdRng) -> &str {
        &self.urls[rng.random_range(0..self.urls.len())]
    }

    /// The folder of the destination `photos`.
    pub fn photos(&self) -> PathBuf {
        self.folder.join("photos")
    }

    /// The folder with the bodies of requests.
    pub fn spooled(&self) -> PathBuf {
        self.folder.join("spool/files")
    }

    /// Makes all dead units due again, as a person does after an outage.
    pub async fn retry_dead(&self, postgres_url: &str) -> Result<()> {
        let mut command = fleet::command("container")?;
        command.args(["units", "retry", "--all"]).env("DATABASE_URL", postgres_url);
        let output = command.output().await.context("running container units retry")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "container units retry ended with {}: {text}", output.status);
        Ok(())
    }
}
