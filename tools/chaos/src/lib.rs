//! Tries to break the pipeline. The real binaries run on private servers, under load. Faults strike from a seed, several at
//! once. A checker reads the log all the time and compares each consumer with it at every offset, and the history too.
//!
//! ```text
//! clients ──▶ apis × 2 ┐                                     ┌─ checker: folds the log by itself,
//!                      ├── proxies ──▶ PostgreSQL, Redis ◀───┤  compares every consumer at its offset
//! streamers × 2 ───────┤                                     └─ late transactions, by SQL
//! containers × 2 ──────┤
//! consumers × 3, history, wallets; reaper
//! ```
//!
//! The seed decides which faults strike which process, in which order and for how long. The scheduling of the processes is
//! not fixed: the same seed gives the same plan, not the same run.

mod archive;
mod bookings;
mod checker;
mod cluster;
mod container;
mod fault;
mod fleet;
mod history;
mod ledger;
mod log;
mod manifest_ledger;
mod manifests;
mod promises;
mod proxy;
mod servers;
mod strike_cluster;
mod strike_network;
mod strike_postgres;
mod strike_process;
mod strike_redis;
mod traffic;
mod unit_checks;
mod unit_records;
mod unit_stores;
mod wallet_checks;
mod wallet_model;
mod wallet_records;
mod wallets;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use common::shutdown::CancellationToken;
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use checker::Checker;
use cluster::Cluster;
pub use fault::Fault;
use history::History;
use log::Sum;
use world::World;

/// Faults at once. With more of them, too few processes run that could break.
const FAULTS_AT_ONCE: usize = 3;

/// Clients of the apis that post rides.
const CLIENTS: u32 = 8;

/// Clients that book rides, and the pause between two bookings of a client.
const BOOKING_CLIENTS: u64 = 4;
const BOOKING_PAUSE: Duration = Duration::from_millis(200);

/// Clients that change wallets, clients that read them, and the pause between two requests of a client.
const WALLET_CLIENTS: u64 = 6;
const WALLET_READERS: u64 = 4;
const WALLET_PAUSE: Duration = Duration::from_millis(100);

/// Clients of the containers, and the pause between two manifests of a client.
const FILING_CLIENTS: u64 = 4;
const FILING_PAUSE: Duration = Duration::from_millis(200);

/// Breaks a running pipeline from a seed, and checks all the time that nothing is lost.
#[derive(Debug, Clone, Parser)]
#[command(name = "chaos", version)]
pub struct Config {
    /// How many faults strike.
    #[arg(long, default_value_t = 100)]
    pub faults: usize,

    /// The seed of the plan. Without it one is drawn and printed.
    #[arg(long)]
    pub seed: Option<u64>,

    /// Only these faults, separated by commas.
    #[arg(long, value_delimiter = ',', conflicts_with = "without")]
    pub only: Vec<Fault>,

    /// All faults but these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub without: Vec<Fault>,

    /// Rides per second.
    #[arg(long, default_value_t = 300)]
    pub rate: u32,

    /// Consumers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    pub consumers: u8,

    /// A log of eight partitions on a Redis Cluster of six nodes, which fail, too.
    #[arg(long)]
    pub redis_cluster: bool,

    /// The longest pause between two faults; the mean is half of it.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub pause: Duration,

    /// How long convergence may take after the last fault. A receipt that a killed process had in hand is delivered after a
    /// minute, and a unit of a container after a minute and a half.
    #[arg(long, default_value = "4m", value_parser = humantime::parse_duration)]
    pub settle: Duration,

    /// The folder of the servers and logs. It is removed at the end unless an invariant was violated.
    #[arg(long, default_value = ".data/chaos")]
    pub data: PathBuf,

    /// Keep the data even if no invariant was violated.
    #[arg(long)]
    pub keep: bool,
}

