//! Cutting batches: the statement that gives records their offsets (I2, I3), and cuts that would be too large for it.
//!
//! A batch is the set of rows that are visible in its snapshot and not in the snapshot of the batch before. Mostly its
//! snapshot is that of the statement which cuts it. If too many rows wait, a cut takes a part of their transactions: its
//! snapshot shows those, and hides the others, although they have ended too. So every statement is bounded, also after a
//! night without a streamer. A single transaction cannot be divided. If it is too large, it becomes a batch of its own, and
//! its rows are counted in bounded steps before.
//!
//! One statement cuts the batches of all partitions that a leader has. A partition in which too many rows wait is left out of
//! it, and is cut by statements of its own. One such step follows each look, so it delays the other partitions by one bounded
//! statement at a time.

mod statements;

use std::collections::VecDeque;

use tokio_postgres::Row;

use crate::Error;
use crate::batch::{Batch, IDS_LEN_MAX, SKIP_LEN};
use crate::partition::Partition;
use crate::record::Page;
use crate::session::Session;
use statements::{CUT_AT_ONCE, PLAN};

/// Records of one batch, unless they are of one transaction. A statement counts them in some tens of milliseconds.
const BATCH_LEN_MAX: i64 = 100_000;

/// The result of [`Cutter::cut`].
#[derive(Debug)]
pub enum Cut {
    /// No record was staged, or another streamer has cut this batch (the primary key decides).
    Nothing,
    /// The next batch, and its records if the same statement has read them.
    Batch(Batch, Option<Page>),
    /// The rows of a large transaction are being counted: cut again.
    Counting,
}

/// Cuts the batches of several partitions. It remembers how far it has counted large transactions.
#[derive(Debug)]
pub struct Cutters {
    batch_len_max: i64,
    /// The partitions that are not cut by one statement, each once. The first of them has waited longest.
    large: VecDeque<Large>,
    /// The partitions in which the last look found nothing, and the snapshot in which it looked.
    quiet: Option<(Vec<Partition>, String)>,
}

/// A partition in which too many rows wait for one statement.
#[derive(Debug)]
struct Large {
    partition: Partition,
    /// `None`: the snapshot of its next batch is not chosen yet.
    planned: Option<Planned>,
}

/// A batch whose snapshot is chosen, and whose rows are being counted.
#[derive(Debug)]
struct Planned {
    next_offset: i64,
    previous_snapshot: String,
    snapshot: String,
    /// The only transaction of the batch, whose rows are to be counted. `None`: the rows are counted.
    transaction_id: Option<String>,
    /// Whether the transaction was open at the previous snapshot. Then its rows are no fresh rows.
    is_late: bool,
    record_count: i64,
    ids: Option<(i64, i64)>,
    skip_ids: Vec<i64>,
}

impl Default for Cutters {
    /// Gives at most 100,000 records to a batch.
    fn default() -> Self {
        Self::with_limit(BATCH_LEN_MAX)
    }
}

impl Cutters {
    /// Gives at most `batch_len_max` records to a batch, unless they are of one transaction.
    pub fn with_limit(batch_len_max: i64) -> Self {
        Self { batch_len_max, large: VecDeque::new(), quiet: None }
    }

