//! `held`: draining while other connections hold transactions open that began before the records were written. Old row versions
//! and transactions in flight must not slow the log down.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::shutdown::CancellationToken;
use consumer::{Consumer, DistanceFold, State};
use tokio_postgres::Client;

use crate::bench::Bench;
use crate::load::{drain_consumer, drain_streamer, stage};
use crate::report::{Figures, Row, Wanted};
use crate::sample::Samples;

/// Drains by a consumer per round. A drain takes only a second, so its figure varies.
const FOLD_COUNT: usize = 3;

/// How long a consumer commits pages of one record. Each page leaves an old version of its row, so the slowing shows only with
/// time.
const HOLD: Duration = Duration::from_secs(60);

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    // Records are written anew in every round, because the held transactions must be older.
    let (runs, count) = (bench.config.runs.min(3), bench.config.records);
    bench.progress.expect(runs * 2);
    let [mut streamer, mut streamer_held, mut consumer, mut consumer_held, mut pages, mut pages_held] =
        [const { Samples(Vec::new()) }; 6];
    for round in 1..=runs {
        // The order alternates, because the servers still work on the load of the drain before.
        let turns = match round % 2 {
            0 => [Held::Nothing, Held::Transactions],
            _ => [Held::Transactions, Held::Nothing],
        };
        for held in turns {
            bench.progress.step(&format!("round {round}: {}", held.name()));
            let drained = drain(bench, count, held).await?;
            let (streamer, consumer, pages) = match held {
                Held::Nothing => (&mut streamer, &mut consumer, &mut pages),
                Held::Transactions => (&mut streamer_held, &mut consumer_held, &mut pages_held),
            };
            streamer.push(drained.published);
            drained.folded.into_iter().for_each(|rate| consumer.push(rate));
            pages.push(drained.pages);
        }
    }
    let wanted = Wanted::RatioAtLeast(0.9);
    Ok(Figures::of(vec![
        Row::new("streamer, records/s, held", &streamer_held).beside("nothing held", &streamer).wanted(wanted),
        Row::new("consumer, records/s, held", &consumer_held).beside("nothing held", &consumer).wanted(wanted),
        Row::new("consumer, pages of one record/s for a minute, held", &pages_held).beside("nothing held", &pages),
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

/// The rates of one round, per second.
struct Drained {
    published: f64,
    folded: [f64; FOLD_COUNT],
    pages: f64,
}

async fn drain(bench: &Bench, count: i64, held: Held) -> Result<Drained> {
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
    let pages = fold_one_by_one(bench, count).await?;
    if let Some((writer, reader)) = holders {
        // Both transactions are still open. If the server had ended them, these statements would fail.
        writer.batch_execute("ROLLBACK").await.context("ending the held write")?;
        reader.batch_execute("SELECT count(*) FROM log_batches; ROLLBACK").await.context("ending the held snapshot")?;
    }
    Ok(Drained { published: count as f64 / published.elapsed.as_secs_f64(), folded, pages })
}

/// Commits pages of one record, read from Postgres, for [`HOLD`]. Returns how many per second.
async fn fold_one_by_one(bench: &Bench, count: i64) -> Result<f64> {
    let [(_, database_url), (_, redis_url), ..] = bench.environment();
    let args = ["consumer", "one-by-one", "--database-url", &database_url, "--redis-url", &redis_url];
    let config = consumer::Config::try_parse_from(args).context("configuring a consumer")?;
    let mut consumer = Consumer::new(&config, State::<DistanceFold>::default(), CancellationToken::new());
    let hold = if bench.config.quick { HOLD / 60 } else { HOLD };
    let (began_at, mut page_count) = (Instant::now(), 0);
    while began_at.elapsed() < hold {
        page_count += 1;
        ensure!(page_count <= count, "{count} records are too few for a minute: raise --records");
        consumer.fold_up_to(page_count).await?;
    }
    Ok(page_count as f64 / began_at.elapsed().as_secs_f64())
}

/// Opens a transaction that has staged a record.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn hold_write(bench: &Bench) -> Result<Client> {
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

/// Opens a transaction that keeps its snapshot.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn hold_snapshot(bench: &Bench) -> Result<Client> {
    let client = bench.connect().await?;
    client
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM staged_log_records")
        .await
        .context("holding a snapshot")?;
    Ok(client)
}
