//! `wallets`: commands per second beside a transaction a command, reads of balances beside HTTP without a read, one wallet beside
//! a transaction that is held open, the read model built anew, and the first page of a long history.
//!
//! In all of it the api writes the read model through. The process that makes the model certain has built it and is stopped
//! before the loads, as the streamer is: pgbench has no such processes beside it either. One figure is with both of them.

mod commands;
mod long;
mod naive;
mod reads;
mod rebuilt;
mod service;

use anyhow::Result;

use crate::bench::Bench;
use crate::report::Figures;
use crate::tools;
use crate::wrk::Wrk;

/// Connections under load.
const CONNECTIONS: u32 = 64;

/// The wallets of most loads.
const WALLET_COUNT: i64 = 10_000;

/// The events that each wallet has at the beginning: as many as its document shows.
const EVENT_COUNT: i64 = 20;

/// Runs the case.
pub(crate) async fn run(bench: &Bench) -> Result<Figures> {
    let wrk = Wrk::new(bench)?;
    tools::pgbench(&bench.binaries.folder)?;
    tools::nginx()?;
    // Reads come first: disk and autovacuum are busy for a while after a load of commands.
    let reads = reads::measure(bench, &wrk).await?;
    let mut rows = commands::measure(bench, &wrk).await?;
    rows.extend(reads);
    rows.extend(commands::measure_held(bench, &wrk).await?);
    rows.extend(rebuilt::measure(bench).await?);
    rows.extend(long::measure(bench, &wrk).await?);
    Ok(Figures::of(rows).remark(
        "A command has an Idempotency-Key, and is written to the read model, too. pgbench locks the wallet, looks up the key, \
         writes event and state, updates the wallet and stages the record, and has no read model.",
    ))
}
