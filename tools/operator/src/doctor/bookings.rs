//! Booked rides: those that a person has to look at, the secret of the charge keys, and the payment processor.

use anyhow::Result;
use deadpool_postgres::ClientWrapper as Client;
use payments::{ChargeError, Stripe};

use super::Config;
use super::finding::Finding;

/// Bookings that a finding names. It counts the others.
const NAMED_COUNT_MAX: i64 = 20;

/// All checks of bookings.
pub(super) async fn check(client: &Client, config: &Config, findings: &mut Vec<Finding>) {
    findings.push(doubtful(client).await.unwrap_or_else(|e| Finding::unseen("bookings.unfinished", &e)));
    findings.push(reaped(client).await.unwrap_or_else(|e| Finding::unseen("bookings.reaped", &e)));
    findings.push(secret(client).await.unwrap_or_else(|e| Finding::unseen("bookings.secret", &e)));
    if config.stripe.key().is_some() {
        findings.push(processor(config).await);
    }
}

/// Bookings that are too old for the processor to be asked by key, and those that the processor refuses.
async fn doubtful(client: &Client) -> Result<Finding> {
    const CHECK: &str = "bookings.unfinished";
    let rows = client
        .query(
            "-- operator::doctor::unfinished_bookings
             SELECT format('ride %s of user %s since %s: %s', COALESCE(ride_id::text, '-'), user_id,
                           to_char(op.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI\"Z\"'),
                           COALESCE(left(error_message, 200), 'no error')),
                    count(*) OVER ()
             FROM tracked_operations AS op JOIN bookings ON operation_id = op.id
             WHERE status <> 'finished' AND recovery_point = 'ride_created'
               AND (op.created_at < now() - $1 * INTERVAL '1 second'
                    OR starts_with(error_message, 'the payment processor: refused'))
             ORDER BY op.created_at LIMIT $2",
            &[&booking::DOUBTFUL_AFTER.as_secs_f64(), &NAMED_COUNT_MAX],
        )
        .await?;
    let Some(first) = rows.first() else {
        return Ok(Finding::ok(CHECK, "none waits for a person"));
    };
    let named: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    let count: i64 = first.get(1);
    Ok(Finding::warn(
        CHECK,
        format!("{count} cannot be charged: {}", named.join("; ")),
        "a booking that is older than 23 h may be charged already; after 72 h the reaper removes it unfinished",
        "remove the cause that is named; the completer then finishes them; see docs/BOOKING.md",
    ))
}

/// Requests that were never finished. People delete them when they have settled them.
async fn reaped(client: &Client) -> Result<Finding> {
    const CHECK: &str = "bookings.reaped";
    let row = client
        .query_one(
            "-- operator::doctor::reaped_requests
             SELECT count(*), (SELECT string_agg(format('operation %s, ride %s', operation_id, COALESCE(ride_id::text, '-')), '; ')
                               FROM (SELECT * FROM reaped_requests ORDER BY created_at LIMIT $1) AS oldest)
             FROM reaped_requests",
            &[&NAMED_COUNT_MAX],
        )
        .await?;
    Ok(match row.get::<_, Option<&str>>(1) {
        None => Finding::ok(CHECK, "none"),
        Some(named) => Finding::warn(
            CHECK,
            format!("{} requests were removed unfinished: {named}", row.get::<_, i64>(0)),
            "the processor may have charged for them",
            "settle each with its customer, then DELETE FROM reaped_requests WHERE operation_id = …; \
             audit --payments names the charges without a booking",
        ),
    })
}

async fn secret(client: &Client) -> Result<Finding> {
    const CHECK: &str = "bookings.secret";
    let row = client
        .query_one(
            "-- operator::doctor::charge_secret
             SELECT count(*), count(*) FILTER (WHERE system_identifier <> (SELECT system_identifier FROM pg_control_system()))
             FROM charge_secret",
            &[],
        )
        .await?;
    Ok(match (row.get::<_, i64>(0), row.get::<_, i64>(1)) {
        (1, 0) => Finding::ok(CHECK, "one, of this cluster"),
        (1, _) => Finding::warn(
            CHECK,
            "it was made in another cluster",
            "a copy that is used beside the original would share its charges at the processor",
            "if this is a copy: UPDATE charge_secret SET secret = DEFAULT, system_identifier = DEFAULT; if this replaces the \
             original: UPDATE charge_secret SET system_identifier = DEFAULT",
        ),
        (count, _) => Finding::fail(
            CHECK,
            format!("there are {count} secrets"),
            "no ride can be booked",
            "keep the one that the dump brought, or apply schema.sql if there is none",
        ),
    })
}

async fn processor(config: &Config) -> Finding {
    const CHECK: &str = "bookings.processor";
    let stripe = match Stripe::new(&config.stripe) {
        Ok(stripe) => stripe,
        Err(error) => return Finding::unseen(CHECK, &error),
    };
    let base = &config.stripe.stripe_api_base;
    // Charges of the future: the list is empty.
    match stripe.page(None, i64::from(i32::MAX), None).await {
        Ok(_) => Finding::ok(CHECK, format!("{base} answers, and takes the key")),
        Err(ChargeError::Refused { message }) => {
            Finding::fail(CHECK, message, "no ride can be booked", "set STRIPE_API_KEY to a key of the account")
        }
        Err(error) => Finding::warn(
            CHECK,
            error.to_string(),
            "bookings get 503 and are finished later",
            "check STRIPE_API_BASE, and the processor's own status page",
        ),
    }
}
