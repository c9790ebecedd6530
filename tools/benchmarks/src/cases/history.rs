//! `history`: records per second into the archive, beside the consumer that adds up distances; and what each record costs there.

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::load::{Staged, drain_consumer, drain_streamer, stage};
use crate::proc_stat::cpu_seconds_with_children;
use crate::report::{Figures, Row};
use crate::sample::Samples;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let (runs, count) = (bench.config.runs.min(3), bench.config.records);
    bench.progress.expect(runs * 2);
    let [mut rate, mut distance, mut cost, mut disk, mut wal] = [const { Samples(Vec::new()) }; 5];
    for round in 1..=runs {
        bench.fresh_tables().await?;
        bench.fresh_redis().await?;
        let staged = stage(bench, count).await?;
        drain_streamer(bench, &[], count).await?;
        bench.progress.step(&format!("round {round}: distance"));
        bench.checkpoint().await?;
        distance.push(count as f64 / drain_consumer(bench, staged).await?.elapsed.as_secs_f64());
        bench.progress.step(&format!("round {round}: history"));
        bench.checkpoint().await?;
        let archived = archive(bench, staged).await?;
        rate.push(archived.rate);
        cost.push(archived.postgres_us);
        disk.push(archived.disk_bytes);
        wal.push(archived.wal_bytes);
    }
    Ok(Figures::of(vec![
        Row::new("records/s", &rate).beside("distance", &distance),
        Row::new("µs of Postgres's CPU per record", &cost),
        Row::new("bytes of disk per record", &disk),
        Row::new("bytes of WAL per record", &wal),
    ])
    .remark("The disk includes the index. The records are rides: their data has some 30 bytes."))
}

/// The figures of one round, all but the rate per record.
struct Archived {
    rate: f64,
    postgres_us: f64,
    disk_bytes: f64,
    wal_bytes: f64,
}

async fn archive(bench: &Bench, staged: Staged) -> Result<Archived> {
    let (postgres, _) = bench.server_pids()?;
    let (cpu_before, wal_before) = (cpu_seconds_with_children(postgres)?, wal_position(bench).await?);
    let args = ["history", "--fold", "history", "--drain"];
    let ended = bench.start_process("consumer", &args)?.succeed().await?;
    let (cpu_after, wal_after) = (cpu_seconds_with_children(postgres)?, wal_position(bench).await?);
    let archived_count = bench.number("SELECT last_offset - first_offset + 1 FROM history_ranges").await?;
    ensure!(archived_count == staged.count, "{archived_count} of {} records are archived", staged.count);
    let size =
        "SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'history'::regclass";
    let count = staged.count as f64;
    Ok(Archived {
        rate: count / ended.elapsed.as_secs_f64(),
        postgres_us: (cpu_after - cpu_before) * 1e6 / count,
        disk_bytes: bench.number(size).await.context("measuring the history")? as f64 / count,
        wal_bytes: (wal_after - wal_before) as f64 / count,
    })
}

async fn wal_position(bench: &Bench) -> Result<i64> {
    bench.number("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").await
}
