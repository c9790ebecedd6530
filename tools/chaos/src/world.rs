//! The targets of the faults: servers, processes and traffic.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use pglog::PartitionCount;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, PARTITION_COUNT};
use crate::container::Containers;
use crate::fleet::{self, Slot, Spec};
use crate::history::History;
use crate::ledger::Wallets;
use crate::promises::Promises;
use crate::servers::{Postgres, Redis};

/// The processor's key of all processes.
pub(crate) const PAYMENTS_KEY: &str = "sk_test_chaos";

/// The note of a manifest that the table refuses: chaos gives it a constraint.
pub(crate) const REFUSED_NOTE: &str = "to be refused";

pub(crate) struct World {
    pub history: Arc<History>,
    pub promises: Arc<Promises>,
    pub wallets: Wallets,
    pub postgres: Mutex<Postgres>,
    pub redis: Mutex<Redis>,
    /// The servers of the streams, if they are not on `redis`.
    pub cluster: Option<Cluster>,
    /// The URL of the server itself, without a proxy.
    pub postgres_url: String,
    /// The addresses of the apis. Clients use both.
    pub api_urls: [String; 2],
    pub payments_url: String,
    pub receipts_folder: PathBuf,
    pub apis: [Arc<Slot>; 2],
    pub payments: Arc<Slot>,
    pub completer: Arc<Slot>,
    pub receipts: Arc<Slot>,
    pub streamers: [Arc<Slot>; 2],
    pub consumers: Vec<Arc<Slot>>,
    /// The consumer that writes the history.
    pub archivist: Arc<Slot>,
    /// The consumer that makes the wallets' documents in Redis certain.
    pub projector: Arc<Slot>,
    pub reaper: Arc<Slot>,
    pub containers: Containers,
    late: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl World {
    /// Starts the servers, the schema and every process.
    pub async fn start(
        folder: &Path,
        consumer_count: usize,
        with_clock: bool,
        cluster: Option<Cluster>,
        history: &Arc<History>,
    ) -> Result<Arc<Self>> {
        let postgres = Postgres::start(folder.join("pg")).await?;
        let redis = Redis::start(folder.join("redis"), launcher::find_clock_library().filter(|_| with_clock)).await?;
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
        let [api_a_port, api_b_port, payments_port, container_ports @ ..] = free_ports::<6>()?;
        let payments_url = format!("http://127.0.0.1:{payments_port}");
        let (receipts_folder, journal) = (folder.join("receipts"), folder.join("payments"));
        let sockets = (postgres.socket()?, redis.socket().to_owned());
        let streams = cluster.as_ref().map(|cluster| ("REDIS_URL", cluster.url.clone()));
        let slot = async |name: &str, program, args: Vec<String>| {
            let spec = Spec { name: name.to_owned(), program, args, environment: streams.iter().cloned().collect() };
            Slot::new(spec, (&sockets.0, &sockets.1), &logs, history).await
        };
        // Claims last longer than most charges, and shorter than the longest pause of a stopped process.
        let booking = format!("--stripe-api-base {payments_url} --stripe-api-key {PAYMENTS_KEY} --claim-wait 4s");
        let completing = format!("{booking} --age-min 3s --idle-min 1s --retry-wait 500ms --interval 1s");
        let mut charging = words(&format!("--payments-port {payments_port} --faults --fault-rate 0.05 --data"));
        charging.push(journal.display().to_string());
        let delivering = vec!["receipts".to_owned(), "--folder".to_owned(), receipts_folder.display().to_string()];
        let api = async |name, port| slot(name, "api", words(&format!("--api-port {port} {booking}"))).await;
        let streamer = async |name| slot(name, "streamer", words("--fault-rate 0.1")).await;
        let mut consumers = Vec::new();
        for number in 0..consumer_count {
            let name = format!("consumer{number}");
            consumers.push(slot(&name, "consumer", words(&format!("{name} --fault-rate 0.05"))).await?);
        }
        let world = Arc::new(Self {
            history: Arc::clone(history),
            promises: Arc::default(),
            wallets: Wallets::new(),
            postgres_url: postgres.url().to_owned(),
            api_urls: [api_a_port, api_b_port].map(|port| format!("http://127.0.0.1:{port}")),
            apis: [api("api_a", api_a_port).await?, api("api_b", api_b_port).await?],
            payments: slot("payments", "payments", charging).await?,
            completer: slot("completer", "completer", words(&completing)).await?,
            receipts: slot("receipts", "receipts", delivering).await?,
            payments_url,
            receipts_folder,
            streamers: [streamer("streamer_a").await?, streamer("streamer_b").await?],
            consumers,
            archivist: slot("history", "consumer", words("history --fold history --fault-rate 0.05")).await?,
            projector: slot("wallets", "consumer", words("wallets --fold wallets --fault-rate 0.05")).await?,
            reaper: slot("reaper", "reaper", words("--keep 5s --interval 2s --stream-len-max 20000")).await?,
            containers: Containers::new(folder, container_ports, (&sockets.0, &sockets.1), &logs, history).await?,
            late: std::sync::Mutex::default(),
            postgres: Mutex::new(postgres),
            redis: Mutex::new(redis),
            cluster,
        });
        let client = world.connect().await?;
        world.make_tables(&client).await?;
        for slot in world.slots() {
            // Each process has its own role, by which its connections are found. The role has the rights that roles.sql grants.
            let (name, program) = (&slot.spec.name, slot.spec.program);
            if program != "payments" {
                let create = format!("CREATE ROLE {name} LOGIN IN ROLE rocket_{program}");
                client.batch_execute(&create).await.context("creating a role")?;
            }
            tokio::spawn(Arc::clone(slot).keep_running());
        }
        Ok(world)
    }

    async fn make_tables(&self, client: &deadpool_postgres::ClientWrapper) -> Result<()> {
        let partitions = self.cluster.as_ref().map(|_| self.partitions());
        launcher::apply_schema_with(client, partitions).await.context("applying the schema")?;
        launcher::apply_roles(client).await.context("applying the roles")?;
        client.batch_execute(launcher::SEED).await.context("applying the seed")?;
        let refuse = format!("ALTER TABLE manifests ADD CHECK (data ->> 'note' <> '{REFUSED_NOTE}')");
        client.batch_execute(&refuse).await.context("making the table of manifests refuse some")
    }

    /// The partitions of the log.
    pub fn partitions(&self) -> PartitionCount {
        match self.cluster {
            Some(_) => PartitionCount::new(PARTITION_COUNT).expect("it is a number of partitions"),
            None => PartitionCount::ONE,
        }
    }

    /// Every process.
    pub fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        let others = [&self.receipts, &self.completer, &self.reaper, &self.payments];
        self.apis.iter().chain(&self.streamers).chain(self.folding()).chain(self.containers.slots()).chain(others)
    }

