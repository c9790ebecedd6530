//! The wallets: every event is decided again, by the functions that the api decides with.
//!
//! - W2: the versions of a wallet are contiguous, and each state is that of the version before with the event applied.
//! - W3: no balance is below 0.
//! - W4: all balances together are the accepted credits less the accepted debits, and each transfer is at both wallets.
//! - The log's records of wallets say what the events say, as far as the log or the history has them.
//!
//! All of it is read in the audit's one snapshot. The events are read once, ordered by wallet and version, page by page.

mod chain;
mod records;
mod transfers;

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;
use pglog::Partition;
use wallet::decimal;

use super::Origin;
use super::report::{Report, WalletsLine};
use chain::{Attempt, Chain};

/// Rows per query.
const PAGE_LEN_MAX: i32 = 1000;

/// Differences of one kind that are named.
const NAMED_LEN_MAX: i64 = 100;

/// Audits the wallets. There is no line in the report if there is none, or if the database has no tables of wallets.
pub(super) async fn audit(
    tx: &Transaction<'_>,
    partitions: &[Partition],
    origin: Origin,
    report: &mut Report,
) -> Result<()> {
    if !has_tables(tx).await? {
        report.note(
            "wallets were not compared: this database has no tables of wallets (schema.sql makes them)".to_owned(),
        );
        return Ok(());
    }
    let before = report.difference_count;
    // Everything is read, in an order that no index has, and the session's settings avoid that.
    tx.batch_execute("SET LOCAL enable_seqscan = on").await.context("setting up the reading of all wallets")?;
    let mut line = follow(tx, report).await?;
    compare_view(tx, &mut line, report).await?;
    transfers::compare(tx, report).await?;
    line.record_count = records::compare(tx, partitions, origin, report).await?;
    line.is_equal = report.difference_count == before;
    if line.wallet_count > 0 || line.event_count > 0 || !line.is_equal {
        report.wallets = Some(line);
    }
    Ok(())
}

async fn has_tables(tx: &Transaction<'_>) -> Result<bool> {
    let sql = "-- operator::audit::has_wallets\nSELECT to_regclass('wallet_events') IS NOT NULL";
    Ok(tx.query_one(sql, &[]).await.context("looking for the tables of wallets")?.get(0))
}

/// Reads all events, and decides each of them again (W2, W3, W4).
async fn follow(tx: &Transaction<'_>, report: &mut Report) -> Result<WalletsLine> {
    let statement = "-- operator::audit::follow_wallets
        SELECT wallet_id::text, event_id::text, version, balance_minor, accepted, reason, action, amount_minor, counterparty
        FROM wallet_events ORDER BY wallet_id, version, accepted DESC, event_id";
    let statement = tx.prepare_cached(statement).await.context("reading the wallets' events")?;
    // A cursor: Postgres sorts once, and holds the rows that were not asked for yet.
    let cursor = tx.bind(&statement, &[]).await.context("reading the wallets' events")?;
    let (mut chain, mut line) = (Chain::default(), WalletsLine::default());
    loop {
        let rows = tx.query_portal(&cursor, PAGE_LEN_MAX).await.context("reading the wallets' events")?;
        for row in &rows {
            let attempt = Attempt::from_row(row);
            line.event_count += 1;
            line.rejected_count += u64::from(!attempt.accepted);
            let doubt = chain.take(&attempt, |what| report.differ(what));
            if let Some(doubt) = doubt
                && !transfers::could_be_refused(tx, &doubt).await?
            {
                report.differ(format!("{attempt}: it was rejected ({}), and should be accepted", doubt.reason));
            }
        }
        if rows.is_empty() {
            break;
        }
    }
    let sums = chain.finish();
    line.balance_minor = sums.balance_minor;
    if sums.balance_minor != sums.world_minor {
        report.differ(format!(
            "wallets: the balances are {} together, and the accepted credits less the accepted debits {} (W4)",
            decimal_of(sums.balance_minor),
            decimal_of(sums.world_minor)
        ));
    }
    Ok(line)
}

/// Compares the view `wallets`, which people sum, with the events. It shows the wallets that have a lock row.
async fn compare_view(tx: &Transaction<'_>, line: &mut WalletsLine, report: &mut Report) -> Result<()> {
    let rows = tx
        .query(
            "-- operator::audit::wallets_without_lock
             SELECT e.wallet_id::text, max(e.version) FROM wallet_events AS e
             WHERE NOT EXISTS (SELECT FROM wallet_locks AS l WHERE l.wallet_id = e.wallet_id)
             GROUP BY e.wallet_id ORDER BY e.wallet_id LIMIT $1",
            &[&NAMED_LEN_MAX],
        )
        .await
        .context("looking for the locks of wallets")?;
    for row in &rows {
        let (wallet, version): (&str, i64) = (row.get(0), row.get(1));
        report.differ(format!("wallet {wallet}, version {version}: it has events, and no row in wallet_locks"));
    }
    let row = tx
        .query_one(
            "-- operator::audit::wallets
             SELECT count(*), COALESCE(sum(balance_minor), 0)::text FROM wallets",
            &[],
        )
        .await
        .context("summing the wallets")?;
    // As text: the sum of 64-bit numbers is a numeric.
    let balance_minor: i128 = row.get::<_, &str>(1).parse().context("reading the sum of the wallets")?;
    line.wallet_count = row.get(0);
    if rows.is_empty() && balance_minor != line.balance_minor {
        report.differ(format!(
            "wallets: the view has {} together, and the newest events {}",
            decimal_of(balance_minor),
            decimal_of(line.balance_minor)
        ));
    }
    Ok(())
}

/// A sum of cents as a decimal. It may be larger than any balance.
pub(super) fn decimal_of(minor: i128) -> String {
    match i64::try_from(minor) {
        Ok(minor) => decimal(minor),
        Err(_) => format!("{minor} cents"),
    }
}
