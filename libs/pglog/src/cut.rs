//! Cutting batches: the statement that gives records their offsets (I2, I3), and cuts that would be too large for it.
//!
//! A batch is the set of rows that are visible in its snapshot and not in the snapshot of the batch before. Mostly its
//! snapshot is that of the statement which cuts it. If too many rows wait, a cut takes a part of their transactions: its
//! snapshot shows those, and hides the others, although they have ended too. So every statement is bounded, also after a
//! night without a streamer. A single transaction cannot be divided. If it is too large, it becomes a batch of its own, and
//! its rows are counted in bounded steps before.

use crate::Error;
use crate::batch::{Batch, IDS_LEN_MAX, SKIP_LEN};
use crate::partition::Partition;
use crate::record::Page;
use crate::session::Session;

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

/// Cuts the batches of a partition. It remembers how far it has counted a large transaction.
#[derive(Debug)]
pub struct Cutter {
    partition: Partition,
    batch_len_max: i64,
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

impl Cutter {
    /// A cutter that gives at most 100,000 records to a batch.
    pub fn new(partition: Partition) -> Self {
        Self::with_limit(partition, BATCH_LEN_MAX)
    }

    /// A cutter that gives at most `batch_len_max` records to a batch, unless they are of one transaction.
    pub fn with_limit(partition: Partition, batch_len_max: i64) -> Self {
        Self { partition, batch_len_max, planned: None }
    }

    /// Cuts the next batch: every staged row that is visible now and was not visible in the previous batch's snapshot, or a
    /// part of them. `token` is the random number that the batch's stream entries will carry. It also reads the batch in the
    /// same statement if it has at most `len_max` records and no late rows.
    ///
    /// # Errors
    /// [`Error::TransactionsStartedOver`] if the tables come from another cluster; otherwise Postgres is away.
    pub async fn cut(&mut self, client: &impl Session, token: i64, len_max: i64) -> Result<Cut, Error> {
        let mut planned = match self.planned.take() {
            Some(planned) => planned,
            None => match self.cut_at_once(client, token, len_max).await? {
                Some(cut) => return Ok(cut),
                None => self.plan(client).await?,
            },
        };
        if !self.count(client, &mut planned).await? {
            self.planned = Some(planned);
            return Ok(Cut::Counting);
        }
        self.cut_planned(client, token, &planned).await
    }

    /// Cuts by one statement, hence one snapshot: it counts exactly the rows that the stored snapshot describes. `None` if there
    /// are too many.
    ///
    /// It reads ranges of the index, and not all rows since `pg_snapshot_xmin`. So a transaction that stays open for an hour
    /// costs nothing.
    async fn cut_at_once(&self, client: &impl Session, token: i64, len_max: i64) -> Result<Option<Cut>, Error> {
        let partition = self.partition;
        let rows =
            client.query(CUT_AT_ONCE, &[&partition, &token, &len_max, &self.batch_len_max, &IDS_LEN_MAX]).await?;
        let row = rows.first().expect("edge has exactly one row");
        if !row.get::<_, bool>("in_order") {
            let (batch_xmax, cluster_xmax) = (row.get("batch_xmax"), row.get("cluster_xmax"));
            return Err(Error::TransactionsStartedOver { partition, batch_xmax, cluster_xmax });
        }
        if row.get("is_large") {
            return Ok(None);
        }
        if row.get::<_, Option<i64>>("first_offset").is_none() {
            return Ok(Some(Cut::Nothing));
        }
        let batch = Batch::from_row(partition, row);
        // A restored row may carry a transaction id of the future. It is counted and not read; the reader reports it.
        let is_read = row.get::<_, Option<i64>>("id").is_some() && rows.len() as i64 == batch.record_count;
        let page = is_read.then(|| Page::new(batch.partition, batch.first_offset, batch.token, rows));
        Ok(Some(Cut::Batch(batch, page)))
    }

