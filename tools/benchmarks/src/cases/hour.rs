//! `hour`: tables and indexes after a long time of steady traffic. Tables with updates and deletes must not grow.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::bench::Bench;
use crate::fleet::Fleet;
use crate::report::{Figures, Row};
use crate::sample::Samples;

/// The tables of the traffic.
const TABLES: [&str; 5] = ["rides", "staged_log_records", "log_batches", "checkpoints", "dead_letters"];

/// The names and sizes of a table and its indexes, in bytes. An index is named after its columns, so that it can be compared
/// with the index of a copy.
const SIZES: &str = "-- benchmarks::hour::sizes
    SELECT 'table', pg_relation_size($1::text::regclass)
    UNION ALL
    SELECT 'index on (' || (SELECT string_agg(a.attname, ', ' ORDER BY k.place)
                            FROM unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
                            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) || ')',
           pg_relation_size(i.indexrelid)
    FROM pg_index i WHERE i.indrelid = $1::text::regclass
    ORDER BY 1";

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let (duration, rate) = (bench.config.hour_duration, bench.config.hour_rate);
    let interval = if duration < Duration::from_secs(120) { Duration::from_secs(5) } else { Duration::from_secs(60) };
    bench.progress.expect((duration.as_secs() / interval.as_secs()).max(1) as u32);
    let mut fleet = Fleet::start(bench, Some(&["--keep", if bench.config.quick { "2s" } else { "5m" }])).await?;
    let (port, rate_text) = (fleet.port.to_string(), rate.to_string());
    let duration_text = format!("{}s", duration.as_secs());
    let traffic = ["--api-port", &port, "--rate", &rate_text, "--concurrency", "16", "--duration", &duration_text];
    let traffic = bench.start_process("simulator", &traffic)?.succeed();
    let mut traffic = std::pin::pin!(traffic);
    let mut growth = Growth::new(bench)?;
    let mut looks = tokio::time::interval(interval);
    loop {
        tokio::select! {
            ended = &mut traffic => {
                ended?;
                break;
            }
            _ = looks.tick() => {
                fleet.check()?;
                growth.look(bench, &fleet).await?;
            }
        }
    }
    fleet.wait_until_caught_up(bench).await?;
    growth.look(bench, &fleet).await?;
    fleet.stop().await?;
    // Sessions report their changes when they end, or a second later.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut rows = Vec::new();
    for table in TABLES {
        rows.extend(rows_of(bench, table).await?);
    }
    let file = growth.path.file_name().unwrap_or_default().display();
    Ok(Figures::of(rows)
        .remark(format!("{rate} rides/s for {duration:?}; sizes as they grew are in {file}, in the same folder."))
        .remark("Beside each size: what the same rows take in a copy that is written at once."))
}

/// Sizes beside those of a fresh copy, and dead rows.
async fn rows_of(bench: &Bench, table: &str) -> Result<Vec<Row>> {
    let copy = format!("copy_of_{table}");
    bench
        .client
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS {copy};
             CREATE TABLE {copy} (LIKE {table} INCLUDING ALL);
             INSERT INTO {copy} OVERRIDING SYSTEM VALUE SELECT * FROM {table}"
        ))
        .await
        .with_context(|| format!("copying {table}"))?;
    let (sizes, compact) = (sizes(bench, table).await?, sizes(bench, &copy).await?);
    let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = ";
    let (live_count, dead_count) = (
        bench.number(&format!("SELECT count(*) FROM {table}")).await?,
        bench.number(&format!("{dead}'{table}'")).await?,
    );
    bench.client.batch_execute(&format!("DROP TABLE {copy}")).await.context("dropping a copy")?;
    let one = |value: i64| Samples::from([value as f64]);
    let mut rows =
        vec![Row::new(&format!("{table}: dead rows"), &one(dead_count)).beside("live rows", &one(live_count))];
    for (what, size) in sizes {
        let least = compact.iter().find(|(other, _)| *other == what).map_or(0, |(_, size)| *size);
        rows.push(Row::new(&format!("{table}: {what}, kB"), &one(size / 1024)).beside("copy", &one(least / 1024)));
    }
    Ok(rows)
}

async fn sizes(bench: &Bench, table: &str) -> Result<Vec<(String, i64)>> {
    let rows = bench.client.query(SIZES, &[&table]).await.with_context(|| format!("measuring {table}"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A file with one line per look and table (seconds, table, live rows, dead rows, sizes), and one per look and process (memory).
struct Growth {
    path: PathBuf,
    text: String,
    started_at: Instant,
}

impl Growth {
    fn new(bench: &Bench) -> Result<Self> {
        std::fs::create_dir_all(&bench.config.results).context("creating the folder of results")?;
        let path = bench.config.results.join(format!("hour-{}.tsv", jiff::Zoned::now().strftime("%Y-%m-%d-%H%M")));
        Ok(Self { path, text: "second\twhat\tlive\tdead\tbytes\n".to_owned(), started_at: Instant::now() })
    }

    async fn look(&mut self, bench: &Bench, fleet: &Fleet) -> Result<()> {
        let second = self.started_at.elapsed().as_secs();
        bench.progress.step(&format!("after {second} s"));
        for table in TABLES {
            let query = "-- benchmarks::hour::look
                SELECT n_live_tup, n_dead_tup FROM pg_stat_user_tables WHERE relname = $1";
            let row = bench.client.query_one(query, &[&table]).await.context("looking at a table")?;
            let (live, dead): (i64, i64) = (row.get(0), row.get(1));
            for (what, size) in sizes(bench, table).await? {
                self.text.push_str(&format!("{second}\t{table} {what}\t{live}\t{dead}\t{size}\n"));
            }
        }
        for (name, megabytes) in fleet.memory_mb()? {
            self.text.push_str(&format!("{second}\tmemory of {name}\t\t\t{:.0}\n", megabytes * 1_048_576.0));
        }
        std::fs::write(&self.path, &self.text).with_context(|| format!("writing {}", self.path.display()))
    }
}
