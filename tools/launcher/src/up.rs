//! `bin/up`: the whole system, from nothing to a stop by Ctrl-C.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use common::shutdown::CancellationToken;
use pglog::PartitionCount;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::find::given;
use crate::install::{Needed, install_missing};
use crate::leftovers::Register;
use crate::lock::lock;
use crate::outside::{Outside, parse_used};
use crate::ports::{ClaimedPort, claim_ports};
use crate::procfile::{Entry, parse_procfile};
use crate::screen::{Console, say};
use crate::servers::{Servers, Wanted};
use crate::supervise::{keep_running, keep_serving};
use crate::watch::watch;

/// The port of the live page, or the first port after it that is free.
const DASHBOARD_PORT: u16 = 5007;

/// The wallet that the banner credits. Any KSUID is a wallet.
const WALLET: &str = "28skwt5B8zTrs6AqBWrSgCHLcRL";

/// The port of the container, or the first after it that is free.
const CONTAINER_PORT: u16 = 5008;

/// The port of the receiver of notices in the first run, or the first after it that is free.
const NOTICES_PORT: u16 = 5009;

/// The file with the port of notices in the run before.
const NOTICES_PORT_FILE: &str = "notices-port";

/// The monitor port of the first process of the Procfile. The following processes get the following ports that are free.
const FIRST_MONITOR_PORT: u16 = 5010;

/// The port of the payment server, or the first after it that is free: only the processes of this launcher use it.
const PAYMENTS_PORT: u16 = 5110;

/// Starts everything and shows how the consumers converge: by a board on a terminal, by a line every few seconds elsewhere.
#[derive(Debug, Clone, Args)]
pub struct UpConfig {
    /// The folder in which the private servers keep their data.
    #[arg(long, env = "DATA_DIR", default_value = ".data")]
    pub data: PathBuf,

    /// The file that lists the processes.
    #[arg(long, default_value = "Procfile")]
    pub procfile: PathBuf,

    /// The partitions of the log, if it is made: 1 to 64. Default: 1. A log keeps the number with which it was made.
    #[arg(long, value_parser = parse_partition_count)]
    pub partitions: Option<PartitionCount>,

    /// Keep the streams in a private Redis Cluster of three masters and three replicas, on TCP ports of 127.0.0.1.
    #[arg(long)]
    pub redis_cluster: bool,

    /// The port of the api.
    #[arg(long, env = "API_PORT", default_value_t = 5005)]
    pub api_port: u16,

    /// Seconds between two looks at the totals. Without it: 2 on a terminal, and 5 elsewhere.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub summary_every: Option<u64>,

    /// Use these variables of the environment, which lead to servers and accounts that are not started here; for example
    /// DATABASE_URL,REDIS_URL. Without it they are passed over.
    #[arg(long = "use", value_name = "VARIABLES", value_delimiter = ',', value_parser = parse_used)]
    pub used: Vec<String>,

    /// Install the servers that are needed and missing first.
    #[arg(long)]
    pub install: bool,
}