    /// Whether [`cut`](Self::cut) might find anything in these partitions. It does not if the last look found nothing there and
    /// the snapshot is still the same, because then no transaction has become visible. This question costs a fraction of a cut.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn may_cut(&self, client: &impl Session, partitions: &[Partition]) -> Result<bool, Error> {
        let Some((quiet, snapshot)) = &self.quiet else { return Ok(true) };
        if !partitions.iter().all(|partition| quiet.contains(partition)) {
            return Ok(true);
        }
        let sql = "-- pglog::may_cut\nSELECT pg_current_snapshot()::text <> $1";
        Ok(client.query_one(sql, &[snapshot]).await?.get(0))
    }

    /// Cuts the next batch of each of these partitions: every staged row that is visible now and was not visible in the previous
    /// batch's snapshot, or a part of them. Each partition comes with the random number that the batch's stream entries will
    /// carry. It also reads a batch in the same statement if it has at most `len_max` records and no late rows.
    ///
    /// The result has the partitions in which anything was found.
    ///
    /// # Errors
    /// [`Error::TransactionsStartedOver`] if the tables come from another cluster; otherwise Postgres is away.
    pub async fn cut(
        &mut self,
        client: &impl Session,
        wanted: &[(Partition, i64)],
        len_max: i64,
    ) -> Result<Vec<(Partition, Cut)>, Error> {
        self.quiet = None;
        let is_large = |partition| self.large.iter().any(|large| large.partition == partition);
        let small: Vec<(Partition, i64)> =
            wanted.iter().copied().filter(|(partition, _)| !is_large(*partition)).collect();
        let mut cuts = if small.is_empty() { Vec::new() } else { self.cut_at_once(client, &small, len_max).await? };
        let token_of = |partition| wanted.iter().find(|(wanted, _)| *wanted == partition).map(|(_, token)| *token);
        let next = self.large.iter().position(|large| token_of(large.partition).is_some());
        if let Some(mut large) = next.and_then(|index| self.large.remove(index)) {
            let token = token_of(large.partition).expect("it is one of those that are wanted");
            let cut = self.cut_in_steps(client, token, &mut large).await?;
            cuts.push((large.partition, cut));
            if large.planned.is_some() {
                self.large.push_back(large);
            }
        }
        let waiting = self.large.iter().filter(|large| token_of(large.partition).is_some());
        let waiting: Vec<Partition> =
            waiting.map(|large| large.partition).filter(|waiting| cuts.iter().all(|(cut, _)| cut != waiting)).collect();
        cuts.extend(waiting.into_iter().map(|partition| (partition, Cut::Counting)));
        Ok(cuts)
    }

    /// Cuts by one statement, hence one snapshot: it counts exactly the rows that the stored snapshots describe. It takes note
    /// of the partitions in which there are too many.
    ///
    /// It reads ranges of the index, and not all rows since `pg_snapshot_xmin`. So a transaction that stays open for an hour
    /// costs nothing.
    async fn cut_at_once(
        &mut self,
        client: &impl Session,
        wanted: &[(Partition, i64)],
        len_max: i64,
    ) -> Result<Vec<(Partition, Cut)>, Error> {
        let (partitions, tokens): (Vec<Partition>, Vec<i64>) = wanted.iter().copied().unzip();
        let rows =
            client.query(CUT_AT_ONCE, &[&partitions, &tokens, &len_max, &self.batch_len_max, &IDS_LEN_MAX]).await?;
        let mut cuts = Vec::new();
        let mut snapshot = None;
        for (partition, rows) in by_partition(rows) {
            let row = &rows[0];
            if !row.get::<_, bool>("in_order") {
                let (batch_xmax, cluster_xmax) = (row.get("batch_xmax"), row.get("cluster_xmax"));
                return Err(Error::TransactionsStartedOver { partition, batch_xmax, cluster_xmax });
            }
            snapshot = row.get("now");
            if row.get("is_large") {
                self.large.push_back(Large { partition, planned: None });
            } else if row.get::<_, Option<i64>>("first_offset").is_some() {
                cuts.push((partition, cut_of(partition, rows)));
            }
        }
        if cuts.is_empty() && self.large.is_empty() {
            self.quiet = snapshot.map(|snapshot| (partitions, snapshot));
        }
        Ok(cuts)
    }

    /// Plans the batch if that is not done, counts further rows of it, and cuts it when all are counted.
    async fn cut_in_steps(&self, client: &impl Session, token: i64, large: &mut Large) -> Result<Cut, Error> {
        let partition = large.partition;
        let mut planned = match large.planned.take() {
            Some(planned) => planned,
            None => self.plan(client, partition).await?,
        };
        if count(client, partition, &mut planned).await? {
            return cut_planned(client, partition, token, &planned).await;
        }
        large.planned = Some(planned);
        Ok(Cut::Counting)
    }

    /// Chooses the transactions of the next batch.
    async fn plan(&self, client: &impl Session, partition: Partition) -> Result<Planned, Error> {
        let row = client.query_one(PLAN, &[&partition, &self.batch_len_max]).await?;
        let ids: (Option<i64>, Option<i64>) = (row.get("first_id"), row.get("last_id"));
        let planned = Planned {
            next_offset: row.get("next_offset"),
            previous_snapshot: row.get("previous_snapshot"),
            snapshot: row.get("snapshot"),
            transaction_id: row.get("transaction_id"),
            is_late: row.get("is_late"),
            record_count: row.get("record_count"),
            ids: ids.0.zip(ids.1),
            skip_ids: Vec::new(),
        };
        // The rows of a single transaction are counted from the first one on.
        Ok(if planned.transaction_id.is_some() { Planned { record_count: 0, ids: None, ..planned } } else { planned })
    }
}

/// The rows of each partition, which follow each other.
fn by_partition(rows: Vec<Row>) -> Vec<(Partition, Vec<Row>)> {
    let mut parts: Vec<(Partition, Vec<Row>)> = Vec::new();
    for row in rows {
        let partition = row.get("partition");
        match parts.last_mut() {
            Some((last, rows)) if *last == partition => rows.push(row),
            _ => parts.push((partition, vec![row])),
        }
    }
    parts
}

