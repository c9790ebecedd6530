//! `partitions`: the cost of a record in a log of 1, 8 and 16 partitions on one Redis server; the processes of 16 partitions at
//! rest; and a cluster of three nodes beside one node, each held to a fifth of a core.
//!
//! Partitions cannot add throughput on a machine whose cores are busy already. The processor time per record says what more
//! machines would carry.

mod log;
mod nodes;
mod rest;

use anyhow::Result;

use crate::bench::Bench;
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;
use log::{CutLog, Drained};

/// The logs that are compared with that of one partition.
const COUNTS: [i32; 3] = [1, 8, 16];

/// The figures of one log.
#[derive(Default)]
struct Measured {
    streamer_rate: Samples,
    consumer_rate: Samples,
    streamer_us: Samples,
    consumer_us: Samples,
}

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let (runs, count) = (bench.config.runs, bench.config.records);
    bench.progress.expect(runs * (2 * COUNTS.len() as u32 + 2) + COUNTS.len() as u32 + 1);
    let mut logs = Vec::new();
    for partitions in COUNTS {
        bench.progress.step(&format!("staging {count} records in {partitions} partitions"));
        let log = CutLog::make(bench, partitions).await?;
        log.stage(count).await?;
        logs.push((log, Measured::default()));
    }
    for round in 1..=runs {
        for (log, measured) in &mut logs {
            measure(bench, log, measured, round, count).await?;
        }
    }
    let mut rows = rows(&logs);
    rows.extend(nodes::run(bench, &logs[1].0, count).await?);
    rows.extend(rest::run(bench, &logs[2].0).await?);
    Ok(Figures::of(rows).remark(
        "Processor time is that of the process, of Postgres and of Redis together, from the start of the process to its exit. \
         Streamer and consumers work alone, one after another.",
    ))
}

async fn measure(bench: &Bench, log: &CutLog, measured: &mut Measured, round: u32, count: i64) -> Result<()> {
    let partitions = log.partitions;
    bench.progress.step(&format!("round {round}: streamer of {partitions}"));
    log.forget_batches().await?;
    bench.fresh_redis().await?;
    let Drained { seconds, cpu_seconds } = log.drain(bench, "streamer", &["--drain"]).await?;
    measured.streamer_rate.push(count as f64 / seconds);
    measured.streamer_us.push(cpu_seconds * 1e6 / count as f64);

    bench.progress.step(&format!("round {round}: consumer of {partitions}"));
    let Drained { seconds, cpu_seconds } = log.drain(bench, "consumer", &["drained", "--drain"]).await?;
    log.check_consumer("drained", count).await?;
    measured.consumer_rate.push(count as f64 / seconds);
    measured.consumer_us.push(cpu_seconds * 1e6 / count as f64);
    Ok(())
}

fn rows(logs: &[(CutLog, Measured)]) -> Vec<Row> {
    let one = &logs[0].1;
    let mut rows = Vec::new();
    for (log, measured) in logs {
        let partitions = log.partitions;
        let row = |figure: &str, samples: &Samples, of_one: &Samples, wanted| {
            let row = Row::new(&format!("{figure}, {partitions} partition(s)"), samples);
            if partitions == 1 { row } else { row.beside("1 partition", of_one).wanted(wanted) }
        };
        rows.extend([
            row("streamer, records/s", &measured.streamer_rate, &one.streamer_rate, Wanted::RatioAtLeast(0.95)),
            row("consumer, records/s", &measured.consumer_rate, &one.consumer_rate, Wanted::RatioAtLeast(0.95)),
            row(
                "streamer, µs of processor a record",
                &measured.streamer_us,
                &one.streamer_us,
                Wanted::RatioAtMost(1.1),
            ),
            row(
                "consumer, µs of processor a record",
                &measured.consumer_us,
                &one.consumer_us,
                Wanted::RatioAtMost(1.1),
            ),
        ]);
    }
    rows
}