/// Runs the system until SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// Another launcher runs on the same data, the api's port is taken, a server is missing or does not start, the Procfile
/// cannot be read.
pub async fn up(config: UpConfig) -> Result<()> {
    let stop = process::on_signal()?;
    let outside = Outside::new(&config.used);
    ensure!(
        !config.redis_cluster || outside.value("REDIS_URL").is_none(),
        "--redis-cluster starts a cluster, so REDIS_URL has no use: leave it out of --use"
    );
    if config.install {
        let is_given = |name| outside.value(name).is_some();
        install_missing(Needed { postgres: !is_given("DATABASE_URL"), redis: !is_given("REDIS_URL") })?;
    }
    std::fs::create_dir_all(&config.data).with_context(|| format!("creating {}", config.data.display()))?;
    let data = config.data.canonicalize().context("finding the data folder")?;
    // The lock ends with the process, even by a kill. No other launcher uses the data while it is held.
    let _lock = lock(&data.join("lock"))?.with_context(|| {
        format!(
            "another bin/up is running on {}: stop it first (Ctrl-C there), or give this one other data and another \
             port: DATA_DIR=… API_PORT=… bin/up",
            data.display()
        )
    })?;
    let mut register = Register::open(data.join("processes")).await?;
    let text =
        std::fs::read_to_string(&config.procfile).with_context(|| format!("reading {}", config.procfile.display()))?;
    let entries = parse_procfile(&text)?;
    check_port(config.api_port).await?;

    let wanted = Wanted { partitions: config.partitions, is_cluster: config.redis_cluster };
    let servers = tokio::select! {
        servers = Servers::start(&data, &outside, wanted, &mut register) => servers?,
        // A server that was half started is killed, which it survives.
        () = stop.cancelled() => return register.clear(),
    };
    run_everything(&config, &outside, entries, servers, &mut register, stop).await?;
    register.clear()?;
    say("everything has stopped");
    Ok(())
}

async fn run_everything(
    config: &UpConfig,
    outside: &Outside,
    entries: Vec<Entry>,
    servers: Servers,
    register: &mut Register,
    stop: CancellationToken,
) -> Result<()> {
    let names = entries.iter().map(|entry| entry.name.len()).chain(["postgres", "summary"].map(str::len));
    let names = names.chain(servers.private.iter().map(|server| server.name().len()));
    let console = Console::new(names.max().unwrap_or(0));
    let ports = Ports::choose(config.api_port, entries.len(), &config.data);
    let settings = match ports {
        Ok(ports) => settings(config, outside, &servers, &entries, &ports, &console).await.map(|set| (ports, set)),
        Err(error) => Err(error),
    };
    let (ports, environment) = match settings {
        Ok(settings) => settings,
        Err(error) => {
            servers.stop().await;
            return Err(error);
        }
    };
    greet(&servers, outside, &entries, &ports);
    let (started, mut starts) = mpsc::unbounded_channel();
    let (mut processes, mut serving) = (JoinSet::new(), JoinSet::new());
    let side_redis_url = servers.side_redis_url;
    let (summary_index, stop_serving) = (entries.len(), CancellationToken::new());
    for (index, server) in servers.private.into_iter().enumerate() {
        let (index, console) = (summary_index + 1 + index, console.clone());
        serving.spawn(keep_serving(index, server, console, started.clone(), stop_serving.clone()));
    }
    for ((index, entry), port) in entries.into_iter().enumerate().zip(&ports.monitors) {
        let (mut environment, console) = (environment.clone(), console.clone());
        environment.insert("MONITOR_PORT".into(), port.to_string().into());
        if let Some(url) = side_redis_url.as_ref().filter(|_| entry.name == "container") {
            // The keys of its board are in several slots.
            environment.insert("REDIS_URL".into(), url.into());
        }
        processes.spawn(keep_running(index, entry, environment, console, started.clone(), stop.clone()));
    }
    processes.spawn(watch(config.api_port, config.summary_every, summary_index, console, stop));
    loop {
        tokio::select! {
            Some((pid, signal)) = starts.recv() => register.add(pid, signal),
            ended = processes.join_next() => match ended {
                Some(ended) => ended.context("a watcher died")?,
                None => break,
            },
        }
    }
    // The processes have finished the work in hand, for which they needed the servers.
    stop_serving.cancel();
    while let Some(ended) = serving.join_next().await {
        ended.context("a watcher died")?;
    }
    Ok(())
}

/// The ports of one run.
struct Ports {
    api: u16,
    page: String,
    /// One per process.
    monitors: Vec<u16>,
    payments: String,
    container: String,
    notices: String,
    /// No other launcher chooses one of them while this one runs.
    _claimed: Vec<ClaimedPort>,
}

