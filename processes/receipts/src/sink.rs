//! Where receipts go: a folder, or a mail server.
//!
//! A mail server gets each receipt over a connection of its own. The connection is encrypted (`smtps://`, or STARTTLS) unless
//! the URL says `?tls=none`, or the server is on this machine and does not offer it. The server's certificate must verify.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters};
use lettre::transport::smtp::response::Category;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use url::Url;

use crate::config::Config;
use crate::receipt::Receipt;
use crate::refusal::Refusal;

/// How long a mail server may take for one mail, from connecting to its last response.
pub(crate) const SINK_WAIT: Duration = Duration::from_secs(20);

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
                let url = url.as_deref().context("need RECEIPTS_DIR or RECEIPTS_SMTP_URL: set one")?;
                Way::Smtp(transport(url).context("RECEIPTS_SMTP_URL")?)
            }
        };
        Ok(Self { way, from })
    }

    /// Delivers a receipt. Delivered again, it is the same file under the same name, or a mail with the same Message-ID.
    pub async fn take(&self, receipt: &Receipt) -> Result<(), Refusal> {
        let message = self.message(receipt).map_err(Refusal::permanent)?;
        match &self.way {
            Way::Folder(folder) => write(folder, receipt.ride_id, &message.formatted()).await.map_err(Refusal::passing),
            Way::Smtp(transport) => match timeout(SINK_WAIT, transport.send(message)).await {
                Ok(sent) => sent.map(|_| ()).map_err(by_mail_server),
                Err(_) => Err(Refusal::passing(anyhow!("the mail server took longer than {SINK_WAIT:?}"))),
            },
        }
    }

    fn message(&self, receipt: &Receipt) -> Result<Message> {
        let Receipt { ride_id, message_id, email, amount_cents, currency } = receipt;
        let (whole, cents) = (amount_cents / 100, amount_cents % 100);
        Message::builder()
            // Each attempt sends the same id, so that a mailbox can recognize a duplicate.
            .message_id(Some(format!("<{message_id}@rocket-rides-log>")))
            .from(self.from.clone())
            .to(email.parse().with_context(|| format!("{email:?} is no address"))?)
            .subject(format!("Receipt for ride {ride_id}"))
            .header(ContentType::TEXT_PLAIN)
            .body(format!("Thank you for riding.\n\nRide {ride_id}: {whole}.{cents:02} {}\n", currency.to_uppercase()))
            .context("writing a receipt")
    }
}

/// The refusal of a mail server. A 5xx response is permanent. 530, 534, 535 and 538 are about our password, and so about no single
/// receipt.
fn by_mail_server(error: smtp::Error) -> Refusal {
    let is_permanent =
        error.is_permanent() && error.status().is_none_or(|status| status.category != Category::Unspecified3);
    let mut error = Error::new(error).context("sending a mail");
    if format!("{error:#}").contains("STARTTLS is not supported") {
        error = error.context("if mails may be sent unencrypted, add ?tls=none to RECEIPTS_SMTP_URL");
    }
    Refusal { is_permanent, error: connect::tls::explain(error) }
}

/// The mail server of a URL: `smtp://[USER:PASSWORD@]HOST[:PORT][?tls=required|opportunistic|none]` or `smtps://...`.
///
/// Without `tls=`, `smtp://` requires STARTTLS, unless the server is on this machine and gets no password. There STARTTLS is
/// used if the server offers it.
fn transport(url: &str) -> Result<AsyncSmtpTransport<Tokio1Executor>> {
    let mut url: Url = url.parse()?;
    let host = url.host_str().context("it names no host")?.to_owned();
    let is_local = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    let tls = url.query_pairs().find(|(name, _)| name == "tls").map(|(_, value)| value.into_owned());
    let tls = match (url.scheme(), tls.as_deref()) {
        ("smtp", Some("none")) => {
            // The library knows no such word.
            url.set_query(None);
            Tls::None
        }
        // A machine without authorities may have a mail server of its own.
        ("smtp", None) if is_local && url.password().is_none() => trusting(&host).map_or(Tls::None, Tls::Opportunistic),
        ("smtp", Some("opportunistic")) => Tls::Opportunistic(trusting(&host)?),
        ("smtp", None | Some("required")) => Tls::Required(trusting(&host)?),
        ("smtps", None) => Tls::Wrapper(trusting(&host)?),
        _ => bail!(
            "give smtp:// or smtps://, and after smtp:// nothing or one of ?tls=required, ?tls=opportunistic, ?tls=none"
        ),
    };
    let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.as_str())?;
    Ok(builder.tls(tls).timeout(Some(SINK_WAIT)).build())
}

/// Trusts the authorities that every other connection of this process trusts.
fn trusting(host: &str) -> Result<TlsParameters> {
    let authorities = Certificate::from_pem(connect::tls::authorities_pem()?)?;
    let builder = TlsParameters::builder(host.to_owned()).certificate_store(CertificateStore::None);
    Ok(builder.add_root_certificate(authorities).build()?)
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
