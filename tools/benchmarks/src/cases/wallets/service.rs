//! The processes that serve wallets, and the wallets that they begin with.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::load::start_api;
use crate::process::Running;

/// How long the read model may take until it has every wallet.
const BUILD_WAIT: Duration = Duration::from_secs(120);

/// The id of wallet `n`, in SQL and for pgbench: scattered over the index, as random ids are.
pub(super) const ID_OF_NUMBER: &str = "'0' || substr(md5(n::text), 1, 26)";

/// Which processes run beside the api.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    /// None. The read model was built before.
    Nothing,
    /// The streamer, and the consumer that makes the model certain.
    Pipeline,
}

/// The api, and what runs beside it.
pub(super) struct Service {
    /// The port of the api.
    pub port: u16,
    api: Running,
    pipeline: Option<Pipeline>,
}

/// The processes that make the read model certain.
pub(super) struct Pipeline {
    streamer: Running,
    consumer: Running,
}

impl Pipeline {
    /// Starts both. The model is built as soon as they run.
    ///
    /// # Errors
    /// A process does not start.
    pub fn start(bench: &Bench) -> Result<Self> {
        let streamer = bench.start_process("streamer", &[])?;
        Ok(Self { streamer, consumer: bench.start_consumer("wallets", &["--fold", "wallets"])? })
    }

    /// Waits until Redis has a document for each of `wallet_count` wallets.
    ///
    /// # Errors
    /// A process has ended, or it takes too long.
    pub async fn wait_until_built(&mut self, bench: &Bench, wallet_count: i64) -> Result<()> {
        let mut redis = bench.connect_documents().await?;
        let deadline = Instant::now() + BUILD_WAIT;
        loop {
            self.streamer.check()?;
            self.consumer.check()?;
            // The mark is a key, too. Without it, no document is written.
            let key_count: i64 = redis::cmd("DBSIZE").query_async(&mut redis).await.context("counting documents")?;
            if key_count > wallet_count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "redis has {key_count} keys, and there are {wallet_count} wallets");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops both.
    ///
    /// # Errors
    /// A process fails.
    pub async fn stop(self) -> Result<()> {
        self.consumer.stop().await?;
        self.streamer.stop().await
    }
}

impl Service {
    /// Starts the api on the tables as they are, with a read model of all `wallet_count` wallets.
    ///
    /// # Errors
    /// A process does not start, or the model is not built in time.
    pub async fn start(bench: &Bench, wallet_count: i64, beside: Beside) -> Result<Self> {
        let mut pipeline = Pipeline::start(bench)?;
        pipeline.wait_until_built(bench, wallet_count).await?;
        let pipeline = match beside {
            Beside::Pipeline => Some(pipeline),
            Beside::Nothing => {
                pipeline.stop().await?;
                None
            }
        };
        let api = start_api(bench, &[]).await?;
        Ok(Self { port: api.port, api: api.process, pipeline })
    }

    /// Stops the api, which finishes its work in hand, and then the others.
    ///
    /// # Errors
    /// A process fails.
    pub async fn stop(self) -> Result<()> {
        self.api.stop().await?;
        match self.pipeline {
            Some(pipeline) => pipeline.stop().await,
            None => Ok(()),
        }
    }
}

/// Empties everything, writes `wallet_count` wallets with `event_count` events each, and waits until they are on disk. The events
/// of a wallet lie as far apart as they do if all wallets are used at the same rate.
///
/// # Errors
/// Postgres or Redis is away.
pub(super) async fn fill(bench: &Bench, wallet_count: i64, event_count: i64) -> Result<()> {
    empty(bench, wallet_count).await?;
    add_events(bench, 1, wallet_count, event_count).await?;
    settle(bench).await
}

/// Empties everything, and writes `wallet_count` wallets without events.
///
/// # Errors
/// Postgres or Redis is away.
pub(super) async fn empty(bench: &Bench, wallet_count: i64) -> Result<()> {
    bench.fresh_tables().await?;
    bench.fresh_redis().await?;
    let statement = format!(
        "-- benchmarks::empty
         INSERT INTO wallet_locks SELECT {ID_OF_NUMBER} FROM generate_series(1, $1::bigint) AS n"
    );
    bench.client.execute(&statement, &[&wallet_count]).await.context("writing wallets")?;
    Ok(())
}

/// Waits until the events are on disk.
///
/// # Errors
/// Postgres is away.
pub(super) async fn settle(bench: &Bench) -> Result<()> {
    // So that autovacuum does not do it during a measurement.
    let vacuum = "-- benchmarks::settle\nVACUUM (ANALYZE) wallet_events, wallet_locks";
    bench.client.batch_execute(vacuum).await.context("vacuuming the events")?;
    bench.checkpoint().await
}

/// Writes `event_count` credits of 1,000 units for each wallet from number `first` to number `last`, which have none.
///
/// # Errors
/// Postgres is away.
pub(super) async fn add_events(bench: &Bench, first: i64, last: i64, event_count: i64) -> Result<()> {
    let statement = format!(
        "-- benchmarks::add_events
         INSERT INTO wallet_events (event_id, wallet_id, version, balance_minor, accepted, action, amount_minor)
         SELECT '0' || substr(md5(n || '/' || version), 1, 26), {ID_OF_NUMBER}, version, version * 100000, true, 'credit', 100000
         FROM generate_series(1, $3::bigint) AS version, generate_series($1::bigint, $2::bigint) AS n"
    );
    bench.client.execute(&statement, &[&first, &last, &event_count]).await.context("writing events")?;
    Ok(())
}

/// Writes the ids of the wallets from number `first` to number `last` to a file, for wrk.
///
/// # Errors
/// The file cannot be written.
pub(super) async fn ids(bench: &Bench, first: i64, last: i64) -> Result<PathBuf> {
    let statement =
        format!("-- benchmarks::ids\nSELECT {ID_OF_NUMBER} FROM generate_series($1::bigint, $2::bigint) AS n");
    let rows = bench.client.query(&statement, &[&first, &last]).await.context("naming wallets")?;
    let text: String = rows.iter().map(|row| format!("{}\n", row.get::<_, &str>(0))).collect();
    let path = bench.folder.join(format!("wallets-{first}-{last}.txt"));
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