    /// The address of one of the apis, drawn anew for each request: so a client sends a retry to an api that does not remember
    /// the first attempt, and reads from an api that did not write.
    pub fn api_url(&self, rng: &mut StdRng) -> &str {
        &self.api_urls[rng.random_range(0..self.api_urls.len())]
    }

    /// The address of the rides at one of the apis.
    pub fn rides_url(&self, rng: &mut StdRng) -> String {
        format!("{}/rides", self.api_url(rng))
    }

    /// All consumers: those with a total, the one that writes the history, and the one with the wallets.
    pub fn folding(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.consumers.iter().chain([&self.archivist, &self.projector])
    }

    /// Connects to Postgres without a proxy.
    pub async fn connect(&self) -> Result<deadpool_postgres::ClientWrapper> {
        let config: tokio_postgres::Config = self.postgres_url.parse().context("parsing the server's URL")?;
        connect::postgres::connect(&config, "chaos", || {}).await
    }

    /// Connects to Redis without a proxy.
    pub async fn redis_connection(&self) -> Result<redis::aio::MultiplexedConnection> {
        stream::redis::connect(&stream::redis::client(self.redis.lock().await.url())?).await
    }

    /// The index of the streamer that leads the first partition.
    pub async fn leader(&self) -> Result<usize> {
        let row = self
            .connect()
            .await?
            .query_opt(
                "-- chaos::leader
                 SELECT usename::text FROM pg_locks JOIN pg_stat_activity USING (pid)
                 WHERE locktype = 'advisory' AND classid = $1::int::oid AND objid = 0 AND granted LIMIT 1",
                &[&pglog::LEADER_LOCK],
            )
            .await
            .context("asking who leads")?;
        let name: String = row.context("no streamer leads at the moment")?.get(0);
        self.streamers
            .iter()
            .position(|slot| slot.spec.name == name)
            .context("a process that is no streamer of this run leads")
    }

    /// Runs `work` in the background. It may fail, because of the faults.
    pub fn background(self: &Arc<Self>, work: impl Future<Output = Result<()>> + Send + 'static) {
        let history = Arc::clone(&self.history);
        let late = tokio::spawn(async move {
            if let Err(error) = work.await {
                history.note(&format!("a late transaction failed: {error:#}"));
            }
        });
        self.late.lock().unwrap_or_else(PoisonError::into_inner).push(late);
    }

    /// Waits until all work in the background has ended.
    pub async fn late_ones_end(&self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        for late in late {
            // An error means a panic, which is already printed.
            let _ = late.await;
        }
    }

    /// Runs `audit`, the operators' tool, which compares all tables and the stream with the log, and the charges with
    /// the bookings.
    pub async fn audit(&self) -> Result<()> {
        let redis_url = self.redis.lock().await.url().to_owned();
        let environment = [
            ("DATABASE_URL", self.postgres_url.clone()),
            ("REDIS_URL", self.cluster.as_ref().map_or_else(|| redis_url.clone(), |cluster| cluster.url.clone())),
            ("WALLETS_REDIS_URL", redis_url),
            ("STRIPE_API_BASE", self.payments_url.clone()),
            ("STRIPE_API_KEY", PAYMENTS_KEY.to_owned()),
        ];
        let output =
            fleet::command("audit")?.arg("--payments").envs(environment).output().await.context("running audit")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stdout);
            self.history.violation(&format!("audit ended with {}:\n{words}", output.status));
        }
        Ok(())
    }

    /// Stops every process and all servers.
    pub async fn stop(&self) -> Result<()> {
        for slot in self.slots() {
            if !slot.stop(Duration::from_secs(20)).await {
                self.history.violation(&format!("{} did not stop within 20 s of SIGTERM", slot.spec.name));
            }
        }
        self.redis.lock().await.stop().await?;
        if let Some(cluster) = &self.cluster {
            cluster.stop().await?;
        }
        self.postgres.lock().await.stop().await
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Different free ports, outside of the range from which outgoing connections take theirs while a server is down.
fn free_ports<const COUNT: usize>() -> Result<[u16; COUNT]> {
    let first: u16 = rand::random_range(20_000..31_000);
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports: Vec<u16> = (first..first + 1000).filter(is_free).take(COUNT).collect();
    ports.try_into().ok().context("no free ports for the servers")
}
