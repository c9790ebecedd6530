//! `streamer`: records per second from Postgres to the stream, beside redis-benchmark with entries of the same shape.

use anyhow::Result;

use crate::bench::Bench;
use crate::load::{drain_streamer, stage};
use crate::redis_load;
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use crate::tools;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    tools::redis_benchmark()?;
    let (runs, count) = (bench.config.runs, bench.config.records);
    bench.progress.expect(runs * 3 + 1);
    bench.progress.step(&format!("staging {count} records"));
    bench.fresh_tables().await?;
    stage(bench, count).await?;
    let [mut limit, mut rate, mut faulty_rate, mut memory] = [const { Samples(Vec::new()) }; 4];
    for round in 1..=runs {
        bench.progress.step(&format!("round {round}: redis-benchmark"));
        bench.fresh_redis().await?;
        limit.push(redis_load::xadd(bench, count).await?);

        bench.progress.step(&format!("round {round}: streamer"));
        fresh(bench).await?;
        let ended = drain_streamer(bench, &[], count).await?;
        rate.push(count as f64 / ended.elapsed.as_secs_f64());
        memory.push(ended.memory_peak_mb);

        bench.progress.step(&format!("round {round}: streamer, one batch in ten sent twice"));
        fresh(bench).await?;
        let seed = round.to_string();
        let ended = drain_streamer(bench, &["--fault-rate", "0.1", "--fault-seed", &seed], count).await?;
        faulty_rate.push(count as f64 / ended.elapsed.as_secs_f64());
    }
    Ok(Figures::of(vec![
        Row::new("records/s", &rate).beside(redis_load::XADD, &limit).wanted(Wanted::RatioAtLeast(0.5)),
        Row::new("records/s, 10 % of the batches sent twice", &faulty_rate)
            .beside(redis_load::XADD, &limit)
            .wanted(Wanted::RatioAtLeast(0.45)),
        Row::new("peak memory, MB", &memory),
    ])
    .remark("The streamer is timed from its start to its exit: it connects, fixes the order and publishes."))
}

async fn fresh(bench: &Bench) -> Result<()> {
    bench.forget_batches().await?;
    bench.fresh_redis().await
}
