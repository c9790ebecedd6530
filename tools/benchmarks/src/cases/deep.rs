//! `deep`: a backlog of millions is drained as fast as a small backlog, and with no more memory.

use std::time::Duration;

use anyhow::Result;

use crate::bench::Bench;
use crate::load::{drain_consumer, drain_streamer, stage};
use crate::process::Ended;
use crate::redis_load::{self, XADD, XRANGE};
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use crate::tools;

/// The small backlog.
const SMALL: i64 = 100_000;

/// Small backlogs per round, and drains per backlog by a consumer. A small drain takes a tenth of a second, so its figure varies
/// much.
const REPETITIONS: u32 = 3;

/// The name of the small backlog in the report.
const SMALL_NAME: &str = "100,000 records";

/// The figures of a process's drains.
#[derive(Default)]
struct Drains {
    empty_s: Samples,
    small_rate: Samples,
    deep_rate: Samples,
    deep_memory: Samples,
}

impl Drains {
    /// Adds a small drain without the start of the process, which takes a good part of a small drain and almost nothing of a deep
    /// drain. This favours the small backlog in the comparison.
    fn add_small(&mut self, empty: Ended, small: Ended, count: i64) {
        let drained = small.elapsed.saturating_sub(empty.elapsed).max(Duration::from_micros(1));
        self.empty_s.push(empty.elapsed.as_secs_f64());
        self.small_rate.push(count as f64 / drained.as_secs_f64());
    }

    fn add_deep(&mut self, deep: Ended, count: i64) {
        self.deep_rate.push(count as f64 / deep.elapsed.as_secs_f64());
        self.deep_memory.push(deep.memory_peak_mb);
    }

    fn beside_small(&self, row: Row) -> Row {
        row.beside(&format!("{SMALL_NAME}, without the start"), &self.small_rate)
    }

    fn rows(&self, name: &str, deep: &str) -> Vec<Row> {
        vec![
            self.beside_small(Row::new(&format!("{name}, records/s, {deep}"), &self.deep_rate))
                .wanted(Wanted::RatioAtLeast(0.9)),
            Row::new(&format!("{name}, peak memory, MB, {deep}"), &self.deep_memory).wanted(Wanted::AtMost(30.0)),
            Row::new(&format!("{name}, start and exit with nothing to do, s"), &self.empty_s),
        ]
    }
}

/// The figures of Redis alone.
#[derive(Default)]
struct Limit {
    small_rate: Samples,
    deep_rate: Samples,
}

impl Limit {
    fn row(&self, name: &str, deep: &str) -> Row {
        Row::new(&format!("{name}, {deep}"), &self.deep_rate).beside(SMALL_NAME, &self.small_rate)
    }
}

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    tools::redis_benchmark()?;
    let reader = tools::xrange_drain(&bench.folder).await?;
    let (runs, deep_count) = (bench.config.runs, bench.config.deep_records);
    let small_count = SMALL.min(deep_count);
    let small_rounds = REPETITIONS * runs;
    bench.progress.expect(small_rounds + 5);
    let (mut xadd, mut xrange) = (Limit::default(), Limit::default());
    let (mut streamer, mut consumer) = (Drains::default(), Drains::default());
    for round in 1..=small_rounds {
        bench.progress.step(&format!("round {round}: {small_count} records"));
        fresh(bench).await?;
        let idle_streamer = drain_streamer(bench, &[], 0).await?;
        let idle_consumer = bench.start_process("consumer", &["empty", "--drain"])?.succeed().await?;
        bench.fresh_tables().await?;
        let staged = stage(bench, small_count).await?;
        streamer.add_small(idle_streamer, drain_streamer(bench, &[], small_count).await?, small_count);
        bench.checkpoint().await?;
        for _ in 0..REPETITIONS {
            consumer.add_small(idle_consumer, drain_consumer(bench, staged).await?, small_count);
        }
        xrange.small_rate.push(redis_load::xrange(bench, &reader, small_count).await?);
        bench.fresh_redis().await?;
        xadd.small_rate.push(redis_load::xadd(bench, small_count).await?);
    }
    fresh(bench).await?;
    bench.progress.step(&format!("staging {deep_count} records"));
    let staged = stage(bench, deep_count).await?;
    bench.progress.step(&format!("streamer, {deep_count} records"));
    streamer.add_deep(drain_streamer(bench, &[], deep_count).await?, deep_count);
    bench.progress.step(&format!("streamer, {deep_count} records, Redis not rewriting its file"));
    bench.forget_batches().await?;
    bench.fresh_redis().await?;
    bench.rewrite_aof(false).await?;
    let without_rewriting = drain_streamer(bench, &[], deep_count).await?;
    bench.rewrite_aof(true).await?;
    bench.checkpoint().await?;
    bench.progress.step(&format!("consumer, {deep_count} records"));
    for _ in 0..REPETITIONS {
        consumer.add_deep(drain_consumer(bench, staged).await?, deep_count);
    }
    bench.progress.step(&format!("Redis alone, {deep_count} entries"));
    xrange.deep_rate.push(redis_load::xrange(bench, &reader, deep_count).await?);
    fresh(bench).await?;
    xadd.deep_rate.push(redis_load::xadd(bench, deep_count).await?);
    // Frees memory and disk for the next cases.
    fresh(bench).await?;
    let deep = format!("{} records", crate::sample::number(deep_count as f64));
    let mut rate = Samples::default();
    rate.push(deep_count as f64 / without_rewriting.elapsed.as_secs_f64());
    let name = format!("streamer, records/s, {deep}, Redis not rewriting its file");
    let rows = [
        streamer.rows("streamer", &deep),
        vec![streamer.beside_small(Row::new(&name, &rate))],
        vec![xadd.row(XADD, &deep)],
        consumer.rows("consumer", &deep),
        vec![xrange.row(XRANGE, &deep)],
    ];
    Ok(Figures::of(rows.concat())
        .remark(
            "While a stream of millions grows, Redis rewrites its append-only file a dozen times, in a process of its own that \
             takes a part of the two cores; a stream of 100,000 entries is too small for that. Memory is looked at every 20 ms \
             and is the peak that the kernel keeps (VmHWM).",
        ))
}

async fn fresh(bench: &Bench) -> Result<()> {
    bench.fresh_tables().await?;
    bench.fresh_redis().await
}