/// Runs the whole plan. Returns `false` if an invariant was violated; the violation and the history are printed.
///
/// # Errors
/// A server or a binary is missing, or the plan is empty.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<bool> {
    let seed = config.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    let plan = plan(&config, seed)?;
    let folder = empty_folder(&config.data, seed)?;
    let style = ProgressStyle::with_template("{elapsed} {wide_bar} {pos}/{len} faults {msg}").context("the bar")?;
    let bar = ProgressBar::new(plan.len() as u64).with_style(style);
    let history = Arc::new(History::create(&folder.join("history.log"), bar.clone())?);
    history.tell(&format!("seed {seed}, {} faults, data in {}", plan.len(), folder.display()));
    if let (_, Some(left_out)) = Fault::available() {
        history.tell(left_out);
    }
    let cluster = if config.redis_cluster { Some(Cluster::start(&folder.join("cluster")).await?) } else { None };
    let with_clock = plan.contains(&Fault::RedisClock);
    let world = World::start(&folder, config.consumers.into(), with_clock, cluster, &history).await?;
    history.tell(&format!("to watch: psql '{}'", world.postgres_url));
    history.tell(&format!("to watch: redis-cli -s '{}'", world.redis.lock().await.socket().display()));
    let started_at = Instant::now();
    let stop = CancellationToken::new();
    let mut clients = start_clients(&world, &config, seed, &stop);
    let (stop_checking, stop_watching) = (CancellationToken::new(), CancellationToken::new());
    let watching = tokio::spawn(wallet_model::watch(Arc::clone(&world), stop_watching.clone()));
    let checker = tokio::spawn(Checker::start(&world, world.partitions()).await?.watch(stop_checking.clone()));
    let counts = tokio::select! {
        counts = strike_all(&world, &config, &plan, seed, &bar) => counts?,
        () = history.violated() => BTreeMap::new(),
        () = shutdown.cancelled() => bail!("interrupted; the data is in {}", folder.display()),
    };
    stop.cancel();
    while clients.join_next().await.is_some() {}
    // Nothing may change while consumers and SQL are compared: from here on no client writes a ride.
    world.late_ones_end().await;
    stop_checking.cancel();
    let mut checker = checker.await.context("the checker died")?;
    let settling_at = Instant::now();
    let agreed = if history.verdict().0.is_empty() { checker.settle(config.settle).await? } else { Sum::default() };
    let settled = settling_at.elapsed();
    stop_watching.cancel();
    watching.await.context("the watch of Redis died")?;
    if history.verdict().0.is_empty() {
        world.audit().await?;
    }
    world.stop().await?;
    bar.finish_and_clear();
    if print_violations(&history, seed, &folder) {
        return Ok(false);
    }
    print_summary(&world, &counts);
    println!(
        "no violation: seed {seed}, {} faults in {:.0} s; {} rides, {} mm, head {}, all consumers equal {:.1} s after the last",
        counts.values().sum::<usize>(),
        started_at.elapsed().as_secs_f64(),
        agreed.ride_count,
        agreed.total_distance_mm,
        checker.head(),
        settled.as_secs_f64()
    );
    if !config.keep {
        remove(&folder)?;
    }
    Ok(true)
}

/// The folder of this seed, without the data of an earlier run.
fn empty_folder(data: &Path, seed: u64) -> Result<PathBuf> {
    let folder = data.join(seed.to_string());
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}

/// Starts the clients that post and book rides, change and read wallets, and file manifests, until `stop`.
fn start_clients(world: &Arc<World>, config: &Config, seed: u64, stop: &CancellationToken) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    let pause = Duration::from_secs(1) * CLIENTS / config.rate.max(1);
    for client in 0..CLIENTS {
        clients.spawn(traffic::post_rides(Arc::clone(world), pause, seed + u64::from(client), stop.clone()));
    }
    for client in 0..BOOKING_CLIENTS {
        let seed = seed + 1000 + client;
        clients.spawn(bookings::book_rides(Arc::clone(world), BOOKING_PAUSE, seed, stop.clone()));
    }
    for client in 0..WALLET_CLIENTS {
        let seed = seed + 2000 + client;
        clients.spawn(wallets::command_wallets(Arc::clone(world), WALLET_PAUSE, seed, stop.clone()));
    }
    for client in 0..WALLET_READERS {
        let seed = seed + 3000 + client;
        clients.spawn(wallets::read_wallets(Arc::clone(world), WALLET_PAUSE, seed, stop.clone()));
    }
    for client in 0..FILING_CLIENTS {
        let seed = seed + 4000 + client;
        clients.spawn(manifests::file_manifests(Arc::clone(world), FILING_PAUSE, seed, stop.clone()));
    }
    clients
}