impl Ports {
    fn choose(api: u16, process_count: usize, data: &Path) -> Result<Self> {
        let mut claimed: Vec<ClaimedPort> = ClaimedPort::new(api).into_iter().collect();
        let mut given_or_free = |name: &str, first: u16| -> Result<String> {
            let given = given(name);
            match given.as_ref().map(|port| port.parse()) {
                Some(port) => claimed.extend(port.ok().and_then(ClaimedPort::new)),
                None => claimed.extend(claim_ports(first, 1)?),
            }
            Ok(given.unwrap_or_else(|| claimed.last().expect("it was just claimed").port.to_string()))
        };
        let page = given_or_free("DASHBOARD_PORT", DASHBOARD_PORT)?;
        let payments = given_or_free("PAYMENTS_PORT", PAYMENTS_PORT)?;
        let notices = given_or_free("NOTICES_PORT", port_before(data))?;
        std::fs::write(data.join(NOTICES_PORT_FILE), &notices).context("writing down the port of notices")?;
        let container = given_or_free("CONTAINER_PORT", CONTAINER_PORT)?;
        let monitors = claim_ports(FIRST_MONITOR_PORT, process_count)?;
        let numbers = monitors.iter().map(|claimed| claimed.port).collect();
        claimed.extend(monitors);
        Ok(Self { api, page, monitors: numbers, payments, container, notices, _claimed: claimed })
    }
}

/// The environment of the processes: the launcher's own, with the servers and accounts of this run.
async fn settings(
    config: &UpConfig,
    outside: &Outside,
    servers: &Servers,
    entries: &[Entry],
    ports: &Ports,
    console: &Console,
) -> Result<HashMap<OsString, OsString>> {
    let mut environment = outside.environment();
    let mut set = |name: &str, value: &str| environment.insert(name.into(), value.into());
    set("DATABASE_URL", &servers.database_url);
    set("REDIS_URL", &servers.redis_url);
    if let Some(url) = servers.side_redis_url.as_ref().filter(|_| outside.value("WALLETS_REDIS_URL").is_none()) {
        set("WALLETS_REDIS_URL", url);
    }
    set("API_PORT", &ports.api.to_string());
    set("DASHBOARD_PORT", &ports.page);
    let watched = entries.iter().zip(&ports.monitors).map(|(entry, port)| format!("{}=127.0.0.1:{port}", entry.name));
    set("DASHBOARD_WATCH", &watched.collect::<Vec<_>>().join(","));
    // The buttons of the page may remove the stream, so there are none for the Redis of another owner.
    if given("FAULT_ORDERS").is_none() {
        set("FAULT_ORDERS", if servers.are_private() { "true" } else { "false" });
    }
    if given("RECEIPTS_DIR").is_none() && outside.value("RECEIPTS_SMTP_URL").is_none() {
        set("RECEIPTS_DIR", &config.data.join("receipts").display().to_string());
    }
    if given("PAYMENTS_DATA").is_none() {
        set("PAYMENTS_DATA", &config.data.join("payments").display().to_string());
    }
    set("PAYMENTS_PORT", &ports.payments);
    if outside.value("STRIPE_API_KEY").is_none() {
        set("STRIPE_API_BASE", &format!("http://127.0.0.1:{}", ports.payments));
        set("STRIPE_API_KEY", "sk_test_development");
    }
    set_container(config, outside, ports, |name, value| drop(set(name, value)));
    if console.colours {
        set("FORCE_COLOR", "1");
    }
    Ok(environment)
}

