//! Where receipts go: a folder, or a mail server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use tokio::io::AsyncWriteExt;

use crate::config::Config;

/// How long a mail server may take.
const SMTP_WAIT: Duration = Duration::from_secs(20);

/// Where receipts go.
#[derive(Debug)]
pub(crate) struct Sink {
    way: Way,
    from: Mailbox,
}

#[derive(Debug)]
enum Way {
    Folder(PathBuf),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
}

/// A receipt that is to be delivered.
pub(crate) struct Receipt {
    pub ride_id: i64,
    /// `None`: the user is unknown.
    pub email: Option<String>,
    pub amount_cents: i64,
    pub currency: String,
}

impl Sink {
    /// The sink of these settings.
    ///
    /// # Errors
    /// The folder cannot be made, or the URL or the address is malformed. Names the setting.
    pub fn new(config: &Config) -> Result<Self> {
        let from = config.sender.parse().with_context(|| format!("RECEIPTS_FROM {:?} is no address", config.sender))?;
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

    /// Delivers a receipt. Delivered again, it is the same file under the same name, or a mail with the same Message-ID.
    pub async fn take(&self, receipt: &Receipt) -> Result<()> {
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
            // Each attempt sends the same id, so that a mailbox can recognize a duplicate.
            .message_id(Some(format!("<ride-{ride_id}@rocket-rides-log>")))
            .from(self.from.clone())
            .to(email.parse().with_context(|| format!("{email:?} is no address"))?)
            .subject(format!("Receipt for ride {ride_id}"))
            .header(ContentType::TEXT_PLAIN)
            .body(format!("Thank you for riding.\n\nRide {ride_id}: {whole}.{cents:02} {}\n", currency.to_uppercase()))
            .context("writing a receipt")
    }
}

/// Writes a whole file or none. Written again, the file replaces itself.
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
