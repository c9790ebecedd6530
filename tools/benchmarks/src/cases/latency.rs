//! `latency`: the time from staging in the api to the commit of all three consumers, while everything runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;

use crate::bench::Bench;
use crate::fleet::{CONSUMERS, Fleet};
use crate::pgbench::{self, ONE_STATEMENT};
use crate::report::{Figures, Row, Wanted};
use crate::sample::{Samples, number};
use crate::tools;

/// Rides per second.
const RATE: u32 = 1000;

/// So few rides per second that each meets an idle pipeline.
const CALM_RATE: u32 = 20;

/// Records of the first seconds are not counted.
const WARM_UP_S: u64 = 3;

/// The width of the longest bar of the drawing.
const BAR_LEN: f64 = 50.0;

/// By offset of a committed record: when it was staged, and when the response to the commit came; in µs.
type Times = HashMap<i64, (i64, i64)>;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let seconds = bench.config.seconds * 4;
    let runs = bench.config.runs.min(3);
    tools::pgbench(&bench.binaries.folder)?;
    bench.progress.expect(runs * 3);
    let mut commit_ms = Samples::default();
    let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
    let mut figures: Vec<Samples> = vec![Samples::default(); quantiles.len()];
    let (mut rates, mut calm, mut of_all) = (Samples::default(), Samples::default(), histogram()?);
    for round in 1..=runs {
        bench.progress.step(&format!("round {round}: pgbench, one statement, 1 client"));
        bench.fresh_tables().await?;
        commit_ms.push(pgbench::run(bench, ONE_STATEMENT, 1).await?.latency_ms);
        bench.progress.step(&format!("round {round}: {RATE} rides/s for {seconds} s"));
        let (latencies, rate) = measure(bench, RATE, seconds).await?;
        rates.push(rate);
        for (samples, (_, quantile)) in figures.iter_mut().zip(quantiles) {
            samples.push(latencies.value_at_quantile(quantile) as f64 / 1000.0);
        }
        of_all.add(&latencies).context("adding up latencies")?;
        bench.progress.step(&format!("round {round}: {CALM_RATE} rides/s for {seconds} s"));
        let (latencies, _) = measure(bench, CALM_RATE, seconds).await?;
        calm.push(latencies.value_at_quantile(0.5) as f64 / 1000.0);
    }
    let commit = "a commit of one statement, by pgbench";
    let mut rows: Vec<Row> = std::iter::zip(quantiles, &figures)
        .map(|((name, _), samples)| {
            let row = Row::new(&format!("{name}, ms, staged to committed in all three"), samples);
            match name {
                "p50" => row.beside(commit, &commit_ms).wanted(Wanted::AtMost(3.0)),
                "p99" => row.wanted(Wanted::AtMost(15.0)),
                _ => row,
            }
        })
        .collect();
    rows.push(Row::new(&format!("rides/s reached, of {RATE}"), &rates));
    rows.push(Row::new(&format!("p50, ms, at {CALM_RATE} rides/s"), &calm).beside(commit, &commit_ms));
    Ok(Figures::of(rows)
        .remark(
            "A record's staged_at is taken before the api commits, so the figures include the api's commit; they end when \
             the COMMIT of the slowest of three consumers was answered. Both clocks are this machine's.",
        )
        .drawing(drawing(&of_all)))
}

/// One run. Returns the latencies in µs, and the rate of the counted records.
async fn measure(bench: &Bench, rate: u32, seconds: u64) -> Result<(Histogram<u64>, f64)> {
    let mut fleet = Fleet::start_without_consumers(bench).await?;
    let paths: Vec<PathBuf> = CONSUMERS.iter().map(|name| bench.folder.join(format!("{name}.times"))).collect();
    for (name, path) in CONSUMERS.iter().zip(&paths) {
        let path = path.display().to_string();
        fleet.add(bench.start_myself(name, &["timed-consumer", name, "--times", &path])?);
    }
    fleet.wait_for_consumers(bench).await?;
    let (port, duration) = (fleet.port.to_string(), format!("{}s", seconds + WARM_UP_S));
    let rate = rate.to_string();
    let traffic = ["--api-port", &port, "--rate", &rate, "--concurrency", "16", "--duration", &duration];
    bench.start_process("simulator", &traffic)?.succeed().await?;
    fleet.wait_until_caught_up(bench).await?;
    fleet.stop().await?;
    let [first, second, third] = [read(&paths[0])?, read(&paths[1])?, read(&paths[2])?];
    let ride_count = bench.number("SELECT count(*) FROM rides").await?;
    for times in [&first, &second, &third] {
        ensure!(times.len() as i64 == ride_count, "{} records were folded, and {ride_count} staged", times.len());
    }
    let begin = first.values().map(|(staged_at, _)| *staged_at).min().context("nothing was staged")?;
    let counted_from = begin + i64::try_from(WARM_UP_S)? * 1_000_000;
    let (mut latencies, mut last_staged_at) = (histogram()?, counted_from);
    for (offset, (staged_at, committed_at)) in &first {
        if *staged_at < counted_from {
            continue;
        }
        let others = [&second, &third].map(|times| times.get(offset).map_or(i64::MAX, |(_, at)| *at));
        let slowest = others.into_iter().fold(*committed_at, i64::max);
        latencies.saturating_record(u64::try_from(slowest - staged_at).unwrap_or(0));
        last_staged_at = last_staged_at.max(*staged_at);
    }
    let rate = latencies.len() as f64 / ((last_staged_at - counted_from) as f64 / 1e6);
    Ok((latencies, rate))
}

fn read(path: &Path) -> Result<Times> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.lines().map(parse_line).collect::<Option<_>>().with_context(|| format!("{} is unreadable", path.display()))
}

fn parse_line(line: &str) -> Option<(i64, (i64, i64))> {
    let mut numbers = line.split(' ').map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, (next()?, next()?)))
}

/// A histogram from 1 µs to a minute, with three digits.
fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000, 3).context("setting up a histogram")
}

/// A bar chart of the latencies. The bound of each row is about 1.4 times the bound of the row before.
fn drawing(latencies: &Histogram<u64>) -> String {
    let mut bounds_us: Vec<u64> = vec![0];
    while bounds_us.last().is_some_and(|last| *last < latencies.max()) {
        bounds_us.push((500.0 * 2.0_f64.powf(bounds_us.len() as f64 / 2.0 - 0.5)).round() as u64);
    }
    let counts: Vec<(u64, u64)> =
        bounds_us.windows(2).map(|bounds| (bounds[1], latencies.count_between(bounds[0] + 1, bounds[1]))).collect();
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    let mut text = format!("{:>12}  {:>9}\n", "up to, ms", "records");
    for (bound_us, count) in counts {
        let bar = "#".repeat((BAR_LEN * count as f64 / most as f64).ceil() as usize);
        text.push_str(
            format!("{:>12}  {:>9}  {bar}", number(bound_us as f64 / 1000.0), number(count as f64)).trim_end(),
        );
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_timed_consumer_is_read() {
        assert_eq!(parse_line("7 1764000000000000 1764000000001500"), Some((7, (1764000000000000, 1764000000001500))));
        assert_eq!(parse_line("7 x"), None);
    }

    #[test]
    fn every_record_is_in_the_drawing() {
        let mut latencies = histogram().unwrap();
        [1, 500, 501, 2000, 30_000].into_iter().for_each(|us| latencies.record(us).unwrap());
        let text = drawing(&latencies);
        let counted: u64 =
            text.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(counted, 5, "{text}");
    }
}
