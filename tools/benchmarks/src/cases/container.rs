//! `container`: manifests per second into three destinations, beside the least that a container must do for each: sync a file and
//! commit a row. Then latencies at a moderate rate, a destination that swallows everything, and the memory of many large units.

mod limit;
mod memory;
mod outage;
mod service;

use anyhow::Result;

use crate::bench::Bench;
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{Manifests, Wrk};
use service::Service;

/// Connections under load.
const CONNECTIONS: u32 = 64;

/// The length of a small photo, in bytes.
const PHOTO_LEN: usize = 1000;

/// Units per second of the moderate load.
const MODERATE: u64 = 50;

/// Manifests with a small photo, for three destinations.
const LOCAL: Manifests = Manifests { resource: service::LOCAL, photo_len: Some(PHOTO_LEN), rate: None };

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let wrk = Wrk::new(bench)?;
    let seconds = bench.config.seconds;
    let [mut limits, mut rates, mut p50_ms, mut p99_ms] = [const { Samples(Vec::new()) }; 4];
    let [mut commits, mut calm_p50_ms, mut calm_p99_ms] = [const { Samples(Vec::new()) }; 3];
    bench.progress.expect(bench.config.runs * 3 + 4);
    for round in 1..=bench.config.runs {
        bench.progress.step(&format!("round {round}: a synced file and a commit each"));
        bench.fresh_tables().await?;
        limits.push(limit::units_per_s(bench, round).await?);
        bench.progress.step(&format!("round {round}: units"));
        let (service, warmed_up) = Service::start_warm(bench, &wrk).await?;
        let answers = wrk.post_manifests(service.port, CONNECTIONS, seconds, LOCAL).await?;
        commits.push(service.end_local(bench, &[&warmed_up, &answers]).await?);
        rates.push(answers.rate());
        p50_ms.push(answers.p50_ms);
        p99_ms.push(answers.p99_ms);
        bench.progress.step(&format!("round {round}: {MODERATE} units/s"));
        let (service, warmed_up) = Service::start_warm(bench, &wrk).await?;
        let moderate = Manifests { rate: Some(MODERATE), ..LOCAL };
        let answers = wrk.post_manifests(service.port, CONNECTIONS, seconds, moderate).await?;
        service.end_local(bench, &[&warmed_up, &answers]).await?;
        calm_p50_ms.push(answers.p50_ms);
        calm_p99_ms.push(answers.p99_ms);
    }
    let mut rows = vec![
        Row::new("units/s, 64 connections", &rates)
            .beside("a synced file and a commit each", &limits)
            .wanted(Wanted::AtLeast(500.0)),
        Row::new("p50, ms", &p50_ms),
        Row::new("p99, ms", &p99_ms),
        Row::new("transactions a unit", &commits),
        Row::new(&format!("p50, ms, at {MODERATE} units/s"), &calm_p50_ms).wanted(Wanted::AtMost(15.0)),
        Row::new(&format!("p99, ms, at {MODERATE} units/s"), &calm_p99_ms).wanted(Wanted::AtMost(50.0)),
    ];
    rows.extend(outage::measure(bench, &wrk).await?);
    rows.extend(memory::measure(bench).await?);
    Ok(Figures::of(rows)
        .remark(format!(
            "A unit is a document of 10 kB for a table and for Redis, and a photo of {PHOTO_LEN} bytes for a folder. The limit writes \
             a file of the same length, syncs it, and commits a row with the document. Each is measured after it \
             has run for as long."
        ))
        .remark(
            "The destination that swallows everything is a stopped process: it takes connections and answers nothing. The time \
             until all waiting units are delivered includes the pause of the breaker and the time-out of the unit that had gone \
             first.",
        ))
}
