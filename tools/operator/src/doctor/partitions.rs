//! The partitions: whether all that decides the partition of a key agrees (P1), and whether nothing lies beyond the last one.

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, PartitionCount};

use super::finding::Finding;
use super::{Log, ask};

/// Keys on which the function of the tables is tried.
const KEYS: [&str; 8] = ["42", "43", "44", "45", "account-7", "photos/17", "", "ü"];

/// The check.
pub(super) async fn check(client: &Client, log: &Log) -> Result<Finding> {
    const CHECK: &str = "log.partitions";
    const WHY: &str = "records of one key would be in several partitions, and lose their order";
    const APPLY: &str = "apply schema.sql of this version again, without -v partitions";
    let Log { count, .. } = log;
    let computed = client
        .query(
            "-- operator::doctor::partition_of
             SELECT partition_of(key) FROM unnest($1::text[]) WITH ORDINALITY AS tried (key, place) ORDER BY place",
            &[&&KEYS[..]],
        )
        .await
        .context("asking for the partitions of keys")?;
    let computed: Vec<Option<i32>> = computed.iter().map(|row| row.get(0)).collect();
    let wanted = KEYS.map(|key| Some(count.partition_of(key).number()));
    if computed != wanted {
        let what = format!("partition_of() is not the one of a log with {count} partition(s)");
        return Ok(Finding::fail(CHECK, what, WHY, APPLY));
    }
    let row = ask(
        client,
        "-- operator::doctor::beyond
         SELECT (SELECT pg_get_constraintdef(oid) FROM pg_constraint
                 WHERE conrelid = to_regclass('staged_log_records') AND conname = 'staged_log_records_partition_known'),
                greatest((SELECT max(partition) FROM log_batches), (SELECT max(partition) FROM checkpoints))",
    )
    .await?;
    let condition: Option<&str> = row.get(0);
    if !condition.is_some_and(|condition| allows(condition, *count)) {
        let what = format!("no CHECK keeps records out of partitions beyond {}", count.number() - 1);
        return Ok(Finding::fail(CHECK, what, "no streamer reads such records", APPLY));
    }
    match row.get::<_, Option<Partition>>(1) {
        Some(highest) if !count.has(highest) => Ok(Finding::fail(
            CHECK,
            format!("the log has {count} partition(s), and batches or consumers in partition {highest}"),
            "no process reads there",
            "look at them: they came with a dump, or another number of partitions was written into the functions",
        )),
        _ => Ok(Finding::ok(CHECK, format!("{count}, and the functions and the CHECK of the tables agree"))),
    }
}

/// Whether a condition allows the partitions of such a log, and no others.
fn allows(condition: &str, count: PartitionCount) -> bool {
    condition.contains(&format!("partition < {count})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_in_a_condition_is_compared_as_a_whole() {
        let eight = PartitionCount::new(8).unwrap();
        let condition = |count| format!("CHECK (((partition >= 0) AND (partition < {count}))) NOT VALID");
        assert!(allows(&condition(8), eight));
        assert!(!allows(&condition(80), eight) && !allows(&condition(18), eight));
    }
}
