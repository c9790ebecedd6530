//! A container with a kind of destination of its own: a table in another Postgres database. `README.md` shows how to run it.
//!
//! A program needs a [`Destination`], the type of its settings, and one line that registers the kind. The container does the rest:
//! leases, retries, the verdict, rollbacks, the breaker, and the declaration with its faults.

mod ledger;

use std::process::ExitCode;
use std::sync::Arc;

use container::Config;
use container::declaration::{Own, OwnKind, Settings, SettingsError};
use ledger::Ledger;
use serde::Deserialize;

fn main() -> ExitCode {
    process::main(Config::process, async |config, shutdown| container::run_with(config, KINDS, shutdown).await)
}

/// The kinds that this program adds.
const KINDS: &[OwnKind] = &[OwnKind { name: "ledger", make }];

/// The keys of `[destination.NAME]` beside those that every destination has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    database: String,
    table: String,
}

fn make(settings: Settings<'_>) -> Result<Own, SettingsError> {
    let Keys { database, table } = settings.read()?;
    let ledger = Ledger::new(&database, &table).map_err(SettingsError::new)?;
    Ok(Own { place: ledger.place(), destination: Arc::new(ledger) })
}
