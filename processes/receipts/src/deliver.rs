//! Delivering the noted receipts. Each receipt is leased: see [`lease`].
//!
//! A receipt is marked after its delivery. A crash in between delivers it again: the same file under the same name, or a mail
//! with the same Message-ID.

use std::time::Duration;

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;
use deadpool_postgres::ClientWrapper as Client;
use lease::{Leases, Round, Settled};
use monitor::{Health, counter};
use process::{Failure, Turn, Until, Work};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::sink::{Receipt, Sink};

/// How often to look for receipts.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long the sink and Postgres may take for one receipt.
const DELIVERY_WAIT: Duration = Duration::from_secs(40);

/// How long a receipt is leased, and so the pause between two attempts to deliver it. Longer than [`DELIVERY_WAIT`].
const ATTEMPT_WAIT: Duration = Duration::from_secs(60);

/// Receipts that are due. The lease is the column `next_attempt_at`.
struct Deliveries<'a> {
    client: &'a Client,
    sink: &'a Sink,
    /// The newest refusal of the sink.
    refusal: &'a mut Option<anyhow::Error>,
}

impl Leases for Deliveries<'_> {
    type Piece = Receipt;
    type Done = ();
    type Failure = anyhow::Error;
    type Error = anyhow::Error;

    async fn take(&mut self, len_max: usize) -> Result<Vec<Receipt>> {
        let rows = self
            .client
            .query(
                "-- receipts::take
                 WITH due AS (
                     SELECT ride_id FROM receipts WHERE delivered_at IS NULL AND next_attempt_at <= now()
                     ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
                 ), taken AS (
                     UPDATE receipts AS r SET next_attempt_at = now() + $1 * INTERVAL '1 second'
                     FROM due WHERE r.ride_id = due.ride_id RETURNING r.ride_id, data
                 )
                 SELECT ride_id, email, (data ->> 'amount')::bigint AS amount, data ->> 'currency' AS currency
                 FROM taken LEFT JOIN users ON users.id = (data ->> 'user_id')::bigint",
                &[&ATTEMPT_WAIT.as_secs_f64(), &(len_max as i64)],
            )
            .await
            .context("looking for a receipt")?;
        let receipts = rows.iter().map(|row| Receipt {
            ride_id: row.get("ride_id"),
            email: row.get("email"),
            amount_cents: row.get("amount"),
            currency: row.get("currency"),
        });
        Ok(receipts.collect())
    }

    async fn work(&mut self, receipt: &Receipt) -> Result<()> {
        self.sink.take(receipt).await
    }

    /// A delivery is a fact: it is marked even if the lease has run out, because the receipt would be sent once more without
    /// the mark. The first mark stays. A refused receipt is not touched; it is due again when its lease has run out.
    async fn settle(&mut self, receipt: Receipt, delivered: Result<()>) -> Result<Settled> {
        let ride_id = receipt.ride_id;
        if let Err(error) = delivered {
            counter!("rocket_rides_receipts_refused_total").increment(1);
            warn!(ride_id, error = format!("{error:#}"), "a receipt was not taken, and is tried again later");
            *self.refusal = Some(error.context(format!("the receipt of ride {ride_id}")));
            return Ok(Settled::Ours);
        }
        let mark = "-- receipts::mark
            UPDATE receipts SET delivered_at = now() WHERE ride_id = $1 AND delivered_at IS NULL";
        let marked_count = self.client.execute(mark, &[&ride_id]).await.context("marking a receipt")?;
        counter!("rocket_rides_receipts_delivered_total").increment(1);
        info!(ride_id, "Delivered job: send_ride_receipt");
        if marked_count == 0 {
            warn!(ride_id, "another process has delivered this receipt too");
            return Ok(Settled::Lost);
        }
        Ok(Settled::Ours)
    }
}

