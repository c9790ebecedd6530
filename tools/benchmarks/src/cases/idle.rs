//! `idle`: CPU and memory of the processes while nothing happens.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::Bench;
use crate::fleet::{Fleet, cpu_percent};
use crate::report::{Figures, Row, Wanted};

/// The time before the measurement, in which the processes connect and finish their first work.
const SETTLE: Duration = Duration::from_secs(3);

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    bench.progress.expect(1);
    let seconds = if bench.config.quick { 5 } else { 20 };
    bench.progress.step(&format!("nothing happens for {seconds} s"));
    let mut fleet = Fleet::start(bench, Some(&[])).await?;
    tokio::time::sleep(SETTLE).await;
    let (before, started_at) = (fleet.cpu_times(bench)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let percents = cpu_percent(&before, &fleet.cpu_times(bench)?, started_at.elapsed())?;
    let memory = fleet.memory_mb()?;
    fleet.check()?;
    fleet.stop().await?;
    let mut rows = Vec::new();
    for (name, percent) in percents {
        let row = Row::new(&format!("{name}, % of a core"), &[percent].into());
        let is_ours = memory.iter().any(|(other, _)| *other == name);
        rows.push(if is_ours { row.wanted(Wanted::AtMost(1.0)) } else { row });
    }
    for (name, megabytes) in memory {
        rows.push(Row::new(&format!("{name}, memory, MB"), &[megabytes].into()).wanted(Wanted::AtMost(30.0)));
    }
    Ok(Figures::of(rows).remark("Time is counted in ticks of 10 ms, so a tick is 0.05 % of 20 s."))
}
