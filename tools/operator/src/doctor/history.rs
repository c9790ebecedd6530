//! The history, and the folds of the consumers: whether a new fold can start at the first record.

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;

use super::Log;
use super::finding::Finding;

/// Ranges of the history that are read. There is one, unless the history has holes.
const RANGES_LEN_MAX: i64 = 100;

/// Holes that are named one by one.
const HOLES_LEN_MAX: usize = 5;

/// Whether the history has what is reaped, and whether it can go on.
pub(super) async fn history(client: &Client, log: &Log) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for partition in &log.partitions {
        found.push((*partition, history_of(client, *partition).await?));
    }
    Ok(log.gather(found))
}

async fn history_of(client: &Client, partition: Partition) -> Result<Finding> {
    const CHECK: &str = "log.history";
    let last_reaped = pglog::first_retained(client, partition).await? - 1;
    let is_written = is_written(client, partition).await?;
    let ranges = ranges(client, partition).await?;
    let lacking = holes(&ranges, last_reaped);
    let holes: Vec<String> =
        lacking.iter().take(HOLES_LEN_MAX).map(|(first, last)| format!("{first} to {last}")).collect();
    let more = if lacking.len() > holes.len() { " and more" } else { "" };
    let (head, last_offset) = (pglog::head(client, partition).await?, last_archived(client, partition).await?);
    if last_offset > head {
        return Ok(Finding::fail(
            CHECK,
            format!("it ends at offset {last_offset}, and the head of the log is {head}: it is of another past"),
            "the records that get these offsets cannot be archived, and its consumer stops",
            format!("DELETE FROM history WHERE partition = {partition} AND record_offset > {head}"),
        ));
    }
    let lacks = format!("it lacks the reaped records {}{more}", holes.join(", "));
    if !is_written {
        return Ok(match lacking[..] {
            [] => Finding::ok(CHECK, "no consumer writes it, and it lacks no reaped record"),
            _ => Finding::warn(
                CHECK,
                format!("no consumer writes it, and {lacks}"),
                "new folds cannot start at offset 1",
                "start one, so that it keeps the records to come: consumer history --fold history",
            ),
        });
    }
    if last_offset > 0 && !is_part_ahead_there(client, last_offset).await? {
        return Ok(Finding::warn(
            CHECK,
            format!("the part for the offsets after those of record {last_offset} is not attached"),
            "its consumer stops where the last part ends, and the reaper deletes nothing more",
            format!(
                "make it: SELECT make_history_parts({partition}, {last_offset}, {last_offset}); attach a detached one"
            ),
        ));
    }
    let has = if lacking.is_empty() { "it lacks no reaped record".to_owned() } else { lacks };
    Ok(Finding::ok(CHECK, format!("a consumer writes it, it ends at offset {last_offset}, and {has}")))
}

/// The consumers that are registered without a fold.
pub(super) async fn folds(client: &Client, log: &Log) -> Result<Finding> {
    let row = client
        .query_one(
            "-- operator::doctor::folds
             SELECT string_agg(DISTINCT name, ', ' ORDER BY name) FROM checkpoints
             WHERE partition = ANY ($1) AND fold IS NULL",
            &[&log.partitions],
        )
        .await?;
    Ok(Finding::ok(
        "log.folds",
        match row.get::<_, Option<String>>(0) {
            None => "each consumer is registered with its fold".to_owned(),
            Some(names) => format!("registered without a fold: {names}. Start their own programs once, which note it"),
        },
    ))
}

/// The ranges up to `last_reaped` that no range of the history has.
fn holes(ranges: &[(i64, i64)], last_reaped: i64) -> Vec<(i64, i64)> {
    let mut next_offset = 1;
    let mut holes = Vec::new();
    for (first, last) in ranges.iter().copied().chain([(last_reaped + 1, last_reaped)]) {
        let first = first.min(last_reaped + 1);
        if first > next_offset {
            holes.push((next_offset, first - 1));
        }
        next_offset = next_offset.max(last + 1);
    }
    holes
}

async fn is_written(client: &Client, partition: Partition) -> Result<bool> {
    let row = client
        .query_one(
            "-- operator::doctor::is_written
             SELECT EXISTS (SELECT FROM checkpoints WHERE partition = $1 AND fold = 'history')",
            &[&partition],
        )
        .await?;
    Ok(row.get(0))
}

async fn ranges(client: &Client, partition: Partition) -> Result<Vec<(i64, i64)>> {
    let rows = client
        .query(
            "-- operator::doctor::ranges
             SELECT first_offset, last_offset FROM history_ranges WHERE partition = $1 ORDER BY first_offset LIMIT $2",
            &[&partition, &RANGES_LEN_MAX],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The last offset in the history, 0 if it is empty.
async fn last_archived(client: &Client, partition: Partition) -> Result<i64> {
    let row = client
        .query_one(
            "-- operator::doctor::last_archived
             SELECT COALESCE(max(record_offset), 0) FROM history WHERE partition = $1",
            &[&partition],
        )
        .await?;
    Ok(row.get(0))
}

/// Whether the part after the one that has `last_offset` can take records.
async fn is_part_ahead_there(client: &Client, last_offset: i64) -> Result<bool> {
    let row = client
        .query_one(
            "-- operator::doctor::is_part_ahead_there
             SELECT EXISTS (
                 SELECT FROM pg_inherits JOIN pg_class ON oid = inhrelid
                 WHERE inhparent = 'history'::regclass AND relname = 'history_' || $1::bigint / history_part_len() + 1)",
            &[&last_offset],
        )
        .await?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_what_is_reaped_and_in_no_range() {
        assert_eq!(holes(&[], 0), []);
        assert_eq!(holes(&[], 9), [(1, 9)]);
        assert_eq!(holes(&[(1, 20)], 9), []);
        assert_eq!(holes(&[(3, 5), (8, 20)], 9), [(1, 2), (6, 7)]);
        assert_eq!(holes(&[(1, 5)], 9), [(6, 9)]);
        assert_eq!(holes(&[(15, 20)], 9), [(1, 9)]);
    }
}
