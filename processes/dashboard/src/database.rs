//! Reads the heads of the log and the progress of every consumer from Postgres, in one snapshot of all partitions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use deadpool_postgres::{ClientWrapper as Client, Transaction};
use futures_util::future::try_join_all;
use pglog::{Partition, UnknownPartition};
use tokio_postgres::IsolationLevel;

use crate::keys::Keys;
use crate::sample::{Consumer, LogState, PartitionState, Server, Total};

/// At most this many consumers are read. If there are more, the verdict is never "converged".
const CONSUMER_COUNT_MAX: usize = 50;

/// Postgres, asked for every sample on a connection of its own.
pub(crate) struct Database {
    config: tokio_postgres::Config,
    keys: Keys,
    session: Option<Session>,
    /// The log lacks a partition that the settings name.
    refusal: Option<UnknownPartition>,
}

struct Session {
    client: Client,
    /// The shown partitions.
    partitions: Vec<Partition>,
    is_whole: bool,
}

impl Database {
    /// Connects with the first reading. It tells `keys` which partitions and streams there are.
    pub fn new(config: &tokio_postgres::Config, keys: Keys) -> Self {
        Self { config: config.clone(), keys, session: None, refusal: None }
    }

    /// The present state of the log, and how long Postgres took to answer.
    ///
    /// # Errors
    /// Postgres does not answer, or has no log: ask again, unless there is a [`refusal`](Self::refusal).
    pub async fn read(&mut self) -> Result<(Server, LogState)> {
        // Taken out, so that the next reading connects anew after an error or a time-out.
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.begin_session().await?,
        };
        let began_at = Instant::now();
        let tx = snapshot(&mut session.client).await?;
        let mut log = LogState::of(read_partitions(&tx, &session.partitions).await?, session.is_whole);
        log.cut_off(CONSUMER_COUNT_MAX);
        tx.rollback().await?;
        let answer_ms = Some(began_at.elapsed().as_secs_f64() * 1e3);
        self.session = Some(session);
        Ok((Server { is_up: true, answer_ms }, log))
    }

    /// Why no reading can succeed: the settings name a partition that the log lacks.
    pub fn refusal(&self) -> Option<UnknownPartition> {
        self.refusal
    }

    async fn begin_session(&mut self) -> Result<Session> {
        let client = connect::postgres::connect(&self.config, "dashboard", || {}).await?;
        let log = pglog::prepare_session(&client).await.context("setting up the session")?;
        let partitions = self.keys.learn(&log).inspect_err(|refusal| self.refusal = Some(*refusal))?;
        let is_whole = partitions.len() == log.partitions.partitions().len();
        Ok(Session { client, partitions, is_whole })
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

/// The statements of all partitions are sent together: waiting for each result costs more than the statement.
async fn read_partitions(tx: &Transaction<'_>, partitions: &[Partition]) -> Result<Vec<PartitionState>> {
    let led = led(tx, partitions).await.context("looking for leaders")?;
    let mut rows = consumers(tx, partitions).await.context("reading checkpoints")?;
    let ask = |partition: &Partition| {
        let (partition, is_led) = (*partition, led.contains(partition));
        let rows = rows.remove(&partition).unwrap_or_default();
        async move {
            let (head, head_token) = pglog::marked_head(tx, partition).await.context("reading the head")?;
            let is_anything_staged =
                pglog::is_anything_staged(tx, partition).await.context("looking for staged records")?;
            let rows = try_join_all(rows.into_iter().map(|row| measured(tx, partition, head, row)));
            let rows = rows.await.context("measuring lag")?;
            let state = PartitionState { head, head_token, is_anything_staged, is_led, ..PartitionState::default() };
            anyhow::Ok(PartitionState { partition: partition.number(), ..state }.with(rows))
        }
    };
    let asked: Vec<_> = partitions.iter().map(ask).collect();
    try_join_all(asked).await
}

/// Adds how far a consumer is behind.
async fn measured(
    tx: &Transaction<'_>,
    partition: Partition,
    head: i64,
    row: Consumer,
) -> Result<Consumer, pglog::Error> {
    let lag_records = head - row.last_offset;
    let lag_ms = if lag_records > 0 {
        pglog::lag(tx, partition, row.last_offset, Duration::ZERO).await?.waiting_s * 1e3
    } else {
        0.0
    };
    Ok(Consumer { lag_records, lag_ms, ..row })
}

async fn consumers(
    tx: &Transaction<'_>,
    partitions: &[Partition],
) -> Result<BTreeMap<Partition, Vec<Consumer>>, tokio_postgres::Error> {
    let rows = tx
        .query(
            "-- dashboard::consumers
             SELECT name, partition, fold, last_offset, duplicate_count, healed_count, rejected_count, crash_count,
                    ride_count, total_distance_mm, digest,
                    (SELECT count(*) FROM dead_letters
                     WHERE dead_letters.name = checkpoints.name AND dead_letters.partition = checkpoints.partition
                       AND dropped_at IS NULL
                    ) AS dead_letter_count
             FROM checkpoints LEFT JOIN consumer_states USING (name, partition)
             WHERE partition = ANY ($1) AND NOT is_baseline
               AND name IN (SELECT DISTINCT name FROM checkpoints WHERE partition = ANY ($1) AND NOT is_baseline
                            ORDER BY name LIMIT $2)
             ORDER BY name",
            &[&partitions, &(CONSUMER_COUNT_MAX as i64 + 1)],
        )
        .await?;
    let mut consumers: BTreeMap<Partition, Vec<Consumer>> = BTreeMap::new();
    for row in rows {
        let total = row.get::<_, Option<i64>>("ride_count").map(|ride_count| Total {
            ride_count,
            distance_mm: row.get("total_distance_mm"),
            digest: row.get("digest"),
        });
        consumers.entry(row.get("partition")).or_default().push(Consumer {
            name: row.get("name"),
            fold: row.get("fold"),
            last_offset: row.get("last_offset"),
            total,
            duplicate_count: row.get("duplicate_count"),
            healed_count: row.get("healed_count"),
            rejected_count: row.get("rejected_count"),
            crash_count: row.get("crash_count"),
            dead_letter_count: row.get("dead_letter_count"),
            ..Consumer::default()
        });
    }
    Ok(consumers)
}

/// The partitions whose leader's lock a streamer holds.
async fn led(tx: &Transaction<'_>, partitions: &[Partition]) -> Result<Vec<Partition>, tokio_postgres::Error> {
    let rows = pglog::Session::query(
        tx,
        "-- dashboard::led
         SELECT objid::bigint::int FROM pg_locks JOIN pg_database ON pg_database.oid = database
         WHERE datname = current_database() AND locktype = 'advisory' AND granted
           AND classid = ($1 # log_key())::oid AND objid = ANY ($2::int[]::oid[]) AND objsubid = 2",
        &[&pglog::LEADER_LOCK, &partitions],
    )
    .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
