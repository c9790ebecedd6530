//! The statements that cut batches.

/// Cuts the next batch of each partition of `$1`, with the token at its place in `$2`, and reads the batches of at most `$3`
/// records. All of it is one statement, hence one snapshot. A batch of more than `$4` records is not cut.
///
/// The rows are inserted in the order of `$1`. Two leaders that cut the same partitions in the same order cannot wait for each
/// other in a circle. Every list of rows ends behind the limit, so that a cut that is too large is noticed soon.
pub(super) const CUT_AT_ONCE: &str = "-- pglog::assign
     WITH edges AS MATERIALIZED (
         SELECT wanted.partition, wanted.token, COALESCE(newest.first_offset + newest.record_count, 1) AS next_offset,
                -- The empty snapshot: nothing was visible before the first batch.
                COALESCE(newest.snapshot, '1:1:'::pg_snapshot) AS snapshot, pg_current_snapshot() AS now
         FROM unnest($1::int[], $2::bigint[]) AS wanted(partition, token)
         LEFT JOIN LATERAL (SELECT first_offset, record_count, snapshot FROM log_batches
                            WHERE partition = wanted.partition ORDER BY first_offset DESC LIMIT 1) AS newest ON true
     ), counted AS MATERIALIZED (
         SELECT edges.*, fresh.first_id, fresh.last_id AS fresh_last_id, late.count AS late_count,
                fresh.count + late.count AS count, greatest(fresh.last_id, late.last_id) AS last_id,
                pg_snapshot_xmax(now) >= pg_snapshot_xmax(snapshot) AS in_order
         FROM edges
         CROSS JOIN LATERAL (
             SELECT count(*) AS count, min(id) AS first_id, max(id) AS last_id FROM (
                 SELECT id FROM staged_log_records
                 WHERE partition = edges.partition AND transaction_id >= pg_snapshot_xmax(edges.snapshot)
                 ORDER BY partition, transaction_id LIMIT $4::bigint + 1) AS bounded) AS fresh
         CROSS JOIN LATERAL (
             -- A look-up per transaction. With = ANY (array), a plan made while the table is small reads the whole index.
             SELECT COALESCE(sum(of_one.count), 0)::bigint AS count, max(of_one.last_id) AS last_id
             FROM pg_snapshot_xip(edges.snapshot) AS in_flight,
                  LATERAL (SELECT count(*) AS count, max(id) AS last_id FROM (
                               SELECT id FROM staged_log_records
                               WHERE partition = edges.partition AND transaction_id = in_flight
                               ORDER BY partition, transaction_id LIMIT $4::bigint + 1) AS bounded) AS of_one
             -- The rows of a transaction that is still open are not even looked at: it may write millions.
             WHERE pg_visible_in_snapshot(in_flight, edges.now)) AS late
     ), cut AS (
         INSERT INTO log_batches
             (partition, first_offset, record_count, snapshot, fresh_first_id, fresh_last_id, token, last_id)
         SELECT partition, next_offset, count, now, first_id, fresh_last_id, token, last_id
         FROM counted WHERE count BETWEEN 1 AND $4 AND in_order
         ON CONFLICT (partition, first_offset) DO NOTHING
         RETURNING partition, first_offset, record_count, token, snapshot::text, fresh_first_id, fresh_last_id
     )
     SELECT page.*, counted.partition, cut.first_offset, cut.record_count, cut.token, cut.snapshot, cut.fresh_first_id,
            cut.fresh_last_id, counted.snapshot::text AS previous_snapshot, now::text AS now, in_order,
            pg_snapshot_xmax(now)::text AS cluster_xmax, pg_snapshot_xmax(counted.snapshot)::text AS batch_xmax,
            counted.count > $4 AS is_large
     FROM counted LEFT JOIN cut ON cut.partition = counted.partition
     LEFT JOIN LATERAL (
         SELECT id, object, action, data, staged_at, traceparent FROM staged_log_records
         WHERE cut.record_count <= $3 AND counted.late_count = 0 AND cut.fresh_last_id - cut.fresh_first_id < $5
           AND partition = counted.partition AND id >= cut.fresh_first_id AND id <= cut.fresh_last_id
           AND transaction_id >= pg_snapshot_xmax(counted.snapshot)
           AND pg_visible_in_snapshot(transaction_id, counted.now)
         ORDER BY partition, id
     ) AS page ON true
     ORDER BY counted.partition, page.id";

/// The end of one partition, and the snapshot of this statement.
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

/// Chooses one transaction that was open at the edge and has ended since; or as many later transactions, the oldest first, as
/// have at most `$2` rows together; or the oldest of them, if it alone has more. The snapshot shows these, and hides all that
/// were open at the edge, are open now, or come later.
pub(super) const PLAN: &str = concat!(
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