/// Delivers until the consumer in this process has noted its last receipt. If that consumer was draining, goes on until no
/// receipt is left.
///
/// # Errors
/// Only when draining: a receipt could not be delivered.
pub(crate) async fn keep_delivering(
    config: &consumer::Config,
    sink: &Sink,
    noted: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<()> {
    let pulse = Health::default().pulse("deliveries", Duration::MAX);
    let mut delivering =
        Delivering { postgres: &config.postgres.database_url, sink, client: None, refusal: None, stop: noted };
    process::repeat(&mut delivering, Until::Stopped, &pulse, noted).await?;
    if !config.drain {
        return Ok(());
    }
    if shutdown.is_cancelled() {
        return delivering.refusal.map_or(Ok(()), Err);
    }
    delivering.stop = shutdown;
    process::repeat(&mut Draining(delivering), Until::Idle, &pulse, shutdown).await
}

/// Delivers the receipts that are due, again and again.
struct Delivering<'a> {
    postgres: &'a tokio_postgres::Config,
    sink: &'a Sink,
    /// `None` after an error, because the connection may be the cause.
    client: Option<Client>,
    /// The newest refusal. The last round may not meet a receipt that was refused in an earlier round.
    refusal: Option<anyhow::Error>,
    /// Ends a round after the receipt in hand.
    stop: &'a CancellationToken,
}

impl Work for Delivering<'_> {
    type Fault = ();

    const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);

    /// The receipt in hand is marked before the process stops: if it were cut off, it would be sent once more.
    const STOP_WAIT: Duration = DELIVERY_WAIT;

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        self.deliver_due().await?;
        Ok(Turn::done().pausing(LOOK_INTERVAL))
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "receipts are not delivered yet");
    }
}

/// Delivers every receipt that is left, and ends after a round in which the sink has refused a receipt.
struct Draining<'a>(Delivering<'a>);

impl Work for Draining<'_> {
    type Fault = ();

    const STOP_WAIT: Duration = DELIVERY_WAIT;

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let left_count = self.0.deliver_due().await.map_err(Failure::Final)?;
        if left_count == 0 {
            return Ok(Turn::idle());
        }
        match self.0.refusal.take() {
            Some(refusal) => Err(Failure::Final(refusal)),
            // Another process delivers them now, or died while it did.
            None => Ok(Turn::waiting().pausing(LOOK_INTERVAL)),
        }
    }
}

impl Delivering<'_> {
    /// One round. A refused receipt does not keep the others from being delivered. Returns how many receipts are left, none of
    /// which is due.
    ///
    /// The round delivers no more receipts than are due at its beginning: a receipt that is refused slowly may be due again
    /// before the round ends.
    async fn deliver_due(&mut self) -> Result<i64> {
        let client = match self.client.take() {
            Some(client) => client,
            None => connect::postgres::connect(self.postgres, "receipts", || {}).await?,
        };
        let due_count = count_due(&client).await?;
        let round = Round { piece_count_max: due_count as usize, take_len_max: 1, wait: DELIVERY_WAIT };
        let mut deliveries = Deliveries { client: &client, sink: self.sink, refusal: &mut self.refusal };
        let tally = lease::run_round(&mut deliveries, &round, self.stop).await?;
        debug!(
            done_count = tally.done_count,
            failed_count = tally.failed_count,
            lost_count = tally.lost_count,
            "round ended"
        );
        let left_count = count_left(&client).await?;
        self.client = Some(client);
        Ok(left_count)
    }
}

async fn count_due(client: &Client) -> Result<i64> {
    let due = "-- receipts::due\nSELECT count(*) FROM receipts WHERE delivered_at IS NULL AND next_attempt_at <= now()";
    count(client, due).await.context("counting the receipts that are due")
}

async fn count_left(client: &Client) -> Result<i64> {
    let left = "-- receipts::left\nSELECT count(*) FROM receipts WHERE delivered_at IS NULL";
    count(client, left).await.context("counting the receipts that are left")
}

async fn count(client: &Client, query: &str) -> Result<i64> {
    let row = timeout(DELIVERY_WAIT, client.query_one(query, &[])).await;
    Ok(row.with_context(|| format!("no answer within {DELIVERY_WAIT:?}"))??.get(0))
}
