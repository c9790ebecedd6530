//! `held`: draining while other connections hold transactions open that began before the records were written. Old row versions
//! and transactions in flight must not slow the log down.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::bench::Bench;
use crate::load::{drain_consumer, drain_streamer, stage};
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;

/// Drains by a consumer per round. A drain takes only a second, so its figure varies.
const FOLD_COUNT: usize = 3;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    // Records are written anew in every round, because the held transactions must be older.
    let (runs, count) = (bench.config.runs.min(3), bench.config.records);
    bench.progress.expect(runs * 2);
    let [mut streamer, mut streamer_held, mut consumer, mut consumer_held] = [const { Samples(Vec::new()) }; 4];
    for round in 1..=runs {
        // The order alternates, because the servers still work on the load of the drain before.
        let turns = match round % 2 {
            0 => [Held::Nothing, Held::Transactions],
            _ => [Held::Transactions, Held::Nothing],
        };
        for held in turns {
            bench.progress.step(&format!("round {round}: {}", held.name()));
            let (published, folded) = drain(bench, count, held).await?;
            let (streamer, consumer) = match held {
                Held::Nothing => (&mut streamer, &mut consumer),
                Held::Transactions => (&mut streamer_held, &mut consumer_held),
            };
            streamer.push(published);
            folded.into_iter().for_each(|rate| consumer.push(rate));
        }
    }
    let wanted = Wanted::RatioAtLeast(0.9);
    Ok(Figures::of(vec![
        Row::new("streamer, records/s, held", &streamer_held).beside("nothing held", &streamer).wanted(wanted),
        Row::new("consumer, records/s, held", &consumer_held).beside("nothing held", &consumer).wanted(wanted),
    ])
    .remark(
        "Held: one transaction that has staged a record and does not end, and one in REPEATABLE READ that has its snapshot; \
         both began before the records were written.",
    ))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Transactions,
}

impl Held {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing is held",
            Self::Transactions => "two transactions are held open",
        }
    }
}

/// Returns the rates of the streamer and of the consumers.
async fn drain(bench: &Bench, count: i64, held: Held) -> Result<(f64, [f64; FOLD_COUNT])> {
    bench.fresh_tables().await?;
    bench.fresh_redis().await?;
    let holders = match held {
        Held::Nothing => None,
        Held::Transactions => Some((hold_write(bench).await?, hold_snapshot(bench).await?)),
    };
    let staged = stage(bench, count).await?;
    let published = drain_streamer(bench, &[], count).await?;
    bench.checkpoint().await?;
    let mut folded = [0.0; FOLD_COUNT];
    for rate in &mut folded {
        *rate = count as f64 / drain_consumer(bench, staged).await?.elapsed.as_secs_f64();
    }
    if let Some((writer, reader)) = holders {
        // Both transactions are still open. If the server had ended them, these statements would fail.
        writer.batch_execute("ROLLBACK").await.context("ending the held write")?;
        reader.batch_execute("SELECT count(*) FROM log_batches; ROLLBACK").await.context("ending the held snapshot")?;
    }
    Ok((count as f64 / published.elapsed.as_secs_f64(), folded))
}

async fn hold_write(bench: &Bench) -> Result<Client> {
    let client = bench.connect().await?;
    client
        .batch_execute(
            "BEGIN;
             INSERT INTO staged_log_records (object, action, data) VALUES ('ride', 'create', '{\"id\":0,\"distance_mm\":1}')",
        )
        .await
        .context("holding a write")?;
    Ok(client)
}

async fn hold_snapshot(bench: &Bench) -> Result<Client> {
    let client = bench.connect().await?;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM staged_log_records")
        .await
        .context("holding a snapshot")?;
    Ok(client)
}
