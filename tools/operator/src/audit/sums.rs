//! The consumers of all partitions: the sum over the partitions must be SQL's own sum as soon as every record is folded (P3).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;
use pglog::PartitionCount;

use super::report::{ConsumerLine, Report, SumLine, TotalLine};

/// Adds up the lines of each consumer with the fold `distance`, and compares the sum. All partitions and the rides were audited.
/// With one partition there is nothing to add up.
pub(super) async fn compare(tx: &Transaction<'_>, count: PartitionCount, report: &mut Report) -> Result<()> {
    if count == PartitionCount::ONE {
        return Ok(());
    }
    let with_letters = with_letters(tx).await?;
    let mut by_name: BTreeMap<String, Vec<ConsumerLine>> = BTreeMap::new();
    for line in report.consumers.iter().filter(|line| !line.is_baseline) {
        by_name.entry(line.name.clone()).or_default().push(line.clone());
    }
    for (name, lines) in by_name {
        if lines.len() < report.partitions.len() {
            let places: Vec<String> = lines.iter().map(|line| line.partition.to_string()).collect();
            report.note(format!("{name}: it is registered in the partitions {} only", places.join(", ")));
            continue;
        }
        let totals: Vec<&TotalLine> = lines.iter().filter_map(|line| line.total.as_ref()).collect();
        if totals.len() < lines.len() {
            continue;
        }
        let ride_count = totals.iter().map(|total| total.ride_count).sum();
        let total_distance_mm = totals.iter().map(|total| i128::from(total.total_distance_mm)).sum();
        let is_complete = has_everything(&lines, report) && !with_letters.contains(&name);
        let rides = report.rides.as_ref().map(|rides| (rides.ride_count, rides.total_distance_mm));
        let is_equal = rides.filter(|_| is_complete).map(|rides| rides == (ride_count, total_distance_mm));
        if let (Some(false), Some((rides, mm))) = (is_equal, rides) {
            report.differ(format!(
                "{name}: over all partitions it has {ride_count} rides and {total_distance_mm} mm, and the table of rides has \
                 {rides} and {mm} mm (P3)"
            ));
        }
        report.sums.push(SumLine { name, ride_count, total_distance_mm, is_equal });
    }
    Ok(())
}

/// Whether every record has an offset, and the consumer of these lines has passed it.
fn has_everything(lines: &[ConsumerLine], report: &Report) -> bool {
    report.partitions.iter().all(|place| {
        let is_passed = |line: &ConsumerLine| line.partition == place.partition && line.last_offset == place.head;
        place.staged_count == 0 && lines.iter().any(is_passed)
    })
}

/// The consumers whose states lack records on purpose.
async fn with_letters(tx: &Transaction<'_>) -> Result<BTreeSet<String>> {
    let sql = "-- operator::audit::with_letters\nSELECT DISTINCT name FROM dead_letters";
    let rows = tx.query(sql, &[]).await.context("looking for consumers with dead letters")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
