//! A log of several partitions, in a database of its own.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pglog::PartitionCount;
use tokio_postgres::Client;

use crate::bench::Bench;
use crate::proc_stat::cpu_seconds_with_children;
use crate::process::{Running, Spec};

/// Rows per transaction.
const CHUNK_LEN: i64 = 10_000;

/// A log and a connection to it.
pub(super) struct CutLog {
    /// The number of its partitions.
    pub partitions: i32,
    database_url: String,
    /// A connection without time limits.
    pub client: Client,
}

/// The cost of a process that did all of its work and ended.
pub(super) struct Drained {
    /// From its start to its end.
    pub seconds: f64,
    /// Of the process, of Postgres and of Redis.
    pub cpu_seconds: f64,
}

impl CutLog {
    /// Makes the database and the log.
    pub async fn make(bench: &Bench, partitions: i32) -> Result<Self> {
        let (database_url, client) = bench.make_database(&format!("bench_{partitions}")).await?;
        launcher::apply_schema_with(&client, PartitionCount::new(partitions)).await.context("applying the schema")?;
        Ok(Self { partitions, database_url, client })
    }

    /// Stages `count` records of rides by their ids, in transactions of 10,000, and waits until they are on disk.
    pub async fn stage(&self, count: i64) -> Result<()> {
        let statement = "-- benchmarks::stage_by_key
             INSERT INTO staged_log_records (partition, object, action, data)
             SELECT partition_of(id::text), 'ride', 'create',
                    format('{\"id\":%s,\"distance_mm\":%s}', id, 5000 + id * 7919 % 995000)::json
             FROM generate_series($1::bigint, $2::bigint) AS id";
        for first in (1..=count).step_by(CHUNK_LEN as usize) {
            let last = (first + CHUNK_LEN - 1).min(count);
            self.client.execute(statement, &[&first, &last]).await.context("staging records")?;
        }
        // The first read of a row marks it as committed, which writes to its page.
        let staged = "SELECT count(*), count(DISTINCT partition) FROM staged_log_records";
        let row = self.client.query_one(staged, &[]).await.context("counting what was staged")?;
        let expected = (count, i64::from(self.partitions));
        ensure!((row.get(0), row.get(1)) == expected, "records or partitions are missing");
        self.checkpoint().await
    }

    /// Removes all batches and checkpoints, so that the staged rows can be published again.
    pub async fn forget_batches(&self) -> Result<()> {
        let forget = "TRUNCATE log_batches, checkpoints, dead_letters, unregistered_consumers";
        self.client.batch_execute(forget).await.context("emptying the tables of the log")?;
        self.checkpoint().await
    }

    /// Gives the log another id, so that its streams get other names and are empty.
    pub async fn new_id(&self) -> Result<()> {
        let renew = "UPDATE log_identity SET log_id = left(md5(gen_random_uuid()::text), 12)";
        self.client.batch_execute(renew).await.context("giving the log another id")
    }

    async fn checkpoint(&self) -> Result<()> {
        self.client.batch_execute("CHECKPOINT").await.context("writing everything to disk")
    }

    /// Starts a process of this log, on the Redis server of the run or on `redis_url`.
    pub fn start(&self, bench: &Bench, name: &str, args: &[&str], redis_url: Option<&str>) -> Result<Running> {
        let program = if name == "streamer" { "streamer" } else { "consumer" };
        let mut environment = bench.environment();
        for (variable, value) in &mut environment {
            match (*variable, redis_url) {
                ("DATABASE_URL", _) => value.clone_from(&self.database_url),
                ("REDIS_URL", Some(url)) => url.clone_into(value),
                _ => {}
            }
        }
        let spec = Spec { name: name.to_owned(), ..Spec::of_workspace(program, args) };
        Running::start(&spec, &environment, &bench.folder)
    }

    /// Runs a process until it ends by itself.
    pub async fn drain(&self, bench: &Bench, name: &str, args: &[&str]) -> Result<Drained> {
        let (postgres, redis) = bench.server_pids()?;
        let servers = || anyhow::Ok(cpu_seconds_with_children(postgres)? + cpu_seconds_with_children(redis)?);
        let (before, started_at) = (servers()?, Instant::now());
        let ended = self.start(bench, name, args, None)?.succeed().await?;
        let seconds = started_at.elapsed().as_secs_f64();
        Ok(Drained { seconds, cpu_seconds: servers()? - before + ended.cpu_seconds })
    }

    /// Checks that a consumer has folded every record, and counted every distance.
    pub async fn check_consumer(&self, name: &str, count: i64) -> Result<()> {
        let query = "-- benchmarks::check_cut_consumer
             SELECT COALESCE(sum(ride_count), 0)::bigint, COALESCE(sum(total_distance_mm), 0)::bigint,
                    (SELECT sum((data->>'distance_mm')::bigint)::bigint FROM staged_log_records)
             FROM consumer_states WHERE name = $1";
        let row = self.client.query_one(query, &[&name]).await.context("reading a consumer's state")?;
        let found: (i64, i64) = (row.get(0), row.get(1));
        ensure!(found == (count, row.get(2)), "{name} has {found:?}, and {count} records were staged");
        Ok(())
    }
}
