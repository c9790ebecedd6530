//! Opening a connection to Postgres, and the task that drives it. The task leaves a server that has become read-only.
//!
//! A primary may become read-only while sessions are open: an operator sets `default_transaction_read_only`, or a full disk
//! makes a provider set it. Postgres reports the setting to the session with the response of its next statement. The task
//! then closes the connection. The caller connects anew, and connecting takes only a server that is writable.
//!
//! A session that sends no statement learns nothing, so the first one that learns of it closes all connections of the process.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;

use anyhow::Result;
use deadpool_postgres::Connect;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::warn;

use crate::hosts::first_writable;
use crate::tls;

/// Opens connections, for a pool or for one caller.
#[derive(Clone)]
pub(crate) struct Opener {
    /// The settings of TLS. `None`: connections are not encrypted.
    tls: Option<MakeRustlsConnect>,
    /// Whether a server that takes no writes is left.
    needs_primary: bool,
}

/// A client, and the task that drives its connection.
pub(crate) type Opened = (Client, JoinHandle<()>);

impl Opener {
    /// With `sslmode=require` connections are encrypted and the server's certificate is verified. Every other mode connects
    /// without TLS: a server as Debian installs it has a self-signed certificate, which would not verify.
    pub fn new(config: &Config) -> Result<Self> {
        let is_encrypted = config.get_ssl_mode() == SslMode::Require;
        let tls = if is_encrypted { Some(tls::for_postgres()?) } else { None };
        Ok(Self { tls, needs_primary: config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite })
    }

    /// Connects to the first host that is writable.
    ///
    /// # Errors
    /// No host can be used. It is the error of the last host: Postgres is away, refuses, or is read-only.
    pub async fn open(
        &self,
        config: &Config,
        on_notice: impl FnMut() + Send + 'static,
    ) -> Result<Opened, tokio_postgres::Error> {
        if let Some(tls) = &self.tls {
            let (client, connection) = first_writable(config, tls).await?;
            Ok((client, tokio::spawn(drive(connection, on_notice, self.needs_primary))))
        } else {
            let (client, connection) = first_writable(config, &NoTls).await?;
            Ok((client, tokio::spawn(drive(connection, on_notice, self.needs_primary))))
        }
    }
}

impl Connect for Opener {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<Opened, tokio_postgres::Error>> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move { self.open(&config, || {}).await })
    }
}

/// Wakes the task of every open connection of this process: its server has become read-only.
static LEAVE: Notify = Notify::const_new();

/// Closes the connections of this process if a server has refused a statement because it is read-only. A loop or a handler
/// calls this with each error of a statement. A proxy may lead to such a server without a report of the setting.
pub fn leave_if_read_only(error: &(dyn std::error::Error + 'static)) {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let refused = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
        if refused == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            leave();
        }
        cause = error.source();
    }
}

fn leave() {
    warn!("postgres has become read-only: connecting anew, to a server that is not");
    LEAVE.notify_waiters();
}

/// Drives the connection until it ends, or until its server is to be left. The client's next statement reports the end.
async fn drive<S>(
    mut connection: Connection<Socket, S>,
    mut on_notice: impl FnMut() + Send + 'static,
    needs_primary: bool,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut left = pin!(LEAVE.notified());
    left.as_mut().enable();
    poll_fn(|cx| {
        loop {
            match connection.poll_message(cx) {
                Poll::Ready(Some(Ok(AsyncMessage::Notification(_)))) => on_notice(),
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        if !needs_primary {
            return Poll::Pending;
        }
        if is_read_only(&connection) {
            leave();
            return Poll::Ready(());
        }
        left.as_mut().poll(cx)
    })
    .await;
}

/// Whether the server has reported that it takes no writes. A session that was opened while it took them only sees the
/// setting change, because no server becomes a standby without ending its sessions.
fn is_read_only<S>(connection: &Connection<Socket, S>) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection.parameter("default_transaction_read_only") == Some("on")
}