/// Prints all violations and the end of the history. Returns whether there are any.
fn print_violations(history: &History, seed: u64, folder: &Path) -> bool {
    let (violations, tail) = history.verdict();
    if violations.is_empty() {
        return false;
    }
    tail.iter().for_each(|line| println!("{line}"));
    violations.iter().for_each(|violation| println!("VIOLATION {violation}"));
    println!("seed {seed}; servers' data and logs of all processes are kept in {}", folder.display());
    true
}

/// A plan with every fault equally often, in an order that the seed decides.
fn plan(config: &Config, seed: u64) -> Result<Vec<Fault>> {
    let (mut kinds, _) = Fault::available();
    if config.redis_cluster {
        kinds.extend(Fault::OF_CLUSTER);
    }
    kinds.retain(|fault| !config.without.contains(fault) && (config.only.is_empty() || config.only.contains(fault)));
    if kinds.is_empty() {
        bail!("no fault is left: change --only or --without");
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut plan = Vec::with_capacity(config.faults + kinds.len());
    while plan.len() < config.faults {
        kinds.shuffle(&mut rng);
        plan.extend(&kinds);
    }
    plan.truncate(config.faults);
    Ok(plan)
}

/// Strikes with every fault of the plan. Returns how often each fault struck.
async fn strike_all(
    world: &Arc<World>,
    config: &Config,
    plan: &[Fault],
    seed: u64,
    bar: &ProgressBar,
) -> Result<BTreeMap<Fault, usize>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut counts = BTreeMap::new();
    let mut striking = JoinSet::new();
    for (number, fault) in plan.iter().copied().enumerate() {
        while striking.len() >= FAULTS_AT_ONCE {
            collect(&mut striking, &mut counts, bar).await?;
        }
        tokio::time::sleep(config.pause.mul_f64(rng.random_range(0.0..1.0))).await;
        let (world, mut rng) = (Arc::clone(world), StdRng::seed_from_u64(rng.random()));
        striking.spawn(async move {
            world.history.note(&format!("#{} {} begins", number + 1, fault.name()));
            // Another fault may prevent this one for a moment.
            for _ in 0..50 {
                match fault.strike(&world, &mut rng).await {
                    Ok(detail) => {
                        world.history.tell(&format!("#{} {} {detail}", number + 1, fault.name()));
                        return Ok(fault);
                    }
                    Err(error) => world.history.note(&format!("#{} {}: {error:#}", number + 1, fault.name())),
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            bail!("{} could not be struck; see history.log", fault.name())
        });
    }
    while !striking.is_empty() {
        collect(&mut striking, &mut counts, bar).await?;
    }
    Ok(counts)
}

async fn collect(
    striking: &mut JoinSet<Result<Fault>>,
    counts: &mut BTreeMap<Fault, usize>,
    bar: &ProgressBar,
) -> Result<()> {
    if let Some(struck) = striking.join_next().await {
        *counts.entry(struck.context("a fault died")??).or_default() += 1;
        bar.inc(1);
    }
    Ok(())
}

fn print_summary(world: &World, counts: &BTreeMap<Fault, usize>) {
    for (fault, count) in counts {
        println!("{count:6} {}", fault.name());
    }
    let promises = &world.promises;
    println!(
        "{} rides booked, {} confirmed, {} of unknown fate, {} refused",
        promises.booked.lock().map_or(0, |booked| booked.len()),
        promises.confirmed.lock().map_or(0, |confirmed| confirmed.len()),
        promises.unknown_count.load(Ordering::Relaxed),
        promises.refused_count.load(Ordering::Relaxed)
    );
    println!("{}", world.wallets.ledger);
    println!("{}", world.containers.ledger);
}

fn remove(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))
}
