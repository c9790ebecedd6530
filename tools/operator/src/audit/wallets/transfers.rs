//! Transfers: each is two events, one at the wallet that pays and one at the wallet that receives.

use anyhow::{Context, Result};
use deadpool_postgres::Transaction;
use wallet::{BALANCE_MAX, State, decide_transfer, decimal};

use super::NAMED_LEN_MAX;
use super::chain::Doubt;
use crate::audit::report::Report;

/// States of a receiver that are tried. A wallet with so much money has few of them.
const STATES_LEN_MAX: i64 = 10_000;

/// Reports transfers that lack one of their events (W4). Two transfers of one amount between the same wallets look alike, so
/// they are counted.
pub(super) async fn compare(tx: &Transaction<'_>, report: &mut Report) -> Result<()> {
    let rows = tx
        .query(
            "-- operator::audit::halves
             SELECT payer::text, receiver::text, amount_minor, paid_count, received_count,
                    CASE WHEN paid_count > received_count THEN paid_version ELSE received_version END AS version
             FROM (
                 SELECT CASE WHEN amount_minor < 0 THEN wallet_id ELSE counterparty END AS payer,
                        CASE WHEN amount_minor < 0 THEN counterparty ELSE wallet_id END AS receiver,
                        abs(amount_minor) AS amount_minor,
                        count(*) FILTER (WHERE amount_minor < 0) AS paid_count,
                        count(*) FILTER (WHERE amount_minor > 0) AS received_count,
                        max(version) FILTER (WHERE amount_minor < 0) AS paid_version,
                        max(version) FILTER (WHERE amount_minor > 0) AS received_version
                 FROM wallet_events WHERE accepted AND action = 'transfer' GROUP BY 1, 2, 3
             ) AS transfer
             WHERE paid_count <> received_count ORDER BY 1, 2, 3 LIMIT $1",
            &[&NAMED_LEN_MAX],
        )
        .await
        .context("comparing the events of transfers")?;
    for row in &rows {
        let (payer, receiver, amount): (&str, &str, String) = (row.get(0), row.get(1), decimal(row.get(2)));
        let (paid_count, received_count, version): (i64, i64, i64) = (row.get(3), row.get(4), row.get(5));
        let at = if paid_count > received_count { payer } else { receiver };
        report.differ(format!(
            "wallet {at}, version {version}: a transfer of {amount} from {payer} to {receiver} lacks its other event: \
             {paid_count} are paid, and {received_count} received (W4)"
        ));
    }
    Ok(())
}

/// Whether the receiver had a state in which this transfer is rejected for this reason.
pub(super) async fn could_be_refused(tx: &Transaction<'_>, doubt: &Doubt) -> Result<bool> {
    let Doubt { payer, receiver, amount, reason } = doubt;
    let rows = tx
        .query(
            "-- operator::audit::could_be_refused
             SELECT version, balance_minor FROM wallet_events
             WHERE wallet_id = $1::text AND accepted AND balance_minor > $2 ORDER BY version LIMIT $3",
            &[receiver, &(BALANCE_MAX - amount.minor()), &STATES_LEN_MAX],
        )
        .await
        .context("reading the states of a receiver")?;
    let states = rows.iter().map(|row| State { version: row.get(0), balance_minor: row.get(1) });
    let refusal =
        |state| decide_transfer(*payer, state, *amount).0.outcome.err().map(|rejection| rejection.to_string());
    Ok(states.map(refusal).any(|refusal| refusal.as_ref() == Some(reason)))
}
