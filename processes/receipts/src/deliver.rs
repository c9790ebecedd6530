//! Delivering the noted receipts, a few side by side. Each receipt is leased: see [`lease`].
//!
//! A receipt is marked after its delivery. A crash in between delivers it again: the same file under the same name, or a mail
//! with the same Message-ID.
//!
//! A refused receipt is tried again after pauses that grow, and is put aside in the end: it is not due until an operator sends
//! it again (`dead-letters resend`).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use common::shutdown::CancellationToken;
use deadpool_postgres::ClientWrapper as Client;
use lease::{Leases, Round, Settled};
use monitor::{Health, counter, gauge};
use process::{Failure, Turn, Until, Work};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::receipt::{Kept, Receipt};
use crate::refusal::Refusal;
use crate::sink::{SINK_WAIT, Sink};

/// How often to look for receipts.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Receipts that are delivered side by side, each over a connection of its own. Mail servers allow a client some dozens.
const SIDE_BY_SIDE_MAX: usize = 8;

/// How long the sink and Postgres may take for one receipt. Longer than [`SINK_WAIT`].
const DELIVERY_WAIT: Duration = Duration::from_secs(SINK_WAIT.as_secs() + 20);

/// How long a receipt is leased, and so the pause after an attempt that a crash has ended. Longer than [`DELIVERY_WAIT`].
const LEASE: Duration = Duration::from_secs(60);

/// The pause after the first refusal. It doubles with each attempt, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// Attempts before a receipt is put aside if the mail server says that it will never take it: a quarter of an hour.
const PERMANENT_ATTEMPT_COUNT_MAX: i32 = 5;

/// Attempts before a receipt is put aside if the sink is away or asks to wait: four days.
const ATTEMPT_COUNT_MAX: i32 = 100;

/// The longest text of a refusal that is stored, in characters.
const ERROR_LEN_MAX: usize = 1000;

/// At most this many are counted for the gauge.
const PUT_ASIDE_COUNT_MAX: i64 = 1000;

/// Receipts that are due. The lease is the column `next_attempt_at`.
struct Deliveries<'a> {
    client: &'a Client,
    sink: &'a Sink,
    /// The newest refusal of the sink.
    refusal: &'a Mutex<Option<Error>>,
}

impl Leases for Deliveries<'_> {
    type Piece = Kept;
    type Done = ();
    type Failure = Refusal;
    type Error = Error;

    async fn take(&self, len_max: usize) -> Result<Vec<Kept>> {
        let rows = self
            .client
            .query(
                "-- receipts::take
                 WITH due AS (
                     SELECT ride_id FROM receipts WHERE delivered_at IS NULL AND next_attempt_at <= now()
                     ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
                 )
                 UPDATE receipts AS r
                 SET next_attempt_at = now() + $1 * INTERVAL '1 second', attempt_count = attempt_count + 1,
                     message_id = COALESCE(message_id, gen_random_uuid())
                 FROM due WHERE r.ride_id = due.ride_id
                 RETURNING r.ride_id, attempt_count, message_id::text, data::text",
                &[&LEASE.as_secs_f64(), &(len_max as i64)],
            )
            .await
            .context("looking for a receipt")?;
        let kept = rows.iter().map(|row| Kept {
            ride_id: row.get("ride_id"),
            attempt_count: row.get("attempt_count"),
            message_id: row.get("message_id"),
            data: row.get("data"),
        });
        Ok(kept.collect())
    }

    async fn work(&self, kept: &Kept) -> Result<(), Refusal> {
        let receipt = Receipt::read(self.client, kept).await?;
        self.sink.take(&receipt).await
    }

    /// A delivery is a fact: it is marked even if the lease has run out, because the receipt would be sent once more without
    /// the mark. The first mark stays. A refusal is a decision: it counts only if no other process has taken the receipt since.
    async fn settle(&self, kept: Kept, delivered: Result<(), Refusal>) -> Result<Settled> {
        let ride_id = kept.ride_id;
        if let Err(refusal) = delivered {
            return self.put_off(&kept, refusal).await;
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

impl Deliveries<'_> {
    /// Pauses before the next attempt, or puts the receipt aside after its last.
    async fn put_off(&self, kept: &Kept, refusal: Refusal) -> Result<Settled> {
        let Kept { ride_id, attempt_count, .. } = *kept;
        let attempt_count_max = if refusal.is_permanent { PERMANENT_ATTEMPT_COUNT_MAX } else { ATTEMPT_COUNT_MAX };
        let is_put_aside = attempt_count >= attempt_count_max;
        // A mail server may answer with any bytes; Postgres stores no NUL.
        let error: String = format!("{:#}", refusal.error).replace('\0', " ").chars().take(ERROR_LEN_MAX).collect();
        let put_off_count = self
            .client
            .execute(
                "-- receipts::put_off
                 UPDATE receipts SET last_error = $3,
                     next_attempt_at = CASE WHEN $4 THEN 'infinity' ELSE now() + $5 * INTERVAL '1 second' END
                 WHERE ride_id = $1 AND attempt_count = $2 AND delivered_at IS NULL",
                &[&ride_id, &attempt_count, &error, &is_put_aside, &pause_after(attempt_count).as_secs_f64()],
            )
            .await
            .context("putting off a receipt")?;
        counter!("rocket_rides_receipts_refused_total").increment(1);
        if is_put_aside {
            warn!(
                ride_id,
                attempt_count, error, "a receipt was not taken, and is put aside: see dead-letters receipts"
            );
        } else {
            warn!(ride_id, attempt_count, error, "a receipt was not taken, and is tried again later");
        }
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(refusal.error.context(format!("the receipt of ride {ride_id}")));
        Ok(if put_off_count == 0 { Settled::Lost } else { Settled::Ours })
    }
}

fn pause_after(attempt_count: i32) -> Duration {
    PAUSE_MAX.min(PAUSE * 2_u32.pow(attempt_count.clamp(1, 10) as u32 - 1))
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
    let mut delivering = Delivering {
        postgres: &config.postgres.database_url,
        sink,
        client: None,
        refusal: Mutex::default(),
        stop: noted,
    };
    process::repeat(&mut delivering, Until::Stopped, &pulse, noted).await?;
    if !config.drain {
        return Ok(());
    }
    if shutdown.is_cancelled() {
        return delivering.take_refusal().map_or(Ok(()), Err);
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
    refusal: Mutex<Option<Error>>,
    /// Ends a round after the receipts in hand.
    stop: &'a CancellationToken,
}

impl Work for Delivering<'_> {
    type Fault = ();

    const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);

    /// The receipts in hand are marked before the process stops: if they were cut off, they would be sent once more.
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
        let client = self.0.deliver_due().await.map_err(Failure::Final)?;
        let is_drained = is_drained(client).await.map_err(Failure::Final);
        if let Some(refusal) = self.0.take_refusal() {
            return Err(Failure::Final(refusal));
        }
        // If receipts are due, another process delivers them now, or died while it did.
        Ok(if is_drained? { Turn::idle() } else { Turn::waiting().pausing(LOOK_INTERVAL) })
    }
}

