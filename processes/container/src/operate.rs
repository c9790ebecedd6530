//! `container units`: a person looks at units, and decides about those whose attempts are used up.

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use process::ProcessArgs;

use crate::units;

/// Units that are listed at most.
const LIST_LEN_MAX: i64 = 1000;

/// Looks at units, and decides about those that are dead.
#[derive(Debug, Clone, Parser)]
pub struct Config {
    /// The work.
    #[command(subcommand)]
    pub work: Work,

    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// The arguments of every process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// The work.
#[derive(Debug, Clone, Subcommand)]
pub enum Work {
    /// List the units that are not settled, oldest first; at most 1,000.
    List {
        /// Only those in this state, for example dead.
        #[arg(long)]
        state: Option<units::State>,
    },
    /// Print a unit as JSON: its parts, and the report of each failed attempt.
    Show {
        /// Its number.
        uow: i64,
    },
    /// Make dead units due again, with the next attempt.
    Retry(Chosen),
    /// Settle dead units: no destination has them. Their files are deleted.
    Drop(Chosen),
}

/// Dead units.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Chosen {
    /// The number of one.
    uow: Option<i64>,

    /// All of them.
    #[arg(long)]
    all: bool,
}

/// Does the work, once.
///
/// # Errors
/// Postgres is away, or the unit is not there or not dead.
pub async fn run(config: Config) -> Result<()> {
    let client = connect::postgres::connect(&config.postgres.database_url, "container", || {}).await?;
    match config.work {
        Work::List { state } => list(&client, state).await,
        Work::Show { uow } => {
            let shown = units::show(&client, uow).await?.with_context(|| format!("there is no unit {uow}"))?;
            println!("{}", serde_json::to_string_pretty(&shown)?);
            Ok(())
        }
        Work::Retry(chosen) => {
            let count = change(&client, &chosen, "fail_queued").await?;
            println!("{count} units are due again");
            Ok(())
        }
        Work::Drop(chosen) => {
            let count = change(&client, &chosen, "dropped").await?;
            println!("{count} units are dropped");
            Ok(())
        }
    }
}

async fn list(client: &Client, state: Option<units::State>) -> Result<()> {
    let query = "-- container::list
        SELECT uow, state, attempt, status, resource, subject, error FROM units
        WHERE settled_at IS NULL AND ($1::text IS NULL OR state = $1) ORDER BY uow LIMIT $2";
    let rows = client.query(query, &[&state.map(units::State::name), &LIST_LEN_MAX]).await.context("listing units")?;
    for row in &rows {
        let (uow, state, attempt): (i64, &str, i32) = (row.get("uow"), row.get("state"), row.get("attempt"));
        let (resource, subject): (&str, &str) = (row.get("resource"), row.get("subject"));
        let reason = match (row.get::<_, Option<i16>>("status"), row.get::<_, Option<&str>>("error")) {
            (Some(status), Some(error)) => format!(", {status}: {error}"),
            _ => String::new(),
        };
        println!("{uow} {state}, attempt {attempt}, {resource} {subject}{reason}");
    }
    Ok(())
}

/// Changes dead units. Everything of them is taken back already, so both ways are safe.
async fn change(client: &Client, chosen: &Chosen, state: &str) -> Result<u64> {
    let statement = "-- container::decide
        UPDATE units SET state = $2::text, take_count = 0, lease = lease + 1,
            attempt = attempt + CASE WHEN $2::text = 'fail_queued' THEN 1 ELSE 0 END,
            due_at = CASE WHEN $2::text = 'fail_queued' THEN now() ELSE 'infinity' END,
            settled_at = CASE WHEN $2::text = 'dropped' THEN now() END
        WHERE state = 'dead' AND ($1::bigint IS NULL OR uow = $1)";
    let count = client.execute(statement, &[&chosen.uow, &state]).await.context("deciding about units")?;
    let uow = chosen.uow.unwrap_or_default();
    ensure!(count > 0 || chosen.all, "unit {uow} is not dead: see container units show {uow}");
    Ok(count)
}
