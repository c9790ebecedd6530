//! The processes of 16 partitions while nothing happens.

use std::time::Duration;

use anyhow::Result;

use super::log::CutLog;
use crate::bench::Bench;
use crate::process::Running;
use crate::report::{Row, Wanted};

/// The time before the measurement, in which the processes connect and share the partitions.
const SETTLE: Duration = Duration::from_secs(5);

/// Measures two streamers and three consumers.
pub(super) async fn run(bench: &Bench, log: &CutLog) -> Result<Vec<Row>> {
    let seconds = if bench.config.quick { 5 } else { 30 };
    bench.progress.step(&format!("nothing happens for {seconds} s"));
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(log.start(bench, "streamer", &[], None)?);
    }
    for name in ["consumer0", "consumer1", "consumer2"] {
        running.push(log.start(bench, name, &[name], None)?);
    }
    caught_up(log, &mut running).await?;
    tokio::time::sleep(SETTLE).await;
    let used = |running: &[Running]| running.iter().map(Running::cpu_seconds).sum::<Result<f64>>();
    let before = used(&running)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let percent = 100.0 * (used(&running)? - before) / seconds as f64;
    for process in running {
        process.stop().await?;
    }
    let name = format!("two streamers and three consumers of {} partitions at rest, % of a core", log.partitions);
    Ok(vec![Row::new(&name, &[percent].into()).wanted(Wanted::AtMost(1.0))])
}

/// Waits until the consumers have folded what the log has.
async fn caught_up(log: &CutLog, running: &mut [Running]) -> Result<()> {
    let behind = "-- benchmarks::caught_up
         SELECT count(*) FROM generate_series(0, log_partitions() - 1) AS p, unnest(ARRAY['consumer0', 'consumer1', 'consumer2']) AS n
         WHERE (SELECT last_offset FROM checkpoints AS c WHERE c.name = n AND c.partition = p) IS DISTINCT FROM
               (SELECT max(first_offset + record_count - 1) FROM log_batches AS b WHERE b.partition = p)";
    loop {
        running.iter_mut().try_for_each(Running::check)?;
        if log.client.query_one(behind, &[]).await?.get::<_, i64>(0) == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
