//! Delivering what is noted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use common::backoff::Backoff;
use common::shutdown::{CancellationToken, sleep_or_stop};
use deadpool_postgres::ClientWrapper as Client;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use monitor::counter;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::Config;

/// How often to look for receipts.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The longest wait between two attempts while Postgres or the sink is away.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a mail server may take.
const SMTP_WAIT: Duration = Duration::from_secs(20);

/// How long the sink and Postgres may take for one receipt.
const DELIVERY_WAIT: Duration = Duration::from_secs(40);

/// The pause between two attempts to deliver a receipt: longer than one may take.
const ATTEMPT_WAIT: Duration = Duration::from_secs(60);

/// Where receipts go.
#[derive(Debug)]
pub struct Sink {
    way: Way,
    from: Mailbox,
}

#[derive(Debug)]
enum Way {
    Folder(PathBuf),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
}

/// A receipt that is to be delivered.
struct Receipt {
    ride_id: i64,
    /// `None`: nobody knows the user.
    email: Option<String>,
    amount_cents: i64,
    currency: String,
}

impl Sink {
    /// The sink of these settings.
    ///
    /// # Errors
    /// The folder cannot be made, or the URL or the address is none. Says which.
    pub fn new(config: &Config) -> Result<Self> {
        let from = config.from.parse().with_context(|| format!("RECEIPTS_FROM {:?} is no address", config.from))?;
        let way = match (&config.folder, &config.smtp_url) {
            (Some(folder), _) => {
                std::fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
                Way::Folder(folder.clone())
            }
            (None, url) => {
                let url = url.as_deref().context("set RECEIPTS_DIR or RECEIPTS_SMTP_URL")?;
                let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).context("RECEIPTS_SMTP_URL")?;
                Way::Smtp(transport.timeout(Some(SMTP_WAIT)).build())
            }
        };
        Ok(Self { way, from })
    }

    async fn take(&self, receipt: &Receipt) -> Result<()> {
        let message = self.message(receipt)?;
        match &self.way {
            Way::Folder(folder) => write(folder, receipt.ride_id, &message.formatted()).await,
            Way::Smtp(transport) => transport.send(message).await.map(|_| ()).context("sending a mail"),
        }
    }

    fn message(&self, receipt: &Receipt) -> Result<Message> {
        let Receipt { ride_id, email, amount_cents, currency } = receipt;
        let email = email.as_deref().context("the user is unknown")?;
        let (whole, cents) = (amount_cents / 100, amount_cents % 100);
        Message::builder()
            // The same however often it is sent, so that a mailbox can tell.
            .message_id(Some(format!("<ride-{ride_id}@rocket-rides-log>")))
            .from(self.from.clone())
            .to(email.parse().with_context(|| format!("{email:?} is no address"))?)
            .subject(format!("Receipt for ride {ride_id}"))
            .header(ContentType::TEXT_PLAIN)
            .body(format!("Thank you for riding.\n\nRide {ride_id}: {whole}.{cents:02} {}\n", currency.to_uppercase()))
            .context("writing a receipt")
    }
}

/// A file is there whole, or not at all. Written again, it replaces itself.
async fn write(folder: &Path, ride_id: i64, text: &[u8]) -> Result<()> {
    let (path, partial) = (folder.join(format!("{ride_id}.eml")), folder.join(format!("{ride_id}.eml.partial")));
    let written: io::Result<()> = async {
        let mut file = tokio::fs::File::create(&partial).await?;
        file.write_all(text).await?;
        file.sync_all().await?;
        tokio::fs::rename(&partial, &path).await?;
        tokio::fs::File::open(folder).await?.sync_all().await
    }
    .await;
    written.with_context(|| format!("writing {}", path.display()))
}

/// What came of delivering one receipt.
#[derive(Debug)]
pub struct Delivery {
    /// Whose receipt it is.
    pub ride_id: i64,
    /// Whether the sink took it. If not, it stays to be delivered.
    pub taken: Result<()>,
}