    /// Chooses the transactions of the next batch.
    async fn plan(&self, client: &impl Session) -> Result<Planned, Error> {
        let row = client.query_one(PLAN, &[&self.partition, &self.batch_len_max]).await?;
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

    /// Counts further rows of the batch. Returns whether all are counted.
    async fn count(&self, client: &impl Session, planned: &mut Planned) -> Result<bool, Error> {
        let Some(transaction_id) = &planned.transaction_id else { return Ok(true) };
        let after_id = planned.ids.map_or(i64::MIN, |(_, last_id)| last_id);
        let row = client
            .query_one(
                "-- pglog::count
                 SELECT count(*), min(id), max(id) FROM (
                     SELECT id FROM staged_log_records
                     WHERE partition = $1 AND transaction_id = $2::text::xid8 AND id > $3
                     ORDER BY partition, transaction_id, id LIMIT $4) AS counted",
                &[&self.partition, transaction_id, &after_id, &SKIP_LEN],
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
    async fn cut_planned(&self, client: &impl Session, token: i64, planned: &Planned) -> Result<Cut, Error> {
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
                    &self.partition,
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
        Ok(row.map_or(Cut::Nothing, |row| Cut::Batch(Batch::from_row(self.partition, &row), None)))
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

/// The end of the log, and the snapshot of this statement.
macro_rules! edge {
    () => {
        "edge AS MATERIALIZED (
             SELECT COALESCE(max(first_offset + record_count), 1) AS next_offset,
                    -- The empty snapshot: nothing was visible before the first batch.
                    COALESCE(max(snapshot::text), '1:1:')::pg_snapshot AS snapshot,
                    pg_current_snapshot() AS now
             FROM (SELECT first_offset, record_count, snapshot FROM log_batches WHERE partition = $1
                   ORDER BY first_offset DESC LIMIT 1) AS newest
         )"
    };
}

/// Every list of rows ends behind the limit, so that a cut that is too large is noticed soon.
const CUT_AT_ONCE: &str = concat!(
    "-- pglog::assign
     WITH ",
    edge!(),
    ", fresh AS (
         SELECT count(*) AS count, min(id) AS first_id, max(id) AS last_id FROM (
             SELECT id FROM staged_log_records
             WHERE partition = $1 AND transaction_id >= (SELECT pg_snapshot_xmax(snapshot) FROM edge)
             ORDER BY partition, transaction_id LIMIT $4::bigint + 1) AS bounded
     ), late AS (
         -- A look-up per transaction. With = ANY (array), a plan made while the table is small reads the whole index.
         SELECT COALESCE(sum(of_one.count), 0)::bigint AS count, max(of_one.last_id) AS last_id
         FROM edge, pg_snapshot_xip(edge.snapshot) AS in_flight,
              LATERAL (SELECT count(*) AS count, max(id) AS last_id FROM (
                           SELECT id FROM staged_log_records
                           WHERE partition = $1 AND transaction_id = in_flight
                           ORDER BY partition, transaction_id LIMIT $4::bigint + 1) AS bounded) AS of_one
         -- The rows of a transaction that is still open are not even looked at: it may write millions.
         WHERE pg_visible_in_snapshot(in_flight, edge.now)
     ), cut AS (
         INSERT INTO log_batches
             (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id, token, last_id)
         SELECT $1, edge.next_offset, fresh.count + late.count, edge.now, fresh.first_id, fresh.last_id, $2,
                greatest(fresh.last_id, late.last_id)
         FROM edge, fresh, late
         WHERE fresh.count + late.count BETWEEN 1 AND $4
           AND pg_snapshot_xmax(edge.now) >= pg_snapshot_xmax(edge.snapshot)
         ON CONFLICT (partition, first_offset) DO NOTHING
         RETURNING first_offset, record_count, token, snapshot::text, fresh_first_id, fresh_last_id
     )
     SELECT page.*, cut.*, edge.snapshot::text AS previous_snapshot,
            pg_snapshot_xmax(edge.now)::text AS cluster_xmax, pg_snapshot_xmax(edge.snapshot)::text AS batch_xmax,
            pg_snapshot_xmax(edge.now) >= pg_snapshot_xmax(edge.snapshot) AS in_order,
            (SELECT count FROM fresh) + (SELECT count FROM late) > $4 AS is_large
     FROM edge LEFT JOIN cut ON true
     LEFT JOIN LATERAL (
         SELECT id, object, action, data, staged_at, traceparent FROM staged_log_records
         WHERE cut.record_count <= $3 AND (SELECT count FROM late) = 0
           AND cut.fresh_last_id - cut.fresh_first_id < $5
           AND partition = $1 AND id >= cut.fresh_first_id AND id <= cut.fresh_last_id
           AND transaction_id >= (SELECT pg_snapshot_xmax(snapshot) FROM edge)
           AND pg_visible_in_snapshot(transaction_id, edge.now)
         ORDER BY partition, id
     ) AS page ON true
     ORDER BY page.id"
);

/// Chooses one transaction that was open at the edge and has ended since; or as many later transactions, the oldest first, as
/// have at most `$2` rows together; or the oldest of them, if it alone has more. The snapshot shows these, and hides all that
/// were open at the edge, are open now, or come later.
const PLAN: &str = concat!(
    "-- pglog::plan
     WITH ",
    edge!(),
    ", late AS MATERIALIZED (
         SELECT in_flight AS transaction_id
         FROM edge, pg_snapshot_xip(edge.snapshot) AS in_flight,
              LATERAL (SELECT FROM staged_log_records WHERE partition = $1 AND transaction_id = in_flight
                       ORDER BY partition, transaction_id LIMIT 1) AS any_row
         WHERE pg_visible_in_snapshot(in_flight, edge.now) ORDER BY in_flight LIMIT 1
     ), fresh AS MATERIALIZED (
         SELECT transaction_id, id FROM staged_log_records
         WHERE partition = $1 AND transaction_id >= (SELECT pg_snapshot_xmax(snapshot) FROM edge)
           AND NOT EXISTS (SELECT FROM late)
         ORDER BY partition, transaction_id, id LIMIT $2::bigint + 1
     ), bounds AS MATERIALIZED (
         SELECT (SELECT count(*) FROM fresh) > $2 AS is_full,
                (SELECT transaction_id FROM fresh ORDER BY transaction_id LIMIT 1) AS first,
                (SELECT transaction_id FROM fresh ORDER BY transaction_id DESC LIMIT 1) AS last
     ), chosen AS MATERIALIZED (
         SELECT edge.*, late.transaction_id AS late,
                CASE WHEN late.transaction_id IS NOT NULL THEN late.transaction_id
                     WHEN is_full AND first = last THEN first END AS transaction_id,
                CASE WHEN late.transaction_id IS NOT NULL THEN pg_snapshot_xmax(edge.snapshot)
                     WHEN NOT is_full THEN pg_snapshot_xmax(edge.now)
                     WHEN first = last THEN (first::text::bigint + 1)::text::xid8
                     ELSE last END AS xmax
         FROM bounds, edge LEFT JOIN late ON true
     ), hidden AS (
         SELECT in_flight FROM chosen, pg_snapshot_xip(chosen.snapshot) AS in_flight
         WHERE in_flight IS DISTINCT FROM chosen.late
         UNION
         SELECT in_flight FROM chosen, pg_snapshot_xip(chosen.now) AS in_flight
         WHERE in_flight >= pg_snapshot_xmax(chosen.snapshot) AND in_flight < chosen.xmax
     )
     SELECT next_offset, snapshot::text AS previous_snapshot, transaction_id::text, late IS NOT NULL AS is_late,
            concat(COALESCE((SELECT in_flight FROM hidden ORDER BY in_flight LIMIT 1), xmax), ':', xmax, ':',
                   (SELECT string_agg(in_flight::text, ',' ORDER BY in_flight) FROM hidden)) AS snapshot,
            record_count, first_id, last_id
     FROM chosen, LATERAL (SELECT count(*) AS record_count, min(id) AS first_id, max(id) AS last_id
                           FROM fresh WHERE fresh.transaction_id < chosen.xmax) AS counted"
);
