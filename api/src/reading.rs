//! SQL's own count and sum of the rides beside each consumer's, from one snapshot. They are read once for all who ask, because
//! the count reads the whole table of rides.

use std::sync::Arc;

use common::paced::{Paced, Source};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::database::Database;
use crate::error::Error;

/// The response of `GET /totals`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Totals {
    /// `SELECT count(*), sum(distance_mm) FROM rides`.
    pub sql: Sum,
    /// The highest offset of partition 0.
    pub head: i64,
    /// Every registered consumer, by name and partition. The reaper's baseline is none of them.
    pub consumers: Vec<ConsumerTotal>,
    /// Whether every consumer of partition 0 is at the head, and has SQL's count and sum. There is at least one.
    pub converged: bool,
}

/// The latest totals.
pub(crate) type PacedTotals = Paced<Arc<Totals>, Error>;

/// Reads the totals when a client asks for them, and not all the time.
pub(crate) struct Reading(pub Database);

impl Source for Reading {
    type Value = Arc<Totals>;
    type Error = Error;

    async fn work_out(&mut self) -> Result<Arc<Totals>, Error> {
        read(&self.0).await.map(Arc::new)
    }
}

/// A count and a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sum {
    /// Rides.
    pub ride_count: i64,
    /// Whole millimetres.
    pub total_distance_mm: i64,
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsumerTotal {
    /// Its name.
    pub name: String,
    /// The partition it folds.
    pub partition: i32,
    /// Rides folded.
    pub ride_count: i64,
    /// Whole millimetres.
    pub total_distance_mm: i64,
    /// Equal at one offset for all consumers. 16 hexadecimal digits.
    pub digest: String,
    /// Its checkpoint.
    pub last_offset: i64,
    /// Records between the checkpoint and the head.
    pub lag: i64,
    /// Entries skipped because their offset had been passed.
    pub duplicate_count: i64,
    /// Records read from Postgres because the stream lacked them.
    pub healed_count: i64,
    /// Stream entries that are not of this log.
    pub rejected_count: i64,
    /// Injected crashes survived.
    pub crash_count: i64,
    /// Records that can never apply and that no operator has dropped.
    pub dead_letter_count: i64,
}

async fn read(database: &Database) -> Result<Totals, Error> {
    // One statement has one snapshot. SUM of bigint is numeric; a sum beyond 64 bits, where consumers reject rides too, is
    // shown as the largest number of 64 bits.
    let rows = database
        .read(
            "-- api::totals::show
             WITH sql AS (
                 SELECT count(*) AS sql_ride_count,
                        least(COALESCE(sum(distance_mm), 0), 9223372036854775807)::bigint AS sql_total_distance_mm
                 FROM rides
             )
             SELECT sql.*, COALESCE((SELECT first_offset + record_count - 1 FROM log_batches WHERE partition = 0
                                     ORDER BY first_offset DESC LIMIT 1), 0) AS head,
                    checkpoints.*, COALESCE(heads.head, 0) - last_offset AS lag,
                    COALESCE(ride_count, 0) AS ride_count, COALESCE(total_distance_mm, 0) AS total_distance_mm,
                    COALESCE(digest, 0) AS digest,
                    (SELECT count(*) FROM dead_letters
                     WHERE dead_letters.name = checkpoints.name AND dead_letters.partition = checkpoints.partition
                       AND dropped_at IS NULL
                    ) AS dead_letter_count
             -- Consumers of other folds have no such state, and no total.
             FROM sql LEFT JOIN (checkpoints JOIN consumer_states USING (name, partition)
                                 LEFT JOIN LATERAL (
                                     SELECT first_offset + record_count - 1 AS head FROM log_batches
                                     WHERE log_batches.partition = checkpoints.partition
                                     ORDER BY first_offset DESC LIMIT 1) AS heads ON true) ON NOT is_baseline
             ORDER BY name, partition",
            vec![],
        )
        .await?;
    let first = rows.first().ok_or(Error::Internal)?;
    let sql = Sum { ride_count: first.get("sql_ride_count"), total_distance_mm: first.get("sql_total_distance_mm") };
    let consumers: Vec<ConsumerTotal> = rows
        .iter()
        .filter_map(|row| {
            Some(ConsumerTotal {
                name: row.get::<_, Option<String>>("name")?,
                partition: row.get("partition"),
                ride_count: row.get("ride_count"),
                total_distance_mm: row.get("total_distance_mm"),
                digest: format!("{:016x}", row.get::<_, i64>("digest")),
                last_offset: row.get("last_offset"),
                lag: row.get("lag"),
                duplicate_count: row.get("duplicate_count"),
                healed_count: row.get("healed_count"),
                rejected_count: row.get("rejected_count"),
                crash_count: row.get("crash_count"),
                dead_letter_count: row.get("dead_letter_count"),
            })
        })
        .collect();
    let is_there = |consumer: &ConsumerTotal| {
        consumer.lag == 0
            && (consumer.ride_count, consumer.total_distance_mm) == (sql.ride_count, sql.total_distance_mm)
    };
    let mut of_the_log = consumers.iter().filter(|consumer| consumer.partition == 0).peekable();
    let converged = of_the_log.peek().is_some() && of_the_log.all(is_there);
    Ok(Totals { sql, head: first.get("head"), consumers, converged })
}
