//! `consumer`: records per second from the stream to a committed state, beside a reader that ignores the entries.

use anyhow::Result;

use crate::bench::Bench;
use crate::load::{Staged, check_consumer, drain_consumer, drain_streamer, stage};
use crate::redis_load;
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use crate::tools;

/// Consumers at once.
const NAMES: [&str; 3] = ["consumer0", "consumer1", "consumer2"];

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let reader = tools::xrange_drain(&bench.folder).await?;
    let (runs, count) = (bench.config.runs, bench.config.records);
    bench.progress.expect(runs * 3 + 1);
    bench.progress.step(&format!("staging and publishing {count} records"));
    bench.fresh_tables().await?;
    bench.fresh_redis().await?;
    let staged = stage(bench, count).await?;
    drain_streamer(bench, &[], count).await?;
    let [mut limit, mut rate, mut rate_of_three, mut memory] = [const { Samples(Vec::new()) }; 4];
    for round in 1..=runs {
        bench.progress.step(&format!("round {round}: a bare reader"));
        limit.push(redis_load::xrange(bench, &reader, count).await?);
        bench.progress.step(&format!("round {round}: consumer"));
        bench.checkpoint().await?;
        let ended = drain_consumer(bench, staged).await?;
        rate.push(count as f64 / ended.elapsed.as_secs_f64());
        memory.push(ended.memory_peak_mb);
        bench.progress.step(&format!("round {round}: three consumers"));
        bench.checkpoint().await?;
        rate_of_three.push(drain_three(bench, staged).await?);
    }
    Ok(Figures::of(vec![
        Row::new("records/s", &rate).beside(redis_load::XRANGE, &limit).wanted(Wanted::RatioAtLeast(0.4)),
        Row::new("records/s, three consumers together", &rate_of_three).beside("one consumer", &rate),
        Row::new("peak memory, MB", &memory),
    ])
    .remark(
        "The consumer is timed from its start to its exit, the bare reader from its first request to its last answer.",
    ))
}

async fn drain_three(bench: &Bench, staged: Staged) -> Result<f64> {
    let mut running = Vec::new();
    for name in NAMES {
        running.push(bench.start_consumer(name, &["--drain"])?);
    }
    let ended = futures_util::future::try_join_all(running.into_iter().map(crate::process::Running::succeed)).await?;
    for name in NAMES {
        check_consumer(bench, name, staged).await?;
    }
    let slowest = ended.iter().map(|ended| ended.elapsed).max().unwrap_or_default();
    Ok((staged.count * NAMES.len() as i64) as f64 / slowest.as_secs_f64())
}
