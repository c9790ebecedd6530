//! `pipeline`: the highest rate at which api, streamer and three consumers keep up with each other on this machine.
//!
//! The lag is the age of the oldest committed ride that is not yet in the state of all three consumers. This is the record after
//! the lowest checkpoint, even if it has no offset yet. Its row is found by its id, which equals its offset here, because one api
//! writes one transaction after another and none fails. Each step checks this at its end.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::fleet::{Fleet, cpu_percent};
use crate::report::{Figures, Row};
use crate::sample::{Samples, number};
use crate::wrk::{Pace, Wrk};

/// With a longer lag, the pipeline does not keep up.
const LAG_MAX_MS: i64 = 1000;

/// With a smaller accepted part of the offered rate, a higher rate makes no sense.
const REACHED_MIN: f64 = 0.95;

/// Connections of the load. Each waits for its next place in the timetable.
const CONNECTIONS: u32 = 256;

/// Rides per second: the step of the rising rate, its end, and the precision of the search.
const RISE: u32 = 5_000;
const RATE_MAX: u32 = 100_000;
const EXACT_TO: u32 = 1_000;

/// The pause between two looks at the lag.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The figures of one rate.
struct Step {
    offered: u32,
    reached: f64,
    lag_max_ms: i64,
    percents: Vec<(String, f64)>,
}

impl Step {
    fn keeps_up(&self) -> bool {
        self.lag_max_ms < LAG_MAX_MS
    }

    fn is_all_accepted(&self) -> bool {
        self.reached >= REACHED_MIN * f64::from(self.offered)
    }
}

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let wrk = Wrk::new(bench)?;
    let mut steps: Vec<Step> = Vec::new();
    let (mut good, mut bad) = (0, RATE_MAX);
    while bad - good > EXACT_TO {
        // The rate rises by equal steps until it is too high. Then the search halves the interval.
        let rate = if bad == RATE_MAX { good + RISE } else { u32::midpoint(good, bad) };
        bench.progress.step(&format!("{rate} rides/s"));
        let step = measure(bench, &wrk, rate).await?;
        if step.keeps_up() && step.is_all_accepted() {
            good = rate
        } else {
            bad = rate
        }
        steps.push(step);
    }
    let drawing = drawing(&steps);
    // The accepted rate counts, not the offered rate.
    let best = steps.into_iter().filter(Step::keeps_up).max_by(|a, b| a.reached.total_cmp(&b.reached));
    let best = best.with_context(|| format!("no rate is kept up with:\n{drawing}"))?;
    let one = |value: f64| Samples::from([value]);
    let mut rows = vec![
        Row::new("rides/s with a lag under 1 s", &one(best.reached)),
        Row::new("largest lag at that rate, ms", &one(best.lag_max_ms as f64)),
    ];
    rows.extend(best.percents.iter().map(|(name, percent)| Row::new(&format!("{name}, % of a core"), &one(*percent))));
    Ok(Figures::of(rows)
        .remark(
            "Lag: the age of the oldest committed ride that is not in the state of all three consumers, looked at ten times a \
             second. wrk and this program share the cores with everything that is measured.",
        )
        .drawing(drawing))
}

async fn measure(bench: &Bench, wrk: &Wrk, rate: u32) -> Result<Step> {
    let mut fleet = Fleet::start(bench, None).await?;
    let seconds = if bench.config.quick { 3 } else { 10 };
    let (before, started_at) = (fleet.cpu_times(bench)?, Instant::now());
    let mut lag_max_ms = 0;
    let answers = {
        let posting = wrk.post(fleet.port, CONNECTIONS, seconds, Pace::PerSecond(rate));
        let mut posting = std::pin::pin!(posting);
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tokio::select! {
                answers = &mut posting => break answers?,
                _ = looks.tick() => lag_max_ms = lag_ms(bench).await?.max(lag_max_ms),
            }
        }
    };
    // The lag at the end counts, too.
    lag_max_ms = lag_ms(bench).await?.max(lag_max_ms);
    let percents = cpu_percent(&before, &fleet.cpu_times(bench)?, started_at.elapsed())?;
    ensure!(answers.error_count == 0, "{} rides were refused", answers.error_count);
    fleet.wait_until_caught_up(bench).await?;
    fleet.stop().await?;
    let other_ids = "SELECT max(id) - count(*) FROM staged_log_records";
    ensure!(bench.number(other_ids).await? == 0, "ids are not offsets here, so the lag was not measured");
    Ok(Step { offered: rate, reached: answers.rate(), lag_max_ms, percents })
}

async fn lag_ms(bench: &Bench) -> Result<i64> {
    bench
        .number(
            "-- benchmarks::lag_ms
             SELECT COALESCE((SELECT ceil(1000 * extract(epoch FROM clock_timestamp() - staged_at))::bigint
                              FROM staged_log_records
                              WHERE partition = 0
                                AND id = (SELECT min(last_offset) + 1 FROM checkpoints WHERE NOT is_baseline)), 0)",
        )
        .await
}

fn drawing(steps: &[Step]) -> String {
    let mut text = format!("{:>12}  {:>12}  {:>14}\n", "offered/s", "accepted/s", "largest lag ms");
    for step in steps {
        let (offered, reached) = (number(f64::from(step.offered)), number(step.reached));
        let lag = number(step.lag_max_ms as f64);
        let word = if step.keeps_up() { "keeps up" } else { "falls behind" };
        text.push_str(&format!("{offered:>12}  {reached:>12}  {lag:>14}  {word}\n"));
    }
    text
}
