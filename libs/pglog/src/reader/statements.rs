//! The statements by which a [`Reader`](super::Reader) finds the rows of batches, along indexes, in bounded pieces.

/// Rows of one batch, with the given columns, the first of which is `id`. It has two sources: the id range of the batch, and
/// the few transactions that were open at the previous snapshot and wrote outside of that range. It reads each along an index
/// and stops after `$3` rows, or at the id `$10`: so a page costs the same in a batch of any size, also if its id range is
/// full of rows of other batches. Most batches have no such transactions; for these the second half of the statement is left
/// out.
macro_rules! page_rows {
    ($columns:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM staged_log_records
             WHERE EXISTS (SELECT FROM snapshots)
               AND partition = $1 AND id > $2 AND id >= $6 AND id <= least($7::bigint, $10::bigint)
               AND NOT pg_visible_in_snapshot(transaction_id, (SELECT previous FROM snapshots))
               AND pg_visible_in_snapshot(transaction_id, (SELECT current FROM snapshots))
             ORDER BY partition, id LIMIT $3"
        )
    };
    ($columns:literal, with_late) => {
        concat!(
            "SELECT * FROM ((",
            page_rows!($columns),
            ") UNION ALL
             (SELECT late.* FROM pg_snapshot_xip((SELECT previous FROM snapshots)) AS in_flight,
              LATERAL (SELECT ",
            $columns,
            " FROM staged_log_records
                       WHERE partition = $1 AND transaction_id = in_flight
                         AND id > $2 AND (id < $6 OR id > $7) AND id <= $10
                       ORDER BY partition, transaction_id, id LIMIT $3) AS late
              WHERE pg_visible_in_snapshot(in_flight, (SELECT current FROM snapshots)))) AS page
             ORDER BY id LIMIT $3"
        )
    };
}

/// The snapshots of one batch; none if the batch is marked as reaped, or is another one by now.
macro_rules! snapshots {
    () => {
        "WITH snapshots AS MATERIALIZED (
             SELECT $4::text::pg_snapshot AS previous, $5::text::pg_snapshot AS current FROM log_batches
             WHERE partition = $1 AND first_offset = $8 AND token = $9 AND reaped_at IS NULL
         )
         "
    };
}

/// Selects the columns of a page.
pub(super) const PAGE: &str =
    concat!("-- pglog::page\n", snapshots!(), page_rows!("id, object, action, data, staged_at, traceparent"));
pub(super) const PAGE_WITH_LATE: &str = concat!(
    "-- pglog::page_with_late\n",
    snapshots!(),
    page_rows!("id, object, action, data, staged_at, traceparent", with_late)
);

/// Skips rows: their number, and the highest of their ids.
pub(super) const SKIP: &str =
    concat!("-- pglog::skip\n", snapshots!(), "SELECT count(*), max(id) FROM (", page_rows!("id"), ") AS skipped");
pub(super) const SKIP_WITH_LATE: &str = concat!(
    "-- pglog::skip_with_late\n",
    snapshots!(),
    "SELECT count(*), max(id) FROM (",
    page_rows!("id", with_late),
    ") AS skipped"
);

/// Selects the columns of a page, and the batch of each row: all rows of the batches from offset `$2` on, as many batches as
/// have at most `$3` rows together, in ranges of at most `$4` ids together. Of each batch it reads the two sources that are
/// described above.
pub(super) const WHOLE_BATCHES: &str = "-- pglog::whole_batches
    WITH ahead AS MATERIALIZED (
        SELECT first_offset, record_count, token, snapshot, reaped_at,
               COALESCE(fresh_first_id, 0) AS first_id, COALESCE(fresh_last_id, -1) AS last_id
        FROM log_batches
        -- The batch before them is read too, for its snapshot.
        WHERE partition = $1
          AND first_offset >= COALESCE((SELECT first_offset FROM log_batches WHERE partition = $1 AND first_offset < $2
                                        ORDER BY first_offset DESC LIMIT 1), $2)
        ORDER BY first_offset LIMIT $3::bigint + 1
    ), whole AS MATERIALIZED (
        SELECT first_offset, record_count, token, snapshot, first_id, last_id, COALESCE(previous, '1:1:') AS previous
        FROM (SELECT *, lag(snapshot) OVER (ORDER BY first_offset) AS previous,
                     sum(last_id - first_id + 1) FILTER (WHERE first_offset >= $2) OVER (ORDER BY first_offset) AS id_count
              FROM ahead) AS following
        WHERE first_offset >= $2 AND first_offset + record_count - $2 <= $3 AND id_count <= $4::bigint
          AND reaped_at IS NULL AND (previous IS NOT NULL OR first_offset = 1)
    )
    SELECT page.*, whole.first_offset, whole.token, whole.record_count
    FROM whole, LATERAL (
        SELECT * FROM (
            (SELECT id, object, action, data, staged_at, traceparent FROM staged_log_records
             WHERE partition = $1 AND id >= whole.first_id AND id <= whole.last_id
               AND NOT pg_visible_in_snapshot(transaction_id, whole.previous)
               AND pg_visible_in_snapshot(transaction_id, whole.snapshot)
             ORDER BY partition, id LIMIT whole.record_count)
            UNION ALL
            (SELECT late.* FROM pg_snapshot_xip(whole.previous) AS in_flight,
             LATERAL (SELECT id, object, action, data, staged_at, traceparent FROM staged_log_records
                      WHERE partition = $1 AND transaction_id = in_flight
                        AND (id < whole.first_id OR id > whole.last_id)
                      ORDER BY partition, transaction_id, id LIMIT whole.record_count) AS late
             WHERE pg_visible_in_snapshot(in_flight, whole.snapshot))) AS of_batch
        ORDER BY id LIMIT whole.record_count) AS page
    ORDER BY whole.first_offset, page.id";
