//! Reads that never give less than a client asks for (W5): the read model passes over a document that is too old for Postgres,
//! and if Postgres has less, too, the response is an error.

use wallet::WalletId;
use wallet::documents::{Document, Head};

use crate::app::App;
use crate::wallet_model::Source;
use crate::wallets::error::WalletError;

/// Reads the state of a wallet. `None`: it was never credited.
///
/// # Errors
/// The wallet has not reached `min_version`, or Postgres fails.
pub(crate) async fn head(app: &App, wallet: WalletId, min_version: i64) -> Result<(Option<Head>, Source), WalletError> {
    let (head, source) = app.model.head(wallet, min_version).await?;
    has_reached(head.map_or(0, |head| head.version), min_version)?;
    Ok((head, source))
}

/// Reads the state of a wallet with its newest transactions. `None`: it was never credited.
///
/// # Errors
/// As [`head`].
pub(crate) async fn document(
    app: &App,
    wallet: WalletId,
    min_version: i64,
) -> Result<(Option<Document>, Source), WalletError> {
    let (document, source) = app.model.document(wallet, min_version).await?;
    has_reached(document.as_ref().map_or(0, |document| document.version), min_version)?;
    Ok((document, source))
}

/// Checks the version of a wallet.
///
/// # Errors
/// [`WalletError::VersionNotReached`]: the client asks for a version that was never committed, or that is lost.
pub(crate) fn has_reached(version: i64, min_version: i64) -> Result<(), WalletError> {
    if version >= min_version { Ok(()) } else { Err(WalletError::VersionNotReached { version, min_version }) }
}
