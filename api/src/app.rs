//! The state of the api, which handlers use.

use std::sync::Arc;
use std::time::Duration;

use booking::Desk;
use common::shutdown::CancellationToken;
use tokio::sync::Semaphore;

use crate::database::Database;
use crate::reading::PacedTotals;
use crate::wallet_model::WalletModel;
use crate::wallet_writer::WalletWriter;
use crate::writer::Writer;

/// The state that handlers use. Clones share it.
#[derive(Clone)]
pub(crate) struct App {
    pub database: Database,
    pub writer: Writer,
    pub wallets: WalletWriter,
    /// `None`: no payment processor is set up.
    pub desk: Option<Desk>,
    /// Reads wallets.
    pub model: WalletModel,
    /// How long a client may take to send a body.
    pub body_wait: Duration,
    /// How long a whole request may take.
    pub request_wait: Duration,
    /// Read for all clients at once.
    pub totals: PacedTotals,
    /// The places of clients that watch the history.
    pub watchers: Arc<Semaphore>,
    /// Ends the streams of these clients.
    pub shutdown: CancellationToken,
}
