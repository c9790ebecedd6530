//! The paths of the api. Routes, handlers, the description and metrics all take them from here.

/// `POST` takes a ride, `GET` lists them.
pub(crate) const RIDES: &str = "/rides";

/// One ride.
pub(crate) const RIDE: &str = "/rides/{id}";

/// `POST` gives the id of a new wallet.
pub(crate) const WALLETS: &str = "/wallets";

/// One wallet. Every path of a wallet begins like this one.
pub(crate) const WALLET: &str = "/wallet/{id}";

/// Its balance.
pub(crate) const BALANCE: &str = "/wallet/{id}/balance";

/// Its transactions, newest first.
pub(crate) const TRANSACTIONS: &str = "/wallet/{id}/transactions";

/// `POST` puts money into it.
pub(crate) const CREDIT: &str = "/wallet/{id}/credit";

/// `POST` takes money out of it.
pub(crate) const DEBIT: &str = "/wallet/{id}/debit";

/// `POST` moves money from it to another wallet.
pub(crate) const TRANSFER: &str = "/wallet/{id}/transfer";

/// SQL's totals beside each consumer's.
pub(crate) const TOTALS: &str = "/totals";

/// The archive of every record.
pub(crate) const HISTORY: &str = "/history";

/// Whether rides and commands for wallets can be taken.
pub(crate) const HEALTHZ: &str = "/healthz";

/// The description in OpenAPI.
pub(crate) const OPENAPI: &str = "/openapi.json";

/// The page that shows the description, and the files below it.
pub(crate) const DOCS: &str = "/docs";
