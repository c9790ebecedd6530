//! The charges at the payment processor, compared with the bookings and the receipts, both ways.
//!
//! ```text
//! processor: charges, page by page ──▶ the booking of each:  none? another amount? another charge?
//! Postgres:  bookings with a charge ──▶ the charge of each:  none? not paid?
//!            receipts ───────────────▶ the booking of each:  not paid?
//! ```
//!
//! Unlike the log, the processor has no snapshots, so this part of the audit reads the present state. A booking is written
//! before its charge is made, and finished after it: a charge whose booking is unfinished is in progress, and no difference.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use ::payments::{ChargePage, ChargeState, Charged, Stripe};
use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio_postgres::Row;

use super::report::{PaymentsLine, Report};

/// Bookings of one page.
const PAGE_LEN: i64 = 1000;

/// After so many bookings without a charge the key is that of another account, and looking further is useless.
const MISSING_COUNT_MAX: u64 = 100;

/// Compares the charges of the last `since`, or all.
///
/// # Errors
/// A server is away, or refuses.
pub(super) async fn audit(
    client: &Client,
    stripe: &Stripe,
    since: Option<Duration>,
    report: &mut Report,
) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let since_s = since.map_or(0, |since| now.saturating_sub(since).as_secs() as i64);
    let installation = client.query_one("-- operator::audit::installation\nSELECT installation_id()::text", &[]).await;
    let installation: String = installation.context("asking which installation this is")?.get(0);
    let mut comparison =
        Comparison { client, stripe, since_s, installation, seen: HashSet::new(), line: PaymentsLine::default() };
    comparison.charges(report).await?;
    comparison.bookings(report).await?;
    comparison.receipts(report).await?;
    report.payments = Some(comparison.line);
    Ok(())
}

struct Comparison<'a> {
    client: &'a Client,
    stripe: &'a Stripe,
    since_s: i64,
    /// The name that our charges carry.
    installation: String,
    /// The rides whose charges were compared. 8 bytes for each, so a million takes some 16 MB.
    seen: HashSet<i64>,
    line: PaymentsLine,
}

