//! The path and the headers of wallets, for the description only.
#![expect(dead_code, reason = "only their derived descriptions are used")]

use utoipa::IntoParams;

/// The wallet of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct WalletPath {
    /// The wallet's KSUID. Any KSUID is a wallet.
    #[param(example = "28skwt5B8zTrs6AqBWrSgCHLcRL", pattern = "^([0-9A-Z][0-9A-Za-z]{26}|a[0-9A-V][0-9A-Za-z]{25})$")]
    id: String,
}

/// The headers of a command.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub(crate) struct CommandHeaders {
    /// The key of the command: a value that no other command for this wallet has. In quotes it is the same key.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, pattern = "^[!#-~][!-~]*$")]
    idempotency_key: Option<String>,
}
