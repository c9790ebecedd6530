//! The traffic of wallets: workers that read, and workers that credit, debit and transfer, each one request after another on a
//! connection that stays open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::backoff::Backoff;
use common::shutdown::sleep_or_stop;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::end::End;
use crate::meter::Meter;
use crate::summary::Summary;
use crate::traffic::REFUSED_WAIT_MAX;
use crate::wallet_command::{WALLET_RESPONSE_WAIT, WalletCommand};

/// New wallets for one run.
const WALLET_COUNT: usize = 10;

/// The reads, by their paths below the wallet. Most clients ask for the balance.
const READS: [&str; 5] = ["/balance", "/balance", "/balance", "", "/transactions"];

/// The share of commands with a key that are sent a second time. The api gives them the first response.
const REPEAT_RATE: f64 = 0.2;

/// Seeds of the workers that write: far from those that post rides and those that read.
const WRITER_SEED: u64 = 1 << 32;
const READER_SEED: u64 = 1 << 33;

/// The state that all workers share.
pub(crate) struct WalletTraffic {
    client: Client,
    base_url: String,
    period: Duration,
    end: Arc<End>,
    reads: Meter,
    writes: Meter,
}

/// The wallets of a run.
struct Wallets {
    /// Those that are read and written.
    targets: Vec<String>,
    /// Those that receive transfers.
    receivers: Vec<String>,
}

impl WalletTraffic {
    /// Traffic as the flags say, against the api at `base_url`, until the `end`.
    pub fn new(config: &Config, client: Client, base_url: String, end: Arc<End>) -> Self {
        Self { client, base_url, period: config.period, end, reads: Meter::new(), writes: Meter::new() }
    }

    /// Reads and writes until the end. Returns the summaries of reads and of writes, each if there were workers for them.
    ///
    /// # Errors
    /// A worker panicked.
    pub async fn run(self, config: &Config, seed: u64) -> Result<(Option<Summary>, Option<Summary>)> {
        let (readers, writers) = (u64::from(config.wallet_reads), u64::from(config.wallet_writes));
        if readers + writers == 0 {
            return Ok((None, None));
        }
        let traffic = Arc::new(self);
        let own = traffic.new_wallets().await;
        let targets = config.wallet.clone().map_or_else(|| own.clone(), |wallet| vec![wallet]);
        let wallets = Arc::new(Wallets { targets, receivers: own });
        let (started_at, mut workers) = (Instant::now(), JoinSet::new());
        for worker in 0..readers {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(READER_SEED + worker));
            workers.spawn(Arc::clone(&traffic).read(Arc::clone(&wallets), rng));
        }
        for worker in 0..writers {
            let rng = StdRng::seed_from_u64(seed.wrapping_add(WRITER_SEED + worker));
            workers.spawn(Arc::clone(&traffic).write(Arc::clone(&wallets), rng));
        }
        let printer = tokio::spawn(Arc::clone(&traffic).print_every_second());
        while let Some(ended) = workers.join_next().await {
            ended.context("a worker died")?;
        }
        printer.abort();
        let summary = |meter: &Meter, workers| (workers > 0).then(|| meter.summary(started_at));
        Ok((summary(&traffic.reads, readers), summary(&traffic.writes, writers)))
    }

    /// Asks the api for new wallets until it gives them. There are fewer if the traffic ends meanwhile.
    async fn new_wallets(&self) -> Vec<String> {
        let (mut wallets, mut backoff) = (Vec::new(), Backoff::up_to(REFUSED_WAIT_MAX));
        while wallets.len() < WALLET_COUNT && !self.end.stop.is_cancelled() {
            let request = self.client.post(format!("{}/wallets", self.base_url)).timeout(WALLET_RESPONSE_WAIT);
            let response = send(request).await;
            let body = response.as_ref().map_or("", |(_, body)| body);
            match serde_json::from_str::<Value>(body).ok().and_then(|body| Some(body["id"].as_str()?.to_owned())) {
                Some(wallet) => wallets.push(wallet),
                None => {
                    self.writes.count(&response, Duration::ZERO);
                    sleep_or_stop(backoff.next_wait(), &self.end.stop).await;
                }
            }
        }
        wallets
    }

    async fn read(self: Arc<Self>, wallets: Arc<Wallets>, mut rng: StdRng) {
        let mut backoff = Backoff::up_to(REFUSED_WAIT_MAX);
        while !wallets.targets.is_empty() && self.end.may_start() {
            let (wallet, read) = (pick(&wallets.targets, &mut rng), READS[rng.random_range(0..READS.len())]);
            let url = format!("{}/wallet/{wallet}{read}", self.base_url);
            self.measure(&self.reads, self.client.get(url).timeout(WALLET_RESPONSE_WAIT), &mut backoff).await;
        }
    }

    async fn write(self: Arc<Self>, wallets: Arc<Wallets>, mut rng: StdRng) {
        let mut backoff = Backoff::up_to(REFUSED_WAIT_MAX);
        while !wallets.targets.is_empty() && self.end.may_start() {
            let command = WalletCommand::random(pick(&wallets.targets, &mut rng), &wallets.receivers, &mut rng);
            let is_repeated = rng.random_bool(REPEAT_RATE) && command.key.is_some();
            self.measure(&self.writes, command.request(&self.client, &self.base_url), &mut backoff).await;
            if is_repeated && self.end.may_start() {
                self.measure(&self.writes, command.request(&self.client, &self.base_url), &mut backoff).await;
            }
        }
    }

    /// Sends a request, counts the response, and pauses.
    async fn measure(&self, meter: &Meter, request: RequestBuilder, backoff: &mut Backoff) {
        let sent_at = Instant::now();
        let response = send(request).await;
        meter.count(&response, sent_at.elapsed());
        let status = response.map_or(0, |(status, _)| status);
        monitor::counter!("rocket_rides_answers_total", "status" => status.to_string()).increment(1);
        if matches!(status, 0 | 503) {
            // The api is away, or overloaded: a good client waits before its next request.
            sleep_or_stop(backoff.next_wait(), &self.end.stop).await;
        } else {
            backoff.reset();
        }
        if !self.period.is_zero() {
            sleep_or_stop(self.period, &self.end.stop).await;
        }
    }

    async fn print_every_second(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let (reads, writes) = (self.reads.next_second(), self.writes.next_second());
            println!("{} requests per second ({reads} reads, {writes} writes)", reads + writes);
        }
    }
}

fn pick<'a>(wallets: &'a [String], rng: &mut StdRng) -> &'a str {
    &wallets[rng.random_range(0..wallets.len())]
}

async fn send(request: RequestBuilder) -> Result<(u16, String)> {
    let response = request.send().await.context("asking the api")?;
    let status = response.status().as_u16();
    Ok((status, response.text().await.context("reading the response")?))
}