impl Comparison<'_> {
    async fn charges(&mut self, report: &mut Report) -> Result<()> {
        let mut last: Option<Charged> = None;
        loop {
            let page = self.stripe.page(None, self.since_s, last.as_ref()).await;
            let ChargePage { data, has_more } = page.context("reading the charges at the processor")?;
            let bookings = self.bookings_of(&data).await?;
            for (charged, booking) in data.iter().zip(&bookings) {
                self.compare(charged, booking, report);
            }
            last = data.into_iter().next_back();
            if !has_more || last.is_none() {
                return Ok(());
            }
        }
    }

    /// The booking of each charge, in the same order: by the key that the charge carries, or by the charge's id.
    async fn bookings_of(&self, page: &[Charged]) -> Result<Vec<Row>> {
        let ids: Vec<&str> = page.iter().map(|charged| charged.id.as_str()).collect();
        let keys: Vec<Option<&str>> =
            page.iter().map(|charged| charged.charge_key().filter(|key| is_uuid(key))).collect();
        self.client
            .query(
                "-- operator::audit::bookings_of
                 SELECT b.ride_id, b.stripe_charge_id, b.amount_cents, b.currency, b.stripe_customer_id,
                        op.id IS NOT NULL AND op.status <> 'finished' AS is_in_progress
                 FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS asked (charge_id, charge_key, place)
                 LEFT JOIN bookings AS keyed ON keyed.charge_key = asked.charge_key::uuid
                 LEFT JOIN bookings AS named ON named.stripe_charge_id = asked.charge_id
                 LEFT JOIN bookings AS b ON b.ride_id = COALESCE(keyed.ride_id, named.ride_id)
                 LEFT JOIN tracked_operations AS op ON op.id = b.operation_id
                 ORDER BY place",
                &[&ids, &keys],
            )
            .await
            .context("reading the bookings of charges")
    }

    fn compare(&mut self, charged: &Charged, booking: &Row, report: &mut Report) {
        let Some(ride_id) = booking.get::<_, Option<i64>>("ride_id") else {
            return self.without_booking(charged, report);
        };
        self.line.charge_count += 1;
        let (id, noted) = (&charged.id, booking.get::<_, Option<&str>>("stripe_charge_id"));
        let is_noted = noted == Some(id);
        match charged.state() {
            // It was looked at and settled.
            _ if charged.refunded && !is_noted => {}
            ChargeState::Failed | ChargeState::Pending if is_noted => {
                report.differ(format!("ride {ride_id} was accepted, and its charge {id} is not paid"));
            }
            ChargeState::Failed => {}
            ChargeState::Pending => self.line.in_progress_count += 1,
            ChargeState::Paid => match noted {
                Some(_) if is_noted => self.paid(ride_id, charged, booking, report),
                Some(other) => report.differ(format!("ride {ride_id} was charged twice: {other} and {id}")),
                None if booking.get("is_in_progress") => self.line.in_progress_count += 1,
                None => report.differ(format!("ride {ride_id} was charged by {id}, and its booking has no charge")),
            },
        }
        if is_noted {
            self.seen.insert(ride_id);
        }
    }

    fn without_booking(&mut self, charged: &Charged, report: &mut Report) {
        let is_ours = charged.metadata.get("installation") == Some(&self.installation);
        if !is_ours {
            self.line.foreign_count += 1;
            return;
        }
        self.line.charge_count += 1;
        if charged.is_paid() && !charged.refunded {
            let Charged { id, amount, currency, customer, metadata, .. } = charged;
            let ride = metadata.get("ride_id").map_or("unknown", String::as_str);
            let (amount, currency) = (amount.unwrap_or_default(), currency.as_deref().unwrap_or_default());
            let customer = customer.as_deref().unwrap_or("nobody");
            report.differ(format!(
                "the charge {id} ({amount} {currency} of {customer}, for ride {ride}) has no booking here"
            ));
        }
    }

    fn paid(&mut self, ride_id: i64, charged: &Charged, booking: &Row, report: &mut Report) {
        let wanted: (i64, &str, &str) =
            (booking.get("amount_cents"), booking.get("currency"), booking.get("stripe_customer_id"));
        let found = (charged.amount, charged.currency.as_deref(), charged.customer.as_deref());
        if found == (Some(wanted.0), Some(wanted.1), Some(wanted.2)) {
            self.line.equal_count += 1;
        } else {
            let id = &charged.id;
            report.differ(format!("ride {ride_id} is booked for {wanted:?}, and its charge {id} is for {found:?}"));
        }
    }

    /// Looks up the charges that were not among the pages: they are missing, were made meanwhile, or are older than `since`.
    async fn bookings(&mut self, report: &mut Report) -> Result<()> {
        let (mut last_ride_id, mut missing_count) = (0_i64, 0);
        loop {
            let rows = self
                .client
                .query(
                    "-- operator::audit::charged_bookings
                     SELECT ride_id, stripe_charge_id, amount_cents, currency, stripe_customer_id
                     FROM bookings JOIN rides ON rides.id = ride_id
                     WHERE ride_id > $1 AND stripe_charge_id IS NOT NULL AND rides.created_at > to_timestamp($2::float8)
                     ORDER BY ride_id LIMIT $3",
                    &[&last_ride_id, &(self.since_s as f64), &PAGE_LEN],
                )
                .await
                .context("reading charged bookings")?;
            for row in &rows {
                last_ride_id = row.get("ride_id");
                if self.seen.contains(&last_ride_id) {
                    continue;
                }
                let charge_id: &str = row.get("stripe_charge_id");
                match self.stripe.show(charge_id).await.context("reading a charge at the processor")? {
                    Some(charged) if charged.is_paid() => {
                        self.line.charge_count += 1;
                        self.paid(last_ride_id, &charged, row, report);
                    }
                    Some(_) => {
                        report.differ(format!(
                            "ride {last_ride_id} was accepted, and its charge {charge_id} is not paid"
                        ));
                    }
                    None => {
                        missing_count += 1;
                        let what =
                            format!("ride {last_ride_id} was accepted, and the processor has no charge {charge_id}");
                        report.differ(what);
                    }
                }
                if missing_count == MISSING_COUNT_MAX {
                    report.note("no further bookings were compared: is STRIPE_API_KEY of another account?".to_owned());
                    return Ok(());
                }
            }
            if rows.len() < PAGE_LEN as usize {
                return Ok(());
            }
        }
    }

    async fn receipts(&mut self, report: &mut Report) -> Result<()> {
        let rows = self
            .client
            .query(
                "-- operator::audit::receipts_without_charge
                 SELECT ride_id FROM receipts LEFT JOIN bookings USING (ride_id)
                 WHERE stripe_charge_id IS NULL ORDER BY ride_id LIMIT 1000",
                &[],
            )
            .await
            .context("reading receipts")?;
        for row in rows {
            report.differ(format!("ride {} has a receipt and no charge", row.get::<_, i64>(0)));
        }
        let waiting = "-- operator::audit::charges_without_receipt
            SELECT count(*) FROM bookings LEFT JOIN receipts USING (ride_id)
            WHERE stripe_charge_id IS NOT NULL AND receipts.ride_id IS NULL";
        let waiting: i64 = self.client.query_one(waiting, &[]).await.context("counting receipts")?.get(0);
        self.line.receipt_waiting_count = waiting;
        Ok(())
    }
}

/// Whether Postgres reads the text as a UUID. Others may write anything into the metadata of their charges.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_is_sent_to_postgres() {
        assert!(is_uuid("3b1cb8c2-0f0d-4f4f-9d4e-5a4f8a1f0c11"));
        for other in ["", "ride-1", "3b1cb8c2-0f0d-4f4f-9d4e-5a4f8a1f0c1g", "3b1cb8c20-f0d-4f4f-9d4e-5a4f8a1f0c11"] {
            assert!(!is_uuid(other), "{other}");
        }
    }
}