/// The batch that these rows tell of. They are its records, or one row if it was not read.
fn cut_of(partition: Partition, rows: Vec<Row>) -> Cut {
    let batch = Batch::from_row(partition, &rows[0]);
    // A restored row may carry a transaction id of the future. It is counted and not read; the reader reports it.
    let is_read = rows[0].get::<_, Option<i64>>("id").is_some() && rows.len() as i64 == batch.record_count;
    let page = is_read.then(|| Page::new(batch.partition, batch.first_offset, batch.token, rows));
    Cut::Batch(batch, page)
}

/// Counts further rows of the batch. Returns whether all are counted.
async fn count(client: &impl Session, partition: Partition, planned: &mut Planned) -> Result<bool, Error> {
    let Some(transaction_id) = &planned.transaction_id else { return Ok(true) };
    let after_id = planned.ids.map_or(i64::MIN, |(_, last_id)| last_id);
    let row = client
        .query_one(
            "-- pglog::count
             SELECT count(*), min(id), max(id) FROM (
                 SELECT id FROM staged_log_records
                 WHERE partition = $1 AND transaction_id = $2::text::xid8 AND id > $3
                 ORDER BY partition, transaction_id, id LIMIT $4) AS counted",
            &[&partition, transaction_id, &after_id, &SKIP_LEN],
        )
        .await?;
    let (count, first_id, last_id): (i64, Option<i64>, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    planned.record_count += count;
    if let Some((first_id, last_id)) = first_id.zip(last_id) {
        planned.ids = Some((planned.ids.map_or(first_id, |(first_id, _)| first_id), last_id));
    }
    let is_more_left = count == SKIP_LEN;
    planned.skip_ids.extend(last_id.filter(|_| is_more_left));
    Ok(!is_more_left)
}

/// Stores the batch, if it still follows the batch that it was planned to follow.
async fn cut_planned(client: &impl Session, partition: Partition, token: i64, planned: &Planned) -> Result<Cut, Error> {
    let (first_id, last_id) = planned.ids.filter(|_| !planned.is_late).unzip();
    let row = client
        .query_opt(
            "-- pglog::cut_planned
             WITH edge AS MATERIALIZED (
                 SELECT first_offset + record_count AS next_offset, snapshot::text FROM log_batches
                 WHERE partition = $1 ORDER BY first_offset DESC LIMIT 1
             )
             INSERT INTO log_batches
                 (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id, token, skip_ids,
                  last_id)
             SELECT $1, $2::bigint, $3::bigint, $4::text::pg_snapshot, $5, $6, $7, NULLIF($9::bigint[], '{}'), $10
             WHERE $3::bigint > 0 AND $2::bigint = COALESCE((SELECT next_offset FROM edge), 1)
               AND $8::text = COALESCE((SELECT snapshot FROM edge), '1:1:')
             ON CONFLICT (partition, first_offset) DO NOTHING
             RETURNING first_offset, record_count, token, snapshot::text, fresh_first_id, fresh_last_id,
                       $8::text AS previous_snapshot",
            &[
                &partition,
                &planned.next_offset,
                &planned.record_count,
                &planned.snapshot,
                &first_id,
                &last_id,
                &token,
                &planned.previous_snapshot,
                &planned.skip_ids,
                &planned.ids.map(|(_, last_id)| last_id),
            ],
        )
        .await?;
    Ok(row.map_or(Cut::Nothing, |row| Cut::Batch(Batch::from_row(partition, &row), None)))
}

/// Cuts the batches of one partition.
#[derive(Debug)]
pub struct Cutter {
    partition: Partition,
    cutters: Cutters,
}

impl Cutter {
    /// A cutter that gives at most 100,000 records to a batch.
    pub fn new(partition: Partition) -> Self {
        Self::with_limit(partition, BATCH_LEN_MAX)
    }

    /// A cutter that gives at most `batch_len_max` records to a batch, unless they are of one transaction.
    pub fn with_limit(partition: Partition, batch_len_max: i64) -> Self {
        Self { partition, cutters: Cutters::with_limit(batch_len_max) }
    }

    /// As [`Cutters::cut`].
    ///
    /// # Errors
    /// As [`Cutters::cut`].
    pub async fn cut(&mut self, client: &impl Session, token: i64, len_max: i64) -> Result<Cut, Error> {
        let cuts = self.cutters.cut(client, &[(self.partition, token)], len_max).await?;
        Ok(cuts.into_iter().next().map_or(Cut::Nothing, |(_, cut)| cut))
    }
}

/// Cuts the next batch of a partition, as [`Cutter::cut`] does. Returns `None` if no record was staged, or if another streamer
/// has cut this batch.
///
/// # Errors
/// As [`Cutter::cut`].
pub async fn assign(client: &impl Session, partition: Partition, token: i64) -> Result<Option<Batch>, Error> {
    let mut cutter = Cutter::new(partition);
    loop {
        match cutter.cut(client, token, 0).await? {
            Cut::Nothing => return Ok(None),
            Cut::Batch(batch, _) => return Ok(Some(batch)),
            Cut::Counting => {}
        }
    }
}
