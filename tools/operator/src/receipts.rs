//! Receipts that are put aside, because the mail server or the folder refused them for the last time: `dead-letters receipts`
//! lists them, `dead-letters resend` makes them due again.

use anyhow::{Context, Result, bail};
use deadpool_postgres::ClientWrapper as Client;

use crate::plain::one_line;

/// Receipts per query.
const PAGE_LEN_MAX: i64 = 1000;

/// Prints one line per receipt that is put aside.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn list(client: &Client) -> Result<bool> {
    let mut after_ride_id = i64::MIN;
    loop {
        let rows = client
            .query(
                "-- operator::receipts::list
                 SELECT ride_id, attempt_count, COALESCE(last_error, '') AS last_error FROM receipts
                 WHERE delivered_at IS NULL AND next_attempt_at = 'infinity' AND ride_id > $1
                 ORDER BY ride_id LIMIT $2",
                &[&after_ride_id, &PAGE_LEN_MAX],
            )
            .await
            .context("listing receipts")?;
        for row in &rows {
            after_ride_id = row.get("ride_id");
            let (attempt_count, last_error): (i32, &str) = (row.get("attempt_count"), row.get("last_error"));
            println!("ride {after_ride_id}, {attempt_count} attempts: {}", one_line(last_error));
        }
        if (rows.len() as i64) < PAGE_LEN_MAX {
            return Ok(true);
        }
    }
}

/// Makes one receipt due again, or all that are put aside. Their attempts are counted anew. A receipt that still waits for an
/// attempt gets it at once.
///
/// # Errors
/// There is no such receipt, or Postgres is away.
pub(crate) async fn resend(client: &Client, ride_id: Option<i64>) -> Result<bool> {
    let resent_count = client
        .execute(
            "-- operator::receipts::resend
             UPDATE receipts SET next_attempt_at = now(), attempt_count = 0
             WHERE delivered_at IS NULL AND last_error IS NOT NULL
               AND CASE WHEN $1::bigint IS NULL THEN next_attempt_at = 'infinity' ELSE ride_id = $1 END",
            &[&ride_id],
        )
        .await
        .context("making receipts due")?;
    match ride_id {
        Some(ride_id) if resent_count == 0 => bail!("no receipt of ride {ride_id} was refused and is undelivered"),
        _ => println!("{resent_count} receipts are due again"),
    }
    Ok(true)
}