/// Delivers a receipt that is due, and marks it. `None`: none is due. Several processes share the work: each receipt is
/// one's for a minute, and no transaction is open while the sink takes it.
///
/// It is marked after it was delivered: a crash in between delivers it again, the same file under the same name, or a mail
/// with the same Message-ID.
///
/// # Errors
/// Postgres is away.
pub async fn deliver(client: &Client, sink: &Sink) -> Result<Option<Delivery>> {
    let row = client
        .query_opt(
            "-- receipts::take
             WITH due AS (
                 SELECT ride_id FROM receipts WHERE delivered_at IS NULL AND next_attempt_at <= now()
                 ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED
             ), taken AS (
                 UPDATE receipts AS r SET next_attempt_at = now() + $1 * INTERVAL '1 second'
                 FROM due WHERE r.ride_id = due.ride_id RETURNING r.ride_id, data
             )
             SELECT ride_id, email, (data ->> 'amount')::bigint AS amount, data ->> 'currency' AS currency
             FROM taken LEFT JOIN users ON users.id = (data ->> 'user_id')::bigint",
            &[&ATTEMPT_WAIT.as_secs_f64()],
        )
        .await
        .context("looking for a receipt")?;
    let Some(row) = row else { return Ok(None) };
    let receipt = Receipt {
        ride_id: row.get("ride_id"),
        email: row.get("email"),
        amount_cents: row.get("amount"),
        currency: row.get("currency"),
    };
    let ride_id = receipt.ride_id;
    if let Err(error) = sink.take(&receipt).await {
        return Ok(Some(Delivery { ride_id, taken: Err(error) }));
    }
    let mark = "-- receipts::mark\nUPDATE receipts SET delivered_at = now() WHERE ride_id = $1";
    client.execute(mark, &[&ride_id]).await.context("marking a receipt")?;
    Ok(Some(Delivery { ride_id, taken: Ok(()) }))
}

/// Delivers until `stop`; if draining, until nothing is left then, or until `shutdown`.
///
/// # Errors
/// Only when draining: something could not be delivered.
pub(crate) async fn keep_delivering(
    postgres: &tokio_postgres::Config,
    sink: &Sink,
    is_draining: bool,
    stop: &CancellationToken,
    shutdown: &CancellationToken,
) -> Result<()> {
    let mut backoff = Backoff::up_to(RETRY_WAIT_MAX);
    let mut client = None;
    // What was refused in an earlier round is not due again in the last one.
    let mut refusal = None;
    loop {
        // Looked at before: what was noted until then is in this round.
        let is_last = stop.is_cancelled();
        let round = deliver_all(postgres, &mut client, sink, &mut refusal, shutdown).await;
        let wait = match round {
            Ok(left_count) if is_last && is_draining && left_count > 0 => {
                if let Some(error) = refusal {
                    return Err(error);
                }
                // Somebody else has them in hand, or died with them.
                if !sleep_or_stop(LOOK_INTERVAL, shutdown).await {
                    return Ok(());
                }
                continue;
            }
            round if is_last => return if is_draining { round.map(|_| ()) } else { Ok(()) },
            Ok(_) => {
                backoff.reset();
                LOOK_INTERVAL
            }
            Err(error) => {
                // It may be the connection's fault.
                client = None;
                let wait = backoff.next_wait();
                warn!(
                    error = format!("{error:#}"),
                    wait_ms = wait.as_millis() as u64,
                    "receipts are not delivered yet"
                );
                wait
            }
        };
        sleep_or_stop(wait, stop).await;
        if stop.is_cancelled() && !is_draining {
            return Ok(());
        }
    }
}

/// One round. What the sink does not take keeps nobody else's receipt from being delivered. Returns how many are left, none of
/// which is due.
async fn deliver_all(
    postgres: &tokio_postgres::Config,
    client: &mut Option<Client>,
    sink: &Sink,
    refusal: &mut Option<anyhow::Error>,
    shutdown: &CancellationToken,
) -> Result<i64> {
    let client = match client {
        Some(client) => client,
        None => client.insert(common::postgres::connect(postgres, "receipts", || {}).await?),
    };
    // No more than are due now: what is refused slowly may be due again before the others are through.
    let due = "-- receipts::due\nSELECT count(*) FROM receipts WHERE delivered_at IS NULL AND next_attempt_at <= now()";
    let row = in_time(async { client.query_one(due, &[]).await.context("counting what is due") }).await?;
    for _ in 0..row.get::<_, i64>(0) {
        if shutdown.is_cancelled() {
            break;
        }
        let Some(Delivery { ride_id, taken }) = in_time(deliver(client, sink)).await? else { break };
        match taken {
            Ok(()) => {
                counter!("rocket_rides_receipts_delivered_total").increment(1);
                info!(ride_id, "Delivered job: send_ride_receipt");
            }
            Err(error) => {
                counter!("rocket_rides_receipts_refused_total").increment(1);
                warn!(ride_id, error = format!("{error:#}"), "a receipt was not taken, and is tried again later");
                *refusal = Some(error.context(format!("the receipt of ride {ride_id}")));
            }
        }
    }
    let left = "-- receipts::left\nSELECT count(*) FROM receipts WHERE delivered_at IS NULL";
    let row = in_time(async { client.query_one(left, &[]).await.context("counting what is left") }).await?;
    Ok(row.get(0))
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(DELIVERY_WAIT, work).await.with_context(|| format!("no answer within {DELIVERY_WAIT:?}"))?
}
