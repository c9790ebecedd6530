//! `container units`: a person looks at units, and decides about those that the container cannot settle.

use std::fmt;

use anyhow::{Context, Result, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use process::ProcessArgs;
use serde::Serialize;

use crate::units::{self, State};

/// Units that are listed at most.
const LIST_LEN_MAX: i64 = 1000;

/// Looks at units, and decides about those that the container cannot settle.
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
        /// Only those in this state, for example dead. Those that are settled, too.
        #[arg(long, value_parser = one_of_the_states())]
        state: Option<State>,

        /// Print a JSON array instead of lines.
        #[arg(long)]
        json: bool,
    },
    /// Print a unit as JSON: its parts, and the report of each failed attempt.
    Show {
        /// Its number.
        uow: i64,
    },
    /// Make dead units due again, with the next attempt.
    Retry(Chosen),
    /// Settle dead units: no destination has them. Their files are deleted.
    Drop {
        /// The units.
        #[command(flatten)]
        chosen: Chosen,

        /// State that this destination keeps its part, and settle a unit whose rollback cannot end. May be repeated
        #[arg(long, value_name = "DESTINATION", conflicts_with = "all")]
        not_undone: Vec<String>,
    },
}

/// Units.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Chosen {
    /// The number of one.
    uow: Option<i64>,

    /// All dead units.
    #[arg(long)]
    all: bool,
}

fn one_of_the_states() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::names()).try_map(|name| name.parse::<State>())
}

/// Does the work, once.
///
/// # Errors
/// Postgres is away, or the unit is not there or not in the state that the work needs.
pub async fn run(config: Config) -> Result<()> {
    let mut client = connect::postgres::connect(&config.postgres.database_url, "container", || {}).await?;
    match config.work {
        Work::List { state, json } => list(&client, state, json).await,
        Work::Show { uow } => {
            let shown = units::show(&client, uow).await?.with_context(|| format!("there is no unit {uow}"))?;
            println!("{}", serde_json::to_string_pretty(&shown)?);
            Ok(())
        }
        Work::Retry(chosen) => {
            let count = change(&client, &chosen, State::FailQueued).await?;
            println!("{} due again", counted(count));
            Ok(())
        }
        Work::Drop { chosen: Chosen { uow: Some(uow), .. }, not_undone } if !not_undone.is_empty() => {
            give_up(&mut client, uow, &not_undone).await?;
            println!("unit {uow} is dropped, and these destinations keep its part: {}", not_undone.join(", "));
            Ok(())
        }
        Work::Drop { chosen, .. } => {
            let count = change(&client, &chosen, State::Dropped).await?;
            println!("{} dropped", counted(count));
            Ok(())
        }
    }
}

fn counted(count: u64) -> String {
    if count == 1 { "1 unit is".to_owned() } else { format!("{count} units are") }
}

/// A unit in the list.
#[derive(Debug, Serialize)]
struct Listed {
    uow: i64,
    state: String,
    attempt: i32,
    resource: String,
    subject: String,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// One line. A client chose the subject, and a server the error, so they are printed without control characters.
impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uow, state, attempt, resource, subject, created_at, .. } = self;
        write!(f, "{uow} {state}, attempt {attempt}, since {created_at}, {resource} {subject:?}")?;
        match (self.status, &self.error) {
            (Some(status), Some(error)) => write!(f, ", {status}: {error:?}"),
            _ => Ok(()),
        }
    }
}

async fn list(client: &Client, state: Option<State>, json: bool) -> Result<()> {
    let query = "-- container::list
        SELECT uow, state, attempt, status, resource, subject, error,
               to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS created_at
        FROM units WHERE CASE WHEN $1::text IS NULL THEN settled_at IS NULL ELSE state = $1 END ORDER BY uow LIMIT $2";
    let rows = client.query(query, &[&state.map(State::name), &LIST_LEN_MAX]).await.context("listing units")?;
    let listed = rows.iter().map(|row| Listed {
        uow: row.get("uow"),
        state: row.get("state"),
        attempt: row.get("attempt"),
        resource: row.get("resource"),
        subject: row.get("subject"),
        created_at: row.get("created_at"),
        status: row.get("status"),
        error: row.get("error"),
    });
    if json {
        println!("{}", serde_json::to_string_pretty(&listed.collect::<Vec<_>>())?);
    } else {
        listed.for_each(|unit| println!("{unit}"));
    }
    Ok(())
}

/// Changes dead units. Everything of them is taken back already, so both ways are safe. A trigger records a drop in the log.
async fn change(client: &Client, chosen: &Chosen, state: State) -> Result<u64> {
    let statement = "-- container::decide
        UPDATE units SET state = $2::text, take_count = 0, lease = lease + 1,
            attempt = attempt + CASE WHEN $2::text = 'fail_queued' THEN 1 ELSE 0 END,
            due_at = CASE WHEN $2::text = 'fail_queued' THEN now() ELSE 'infinity' END,
            settled_at = CASE WHEN $2::text = 'dropped' THEN now() END
        WHERE state = 'dead' AND ($1::bigint IS NULL OR uow = $1)";
    let count = client.execute(statement, &[&chosen.uow, &state.name()]).await.context("deciding about units")?;
    let uow = chosen.uow.unwrap_or_default();
    ensure!(count > 0 || chosen.all, "unit {uow} is not dead: see container units show {uow}");
    Ok(count)
}

/// Ends a rollback that cannot succeed, for example because a server is gone for good. A worker that still has the unit loses it.
async fn give_up(client: &mut Client, uow: i64, not_undone: &[String]) -> Result<()> {
    let tx = client.transaction().await.context("beginning the decision")?;
    let statement = "-- container::give_up
        UPDATE units SET state = 'dropped', take_count = 0, lease = lease + 1, due_at = 'infinity', settled_at = now()
        WHERE uow = $1 AND state = 'rolling_back'";
    let count = tx.execute(statement, &[&uow]).await.context("deciding about a unit")?;
    ensure!(count == 1, "unit {uow} is not being rolled back: see container units show {uow}");
    let statement = "-- container::not_undone
        UPDATE unit_parts SET error = 'a person has stated that this part is not undone'
        WHERE uow = $1 AND destination = ANY ($2::text[])";
    let count = tx.execute(statement, &[&uow, &not_undone]).await.context("stating what is not undone")?;
    ensure!(
        count == not_undone.len() as u64,
        "unit {uow} has no part in one of these destinations, or one is named twice: see container units show {uow}"
    );
    let statement = "-- container::undone_but
        UPDATE unit_parts SET state = 'undone'
        WHERE uow = $1 AND state IN ('stored', 'timed_out') AND destination <> ALL ($2::text[])";
    tx.execute(statement, &[&uow, &not_undone]).await.context("noting what was taken back")?;
    tx.commit().await.context("committing the decision")
}
