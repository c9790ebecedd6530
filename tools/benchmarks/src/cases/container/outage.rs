//! A destination takes connections and answers nothing. Units that do not need it go on, and those that need it wait.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::service::{self, Service};
use super::{CONNECTIONS, LOCAL, MODERATE};
use crate::bench::Bench;
use crate::report::{Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{Manifests, Wrk};

/// Each of the two loads that are compared takes so many times as long as another load. The outage takes about a minute.
const LONGER: u64 = 4;

/// Units that wait at its end, at least.
const WAITING_COUNT: u64 = 1000;

/// Connections of the units that need the destination.
const TOLD_CONNECTIONS: u32 = 8;

/// How long the breaker may take to open: several units must fail, and each attempt has a time-out.
const OPEN_WAIT: Duration = Duration::from_secs(60);

/// Measures the load that does not need the destination before the outage and during it, the responses to the other load, and the
/// time until its units are delivered.
///
/// # Errors
/// A process failed, or units were lost.
pub(super) async fn measure(bench: &Bench, wrk: &Wrk) -> Result<Vec<Row>> {
    let seconds = bench.config.seconds * if bench.config.quick { 1 } else { LONGER };
    let mut service = Service::start(bench).await?;
    bench.progress.step(&format!("all destinations respond, for {seconds} s"));
    let before = wrk.post_manifests(service.port, CONNECTIONS, seconds, LOCAL).await?;
    service.settle(bench).await?;
    service.notices.signal(Signal::SIGSTOP)?;
    open_breaker(&service).await?;
    let waiting_s = WAITING_COUNT.div_ceil(MODERATE);
    bench.progress.step(&format!("a destination swallows everything, for {} s", waiting_s + seconds));
    let told = Manifests { resource: service::TOLD, photo_len: None, rate: Some(MODERATE) };
    let told = wrk.post_manifests(service.port, TOLD_CONNECTIONS, waiting_s, told).await?;
    ensure!(told.accepted_count() == 0, "{} units were told during the outage", told.accepted_count());
    let during = wrk.post_manifests(service.port, CONNECTIONS, seconds, LOCAL).await?;
    ensure!(before.error_count + during.error_count == 0, "units that do not need the destination failed");
    bench.progress.step("the destination is back");
    let waiting_count = bench.number("SELECT count(*) FROM units WHERE settled_at IS NULL").await?;
    service.notices.signal(Signal::SIGCONT)?;
    let repaired_at = Instant::now();
    service.settle(bench).await?;
    let delivered_s = repaired_at.elapsed().as_secs_f64();
    let refused = bench.number("SELECT count(*) FROM units WHERE state <> 'committed'").await?;
    ensure!(refused == 0, "{refused} units are not committed");
    service.stop().await?;
    let one = |value: f64| Samples(vec![value]);
    Ok(vec![
        Row::new("units/s that do not need the destination", &one(during.rate()))
            .beside("before", &one(before.rate()))
            .wanted(Wanted::RatioAtLeast(0.9)),
        Row::new("p50, ms, 503 for units that need it", &one(told.p50_ms)),
        Row::new("p99, ms, 503 for units that need it", &one(told.p99_ms)).wanted(Wanted::AtMost(20.0)),
        Row::new(&format!("{waiting_count} waiting units delivered, s"), &one(delivered_s))
            .wanted(Wanted::AtMost(15.0)),
    ])
}

/// Posts units until one is told to wait before an attempt is begun.
async fn open_breaker(service: &Service) -> Result<()> {
    let deadline = Instant::now() + OPEN_WAIT;
    loop {
        let posting = (0..TOLD_CONNECTIONS).map(|_| post(service));
        let responses = futures_util::future::try_join_all(posting).await?;
        if responses.iter().all(|response| response.headers().contains_key("retry-after")) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the breaker does not open");
    }
}

async fn post(service: &Service) -> Result<reqwest::Response> {
    let url = format!("http://127.0.0.1:{}/{}", service.port, service::TOLD);
    let document = r#"{"ride_id":1,"passengers":[]}"#;
    let request = reqwest::Client::new().post(url).header("content-type", "application/json").body(document);
    request.send().await.context("posting a manifest")
}
