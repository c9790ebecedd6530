//! The first page of transactions of a wallet with a long history, beside that of a short one.

use anyhow::{Result, ensure};

use super::service::{Beside, Service, add_events, empty, ids, settle};
use crate::bench::Bench;
use crate::report::{Row, Wanted};
use crate::sample::Samples;
use crate::wrk::{About, Wrk};

/// Events of the short history.
const SHORT: i64 = 100;

/// Events of the long one.
const LONG: i64 = 1_000_000;

/// A page as the read model has it, and one that only Postgres has.
const PAGES: [(&str, &str); 2] = [("transactions", "from Redis"), ("transactions?limit=100", "of 100 from Postgres")];

/// Measures the mean latency of one client.
///
/// # Errors
/// A process failed, or a response was an error.
pub(super) async fn measure(bench: &Bench, wrk: &Wrk) -> Result<Vec<Row>> {
    let long = if bench.config.quick { LONG / 50 } else { LONG };
    // Wallet 1 has the short history, wallet 2 the long one.
    empty(bench, 2).await?;
    add_events(bench, 1, 1, SHORT).await?;
    add_events(bench, 2, 2, long).await?;
    settle(bench).await?;
    let paths = [ids(bench, 1, 1).await?, ids(bench, 2, 2).await?];
    let service = Service::start(bench, 2, Beside::Nothing).await?;
    let mut means_ms: [[Samples; 2]; 2] = Default::default();
    bench.progress.expect(bench.config.runs * 4);
    for round in 1..=bench.config.runs {
        for ((page, name), means_ms) in PAGES.iter().zip(&mut means_ms) {
            for (path, mean_ms) in paths.iter().zip(means_ms) {
                bench.progress.step(&format!("round {round}: page {name}"));
                let answers = wrk.ask(service.port, 1, bench.config.seconds.min(3), About::Read(page), path).await?;
                ensure!(answers.error_count == 0, "{} reads of {page} failed", answers.error_count);
                mean_ms.push(answers.mean_ms);
            }
        }
    }
    service.stop().await?;
    let rows = PAGES.iter().zip(&means_ms).map(|((_, name), [short, long])| {
        Row::new(&format!("first page {name} at 1,000,000 transactions, ms"), long)
            .beside("at 100", short)
            .wanted(Wanted::RatioAtMost(1.2))
    });
    Ok(rows.collect())
}
