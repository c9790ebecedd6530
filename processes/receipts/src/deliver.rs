//! Delivering what is noted.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use common::shutdown::CancellationToken;
use deadpool_postgres::ClientWrapper as Client;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use monitor::{Health, counter};
use process::{Failure, Turn, Until, Work};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::Config;

/// How often to look for receipts.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

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

/// Delivers until the consumer beside it has noted its last receipt; if it was draining, until none is left then.
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
        Delivering { postgres: &config.postgres.database_url, sink, client: None, refusal: None, shutdown };
    process::repeat(&mut delivering, Until::Stopped, &pulse, noted).await?;
    if !config.drain || shutdown.is_cancelled() {
        return Ok(());
    }
    process::repeat(&mut Draining(delivering), Until::Idle, &pulse, shutdown).await
}

/// Delivers what is due, again and again.
struct Delivering<'a> {
    postgres: &'a tokio_postgres::Config,
    sink: &'a Sink,
    /// `None` after an error, which may be the connection's fault.
    client: Option<Client>,
    /// A receipt that was refused in an earlier round is not due again in the last one.
    refusal: Option<anyhow::Error>,
    shutdown: &'a CancellationToken,
}

impl Work for Delivering<'_> {
    type Fault = ();

    const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        self.deliver_due().await?;
        Ok(Turn::done().pausing(LOOK_INTERVAL))
    }

    fn log_retry(&self, error: &str, wait: Duration) {
        warn!(error, wait_ms = wait.as_millis() as u64, "receipts are not delivered yet");
    }
}

/// Delivers all that is left, and gives up at the first receipt that the sink refuses.
struct Draining<'a>(Delivering<'a>);

impl Work for Draining<'_> {
    type Fault = ();

    async fn run_once(&mut self, (): ()) -> Result<Turn, Failure> {
        let left_count = self.0.deliver_due().await.map_err(Failure::Final)?;
        if left_count == 0 {
            return Ok(Turn::idle());
        }
        match self.0.refusal.take() {
            Some(refusal) => Err(Failure::Final(refusal)),
            // Another process has them in hand, or died with them.
            None => Ok(Turn::waiting().pausing(LOOK_INTERVAL)),
        }
    }
}

impl Delivering<'_> {
    /// One round. A receipt that the sink refuses keeps no other from being delivered. Returns how many are left, none of
    /// which is due.
    async fn deliver_due(&mut self) -> Result<i64> {
        let client = match self.client.take() {
            Some(client) => client,
            None => connect::postgres::connect(self.postgres, "receipts", || {}).await?,
        };
        for _ in 0..count_due(&client).await? {
            if self.shutdown.is_cancelled() {
                break;
            }
            let Some(delivery) = in_time(deliver(&client, self.sink)).await? else { break };
            self.refusal = report(delivery).or(self.refusal.take());
        }
        let left_count = count_left(&client).await?;
        self.client = Some(client);
        Ok(left_count)
    }
}

/// Logs and counts a delivery. Returns the refusal, if it was refused.
fn report(Delivery { ride_id, taken }: Delivery) -> Option<anyhow::Error> {
    match taken {
        Ok(()) => {
            counter!("rocket_rides_receipts_delivered_total").increment(1);
            info!(ride_id, "Delivered job: send_ride_receipt");
            None
        }
        Err(error) => {
            counter!("rocket_rides_receipts_refused_total").increment(1);
            warn!(ride_id, error = format!("{error:#}"), "a receipt was not taken, and is tried again later");
            Some(error.context(format!("the receipt of ride {ride_id}")))
        }
    }
}

/// A round delivers no more than are due at its beginning: a receipt that is refused slowly may be due again before the others
/// are through.
async fn count_due(client: &Client) -> Result<i64> {
    let due = "-- receipts::due\nSELECT count(*) FROM receipts WHERE delivered_at IS NULL AND next_attempt_at <= now()";
    let row = in_time(async { client.query_one(due, &[]).await.context("counting what is due") }).await?;
    Ok(row.get(0))
}

async fn count_left(client: &Client) -> Result<i64> {
    let left = "-- receipts::left\nSELECT count(*) FROM receipts WHERE delivered_at IS NULL";
    let row = in_time(async { client.query_one(left, &[]).await.context("counting what is left") }).await?;
    Ok(row.get(0))
}

async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(DELIVERY_WAIT, work).await.with_context(|| format!("no answer within {DELIVERY_WAIT:?}"))?
}
