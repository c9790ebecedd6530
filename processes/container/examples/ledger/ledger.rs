//! The destination: one row per attempt, whose column `is_undone` is the register. Store and undo are one statement each, so
//! Postgres decides which of them comes first.

use container::destination::{Destination, Outcome, Refusal, Unit, UnitRef};
use deadpool_postgres::Pool;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio_postgres::config::Host;
use tokio_postgres::types::ToSql;

/// Connections with the other database. Units that have none wait, within the time-out of the destination.
const POOL_LEN: usize = 8;

/// A table of passengers.
pub struct Ledger {
    pool: Pool,
    table: String,
    place: String,
}

/// The part of a document that the ledger keeps.
#[derive(Deserialize)]
struct Manifest {
    passengers: Vec<IgnoredAny>,
}

impl Ledger {
    /// A ledger in this table. It connects at the first store.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub fn new(database: &str, table: &str) -> Result<Self, String> {
        if table.is_empty() || !table.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            return Err("`table` is no name: give lower-case letters and _".to_owned());
        }
        let bad_url = "`database` is no URL of Postgres: give one such as postgres://ledger@localhost/ledger";
        let config: tokio_postgres::Config = database.parse().map_err(|_| bad_url)?;
        let pool = connect::postgres::pool(&config, "ledger", POOL_LEN).map_err(|_| bad_url)?;
        // The password is no part of the place: it may change while units are open.
        let hosts: Vec<String> = config.get_hosts().iter().map(shown).collect();
        let name = config.get_dbname().unwrap_or_default();
        let place = format!("{}, database {name}, table {table}", hosts.join(", "));
        Ok(Self { pool, table: table.to_owned(), place })
    }

    /// Where it is, without the password.
    pub fn place(&self) -> String {
        self.place.clone()
    }

    /// Runs a statement that returns one boolean, or nothing.
    async fn run(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<bool, Refusal> {
        let statement = statement.replace("LEDGER", &self.table);
        let run = async {
            let client = connect::postgres::take(&self.pool).await?;
            Ok::<_, anyhow::Error>(client.query_opt(&statement, values).await?.is_some_and(|row| row.get(0)))
        };
        // Whether it was written may be unknown. The container then undoes the attempt.
        run.await.map_err(|error| Refusal::new(503, format!("the ledger: {error:#}")))
    }
}

fn shown(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) => folder.display().to_string(),
    }
}

impl Destination for Ledger {
    fn store<'a>(&'a self, unit: &'a Unit) -> BoxFuture<'a, Outcome> {
        Box::pin(async {
            let Ok(Manifest { passengers }) = serde_json::from_slice(&unit.document) else {
                // 4xx is final: another attempt of the same document would fail again.
                return Outcome::Failed(Refusal::new(422, "give the document's passengers as a list").clear());
            };
            let statement = "-- ledger::store
                INSERT INTO LEDGER AS l (key, attempt, uow, ride, passenger_count) VALUES ($1::text::uuid, $2, $3, $4, $5)
                ON CONFLICT (key, attempt) DO UPDATE SET uow = l.uow RETURNING is_undone";
            let (key, count) = (unit.key.to_string(), passengers.len() as i64);
            match self.run(statement, &[&key, &unit.attempt, &unit.uow, &unit.subject, &count]).await {
                Ok(false) => Outcome::Stored,
                Ok(true) => Outcome::Failed(Refusal::undone()),
                Err(refusal) => Outcome::Failed(refusal),
            }
        })
    }

    fn undo<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            let statement = "-- ledger::undo
                INSERT INTO LEDGER (key, attempt, uow, ride, is_undone) VALUES ($1::text::uuid, $2, $3, $4, true)
                ON CONFLICT (key, attempt) DO UPDATE SET is_undone = true, passenger_count = NULL";
            self.run(statement, &[&unit.key.to_string(), &unit.attempt, &unit.uow, &unit.subject]).await.map(drop)
        })
    }

    fn forget<'a>(&'a self, unit: UnitRef<'a>) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(async move {
            // The row of a committed attempt is what the unit has stored, so it stays.
            let statement = "-- ledger::forget
                DELETE FROM LEDGER WHERE key = $1::text::uuid AND attempt <= $2 AND is_undone";
            self.run(statement, &[&unit.key.to_string(), &unit.attempt]).await.map(drop)
        })
    }
}
