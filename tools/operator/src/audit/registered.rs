//! The registered consumers, each with the fold that its registration names. An audit compares a consumer only with the fold
//! that has derived its state.

use anyhow::{Context, Result};
use consumer::FoldId;
use deadpool_postgres::Transaction;
use pglog::Partition;

use super::report::ConsumerLine;

/// A consumer, as its row in `checkpoints` describes it.
pub(super) struct Registered {
    pub name: String,
    pub is_baseline: bool,
    pub last_offset: i64,
    /// Name and version. `None`: the consumer was registered without a fold.
    pub fold: Option<(String, i32)>,
    /// The state as JSON. `None`: its fold has rows, or the state is elsewhere.
    pub state: Option<String>,
    /// Whether its state is in a database of its own, so that there is nothing to compare here.
    pub is_elsewhere: bool,
}

impl Registered {
    /// Whether its state or its rows are here, and those of this fold in this version.
    pub fn has_fold(&self, id: FoldId) -> bool {
        !self.is_elsewhere
            && self.fold.as_ref().is_some_and(|(name, version)| name == id.name && *version == id.version)
    }

    /// Its line in the report, without a result.
    pub fn line(&self, partition: Partition) -> ConsumerLine {
        ConsumerLine {
            name: self.name.clone(),
            partition: partition.number(),
            is_baseline: self.is_baseline,
            last_offset: self.last_offset,
            fold: self.fold.as_ref().map(|(name, _)| name.clone()),
            fold_version: self.fold.as_ref().map(|(_, version)| *version),
            total: None,
            is_replaying: false,
            is_equal: None,
        }
    }
}

/// All consumers of the partition, the baseline among them, in the order of their checkpoints.
pub(super) async fn registered(tx: &Transaction<'_>, partition: Partition) -> Result<Vec<Registered>> {
    let rows = tx
        .query(
            "-- operator::audit::registered
             SELECT name, is_baseline, last_offset, fold, fold_version, state::text AS state,
                    told_token IS NOT NULL AS is_elsewhere
             FROM checkpoints
             WHERE partition = $1 ORDER BY last_offset, name",
            &[&partition],
        )
        .await
        .context("loading the consumers")?;
    let registered = |row: &tokio_postgres::Row| Registered {
        name: row.get("name"),
        is_baseline: row.get("is_baseline"),
        last_offset: row.get("last_offset"),
        fold: row.get::<_, Option<String>>("fold").zip(row.get("fold_version")),
        state: row.get("state"),
        is_elsewhere: row.get("is_elsewhere"),
    };
    Ok(rows.iter().map(registered).collect())
}
