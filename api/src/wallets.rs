//! Wallets over HTTP.
//!
//! ```text
//! routes ─┬─▶ commands ─▶ request ─▶ WalletWriter          an attempt becomes an event
//!         └─▶ reads ─▶ source ─▶ the read model, or Postgres
//!                  └─▶ page ────────────────────▶ Postgres   older transactions
//! ```
//!
//! `target` reads paths and query strings, `answer` and `error` write responses.

mod answer;
mod commands;
mod described;
mod error;
mod page;
mod reads;
mod request;
mod responses;
mod routes;
mod source;
mod target;

pub(crate) use commands::*;
pub(crate) use error::WalletErrorBody;
pub(crate) use reads::*;
pub(crate) use routes::{answer, fallback, quick, routes};
pub(crate) use target::route_of;
