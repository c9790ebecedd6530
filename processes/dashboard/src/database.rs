//! Reads the head of the log and the progress of every consumer from Postgres, in one snapshot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use pglog::{Partition, Session};
use tokio_postgres::IsolationLevel;

use crate::sample::{Consumer, LogState, Server, Total};

/// At most this many consumers are read. If there are more, the verdict is never "converged".
const CONSUMER_COUNT_MAX: usize = 50;

/// Postgres, asked for every sample on a connection of its own.
pub(crate) struct Database {
    config: tokio_postgres::Config,
    partition: Partition,
    client: Option<Client>,
}

impl Database {
    /// Connects with the first reading.
    pub fn new(config: &tokio_postgres::Config, partition: Partition) -> Self {
        Self { config: config.clone(), partition, client: None }
    }

    /// The present state of the log, and how long Postgres took to answer.
    ///
    /// # Errors
    /// Postgres does not answer, or has no log: ask again.
    pub async fn read(&mut self) -> Result<(Server, LogState)> {
        // Taken out, so that the next reading connects anew after an error or a time-out.
        let mut client = match self.client.take() {
            Some(client) => client,
            None => connect(&self.config).await?,
        };
        let began_at = Instant::now();
        let tx = snapshot(&mut client).await?;
        let log = read_log(&tx, self.partition).await?;
        tx.rollback().await?;
        let answer_ms = Some(began_at.elapsed().as_secs_f64() * 1e3);
        self.client = Some(client);
        Ok((Server { is_up: true, answer_ms }, log))
    }
}

pub(crate) async fn connect(config: &tokio_postgres::Config) -> Result<Client> {
    let client = connect::postgres::connect(config, "dashboard", || {}).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    Ok(client)
}

/// A transaction in which all statements see the same snapshot. In two snapshots a record might get its offset after the head
/// was read and before the checkpoints were, and a consumer would seem to be ahead of the log.
pub(crate) async fn snapshot(client: &mut Client) -> Result<Transaction<'_>> {
    let tx = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    tx.start().await.context("beginning a transaction")
}

async fn read_log(tx: &Transaction<'_>, partition: Partition) -> Result<LogState> {
    let (head, head_token) = pglog::marked_head(tx, partition).await.context("reading the head")?;
    let is_anything_staged = pglog::is_anything_staged(tx, partition).await.context("looking for staged records")?;
    let is_led = is_led(tx, partition).await.context("looking for a leader")?;
    let mut consumers = consumers(tx, partition, head).await.context("reading checkpoints")?;
    for consumer in consumers.iter_mut().filter(|consumer| consumer.lag_records > 0) {
        let lag = pglog::lag(tx, partition, consumer.last_offset, Duration::ZERO).await.context("measuring lag")?;
        consumer.lag_ms = lag.waiting_s * 1e3;
    }
    let is_cut_off = consumers.len() > CONSUMER_COUNT_MAX;
    consumers.truncate(CONSUMER_COUNT_MAX);
    Ok(LogState { partition: partition.number(), head, head_token, is_anything_staged, is_led, is_cut_off, consumers })
}

async fn consumers(
    tx: &Transaction<'_>,
    partition: Partition,
    head: i64,
) -> Result<Vec<Consumer>, tokio_postgres::Error> {
    let rows = tx
        .query(
            "-- dashboard::consumers
             SELECT name, fold, last_offset, duplicate_count, healed_count, rejected_count, crash_count,
                    ride_count, total_distance_mm, digest,
                    (SELECT count(*) FROM dead_letters
                     WHERE dead_letters.name = checkpoints.name AND dead_letters.partition = checkpoints.partition
                       AND dropped_at IS NULL
                    ) AS dead_letter_count
             FROM checkpoints LEFT JOIN consumer_states USING (name, partition)
             WHERE partition = $1 AND NOT is_baseline
             ORDER BY name LIMIT $2",
            &[&partition, &(CONSUMER_COUNT_MAX as i64 + 1)],
        )
        .await?;
    let consumer = |row: &tokio_postgres::Row| {
        let last_offset = row.get("last_offset");
        let total = row.get::<_, Option<i64>>("ride_count").map(|ride_count| Total {
            ride_count,
            distance_mm: row.get("total_distance_mm"),
            digest: format!("{:016x}", row.get::<_, i64>("digest")),
        });
        Consumer {
            name: row.get("name"),
            fold: row.get("fold"),
            last_offset,
            lag_records: head - last_offset,
            lag_ms: 0.0,
            total,
            duplicate_count: row.get("duplicate_count"),
            healed_count: row.get("healed_count"),
            rejected_count: row.get("rejected_count"),
            crash_count: row.get("crash_count"),
            dead_letter_count: row.get("dead_letter_count"),
        }
    };
    Ok(rows.iter().map(consumer).collect())
}

/// Whether a streamer holds the leader's lock.
async fn is_led(tx: &Transaction<'_>, partition: Partition) -> Result<bool, tokio_postgres::Error> {
    let row = Session::query_one(
        tx,
        "-- dashboard::is_led
         SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database
                        WHERE datname = current_database() AND locktype = 'advisory' AND granted
                          AND classid = ($1 # log_key())::oid AND objid = $2::int::oid AND objsubid = 2)",
        &[&pglog::LEADER_LOCK, &partition],
    )
    .await?;
    Ok(row.get(0))
}