impl Delivering<'_> {
    /// One round. A receipt that is refused, or for which the sink hangs, does not keep the others from being delivered.
    /// Returns the connection.
    async fn deliver_due(&mut self) -> Result<&Client> {
        let client = match self.client.take() {
            Some(client) => client,
            None => connect::postgres::connect(self.postgres, "receipts", || {}).await?,
        };
        let round = Round {
            // A round ends as soon as no receipt is due. A refused one is not due again for a minute.
            piece_count_max: usize::MAX,
            side_by_side_max: SIDE_BY_SIDE_MAX,
            look_interval: LOOK_INTERVAL,
            wait: DELIVERY_WAIT,
        };
        let deliveries = Deliveries { client: &client, sink: self.sink, refusal: &self.refusal };
        let tally = lease::run_round(&deliveries, &round, self.stop).await?;
        debug!(
            done_count = tally.done_count,
            failed_count = tally.failed_count,
            lost_count = tally.lost_count,
            "round ended"
        );
        gauge!("rocket_rides_receipts_put_aside").set(count_put_aside(&client).await? as f64);
        Ok(self.client.insert(client))
    }

    fn take_refusal(&mut self) -> Option<Error> {
        self.refusal.get_mut().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether no receipt is due or leased. Receipts that were put aside are left to an operator.
///
/// # Errors
/// Receipts were refused, and their next attempts are far away.
async fn is_drained(client: &Client) -> Result<bool> {
    let query = "-- receipts::left
        SELECT EXISTS (SELECT FROM receipts WHERE delivered_at IS NULL AND next_attempt_at <= soon),
               (SELECT count(*) FROM receipts
                WHERE delivered_at IS NULL AND next_attempt_at > soon AND next_attempt_at < 'infinity')
        FROM (SELECT now() + $1 * INTERVAL '1 second') AS at (soon)";
    let row = timeout(DELIVERY_WAIT, client.query_one(query, &[&LEASE.as_secs_f64()])).await;
    let row = row.with_context(|| format!("no answer within {DELIVERY_WAIT:?}"))??;
    let (is_any_due, later_count): (bool, i64) = (row.get(0), row.get(1));
    ensure!(is_any_due || later_count == 0, "{later_count} receipts were refused and wait for another attempt");
    Ok(!is_any_due)
}

async fn count_put_aside(client: &Client) -> Result<i64> {
    let query = "-- receipts::put_aside
        SELECT count(*) FROM (SELECT FROM receipts WHERE delivered_at IS NULL AND next_attempt_at = 'infinity'
                              LIMIT $1) AS put_aside";
    let row = timeout(DELIVERY_WAIT, client.query_one(query, &[&PUT_ASIDE_COUNT_MAX])).await;
    Ok(row.with_context(|| format!("no answer within {DELIVERY_WAIT:?}"))??.get(0))
}