/// The settings of the container and of its receiver of notices, which share a secret.
fn set_container(config: &UpConfig, outside: &Outside, ports: &Ports, mut set: impl FnMut(&str, &str)) {
    set("CONTAINER_PORT", &ports.container);
    set("NOTICES_PORT", &ports.notices);
    for (name, folder) in [("CONTAINER_DATA", "container"), ("NOTICES_DATA", "notices")] {
        if given(name).is_none() {
            set(name, &config.data.join(folder).display().to_string());
        }
    }
    if outside.value("CONTAINER_SPOOL").is_none() {
        set("CONTAINER_SPOOL", &config.data.join("spool").display().to_string());
    }
    if given("NOTICES_SECRET").is_none() {
        set("NOTICES_SECRET", &format!("whsec_{}", STANDARD.encode(rand::random::<[u8; 32]>())));
    }
}

fn greet(servers: &Servers, outside: &Outside, entries: &[Entry], ports: &Ports) {
    let base_url = format!("http://127.0.0.1:{}", ports.api);
    say("Rocket Rides Log is starting. Ctrl-C stops all of it.");
    say(&format!("  watch   http://127.0.0.1:{}", ports.page));
    say(&format!("  api     {base_url}"));
    say(&format!("  ride    curl -d distance=123.0 {base_url}/rides"));
    say(&format!(
        "  book    curl {base_url}/rides -H 'Authorization: user@example.com' -H 'Idempotency-Key: any-20-characters-or-more' \\\n                \
         -d 'origin_lat=52.52&origin_lon=13.405&target_lat=48.8566&target_lon=2.3522'"
    ));
    say(&format!(
        "  wallet  curl -H 'Content-Type: application/json' -d '{{\"amount\": 5}}' {base_url}/wallet/{WALLET}/credit"
    ));
    say(&format!("  totals  curl {base_url}/totals"));
    if entries.iter().any(|entry| entry.name == "container") {
        let url = format!("http://127.0.0.1:{}/manifests", ports.container);
        say(&format!("  store   curl {url} --json '{{\"ride_id\": 1, \"passengers\": [\"Ada\"]}}'"));
    }
    for (entry, port) in entries.iter().zip(&ports.monitors) {
        say(&format!("  health  http://127.0.0.1:{port}/readyz and /metrics: {}", entry.name));
    }
    servers.introduce();
    let passed_over = outside.passed_over();
    if !passed_over.is_empty() {
        say(&format!(
            "  not used  {}: bin/up reaches only what it has started. To use them all: bin/up --use {}",
            passed_over.join(", "),
            passed_over.join(",")
        ));
    }
    say("For another terminal, so that every command of README.md finds this run:");
    say(&format!("  {}", servers.exports(ports.api, &ports.container)));
}

/// The port at which notices were received in the run before. Units that wait are told there: at another port the receiver would
/// pass for another destination, and the container would not start.
fn port_before(data: &Path) -> u16 {
    let before = std::fs::read_to_string(data.join(NOTICES_PORT_FILE)).ok();
    before.and_then(|port| port.trim().parse().ok()).unwrap_or(NOTICES_PORT)
}

fn parse_partition_count(text: &str) -> Result<PartitionCount, String> {
    text.parse()
        .ok()
        .and_then(PartitionCount::new)
        .ok_or_else(|| format!("give a number from 1 to {}", PartitionCount::MAX))
}

async fn check_port(api_port: u16) -> Result<()> {
    match TcpListener::bind(("127.0.0.1", api_port)).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("port {api_port} cannot be used for the api ({error}): set API_PORT to another"),
    }
}

#[cfg(test)]
mod tests {
    use super::{NOTICES_PORT, NOTICES_PORT_FILE, port_before};

    #[test]
    fn notices_are_received_at_the_port_of_the_run_before() {
        let data = std::env::temp_dir().join(format!("up-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&data).unwrap();
        assert_eq!(port_before(&data), NOTICES_PORT);
        std::fs::write(data.join(NOTICES_PORT_FILE), "23456").unwrap();
        assert_eq!(port_before(&data), 23456);
        std::fs::write(data.join(NOTICES_PORT_FILE), "none").unwrap();
        assert_eq!(port_before(&data), NOTICES_PORT);
        std::fs::remove_dir_all(&data).unwrap();
    }
}
