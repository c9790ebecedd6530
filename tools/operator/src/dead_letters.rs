//! `dead-letters`: lists and shows the records that a consumer could not fold, and folds or drops them. The same for receipts
//! that could not be delivered.
//!
//! The fold is that of the consumer, as this binary has it. It decides whether a record is accepted today.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use connect::PostgresArgs;
use consumer::{CheckpointKey, FOLDS, Replay};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;
use process::LogArgs;

use crate::plain::one_line;
use crate::receipts;

/// Dead letters per query. Each may have 64 KiB.
const PAGE_LEN_MAX: i64 = 100;

/// Lists, shows, replays and drops the records that consumers could not fold. Lists and resends undeliverable receipts.
#[derive(Debug, Clone, Parser)]
#[command(name = "dead-letters", version)]
pub struct Config {
    /// The action.
    #[command(subcommand)]
    pub action: Action,

    /// The connection to Postgres.
    #[command(flatten)]
    pub postgres: PostgresArgs,

    /// The partition of the log to work on.
    #[arg(long, env = "PARTITION", default_value_t = Partition::FIRST, global = true)]
    pub partition: Partition,

    /// The log output.
    #[command(flatten)]
    pub log: LogArgs,
}

/// The action on the dead letters.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// List dead letters, one per line.
    List {
        /// Only those of this consumer.
        #[arg(long)]
        name: Option<String>,
    },
    /// Show a dead letter with its payload and the reason.
    Show {
        /// The consumer.
        name: String,
        /// The offset of the record.
        offset: i64,
    },
    /// Fold dead letters with the fold of today. A record that it still rejects stays, with the new reason.
    Replay {
        /// The consumer.
        name: String,
        /// The offset of the record.
        #[arg(required_unless_present = "all")]
        offset: Option<i64>,
        /// Replay all dead letters of the consumer that are not dropped.
        #[arg(long, conflicts_with = "offset")]
        all: bool,
    },
    /// Mark a dead letter as not to be folded. It is listed as dropped, and no longer counted.
    Drop {
        /// The consumer.
        name: String,
        /// The offset of the record.
        offset: i64,
    },
    /// List the receipts that were refused for the last time, one per line.
    Receipts,
    /// Deliver a refused receipt again.
    Resend {
        /// The ride.
        #[arg(required_unless_present = "all")]
        ride_id: Option<i64>,
        /// Deliver all receipts again that were refused for the last time.
        #[arg(long, conflicts_with = "ride_id")]
        all: bool,
    },
}

/// Runs the action and prints the result. Returns `false` if a record is still rejected.
///
/// # Errors
/// The consumer or the dead letter does not exist, or Postgres is away.
pub async fn run(config: &Config) -> Result<bool> {
    let mut client = connect::postgres::connect(&config.postgres.database_url, "dead-letters", || {}).await?;
    let partition = config.partition;
    match &config.action {
        Action::List { name } => list(&client, name.as_deref(), partition).await,
        Action::Show { name, offset } => show(&client, name, partition, *offset).await,
        Action::Replay { name, offset: Some(offset), .. } => replay(&mut client, name, partition, *offset).await,
        Action::Replay { name, offset: None, .. } => replay_all(&mut client, name, partition).await,
        Action::Drop { name, offset } => drop_one(&client, name, partition, *offset).await,
        Action::Receipts => receipts::list(&client).await,
        Action::Resend { ride_id, .. } => receipts::resend(&client, *ride_id).await,
    }
}

async fn list(client: &Client, name: Option<&str>, partition: Partition) -> Result<bool> {
    let (mut after_name, mut after_offset) = (String::new(), 0_i64);
    loop {
        let rows = client
            .query(
                "-- operator::dead_letters::list
                 SELECT name, record_offset, object, action, reason, dropped_at IS NOT NULL AS is_dropped
                 FROM dead_letters
                 WHERE partition = $1 AND ($2::text IS NULL OR name = $2) AND (name, record_offset) > ($3, $4)
                 ORDER BY name, record_offset LIMIT $5",
                &[&partition, &name, &after_name, &after_offset, &PAGE_LEN_MAX],
            )
            .await
            .context("listing dead letters")?;
        for row in &rows {
            (after_name, after_offset) = (row.get("name"), row.get("record_offset"));
            let (object, action): (&str, &str) = (row.get("object"), row.get("action"));
            let dropped = if row.get("is_dropped") { " (dropped)" } else { "" };
            let reason: &str = row.get("reason");
            println!("{}", one_line(&format!("{after_name} {after_offset} {object} {action}: {reason}{dropped}")));
        }
        if (rows.len() as i64) < PAGE_LEN_MAX {
            return Ok(true);
        }
    }
}

async fn show(client: &Client, name: &str, partition: Partition, offset: i64) -> Result<bool> {
    let row = client
        .query_opt(
            "-- operator::dead_letters::show
             SELECT object, action, data, reason, created_at::text, dropped_at::text FROM dead_letters
             WHERE name = $1 AND partition = $2 AND record_offset = $3",
            &[&name, &partition, &offset],
        )
        .await
        .context("reading the dead letter")?;
    let Some(row) = row else { return not_there(name, offset) };
    println!("consumer {name}, partition {partition}, offset {offset}");
    println!("record   {} {}", one_line(row.get("object")), one_line(row.get("action")));
    println!("since    {}", row.get::<_, &str>("created_at"));
    if let Some(dropped_at) = row.get::<_, Option<&str>>("dropped_at") {
        println!("dropped  {dropped_at}");
    }
    println!("reason   {}", one_line(row.get("reason")));
    row.get::<_, &str>("data").lines().for_each(|line| println!("{}", one_line(line)));
    Ok(true)
}

async fn replay(client: &mut Client, name: &str, partition: Partition, offset: i64) -> Result<bool> {
    match fold(client, name, partition, offset).await? {
        Some(is_folded) => Ok(is_folded),
        None => not_there(name, offset),
    }
}

/// Whether the record was folded; `None` if the dead letter does not exist.
async fn fold(client: &mut Client, name: &str, partition: Partition, offset: i64) -> Result<Option<bool>> {
    let key = CheckpointKey { name: name.to_owned(), partition };
    let mut fold = FOLDS.of_consumer(client, &key).await?;
    match consumer::replay(client, &mut fold, name, partition, offset).await? {
        Replay::Applied => {
            println!("{name} {offset}: folded");
            Ok(Some(true))
        }
        Replay::Rejected(rejection) => {
            println!("{name} {offset}: still rejected, and kept: {}", one_line(&rejection.0));
            Ok(Some(false))
        }
        Replay::NotThere => Ok(None),
    }
}

async fn replay_all(client: &mut Client, name: &str, partition: Partition) -> Result<bool> {
    let (mut after_offset, mut all_folded) = (0_i64, true);
    loop {
        let rows = client
            .query(
                "-- operator::dead_letters::replay_all
                 SELECT record_offset FROM dead_letters
                 WHERE name = $1 AND partition = $2 AND record_offset > $3 AND dropped_at IS NULL
                 ORDER BY record_offset LIMIT $4",
                &[&name, &partition, &after_offset, &PAGE_LEN_MAX],
            )
            .await
            .context("listing dead letters")?;
        for row in &rows {
            after_offset = row.get(0);
            // None: another process has replayed it in the meantime.
            all_folded &= fold(client, name, partition, after_offset).await?.unwrap_or(true);
        }
        if (rows.len() as i64) < PAGE_LEN_MAX {
            return Ok(all_folded);
        }
    }
}

async fn drop_one(client: &Client, name: &str, partition: Partition, offset: i64) -> Result<bool> {
    // The row stays, because an audit must know which records the consumer's state lacks on purpose.
    let dropped_count = client
        .execute(
            "-- operator::dead_letters::drop_one
             UPDATE dead_letters SET dropped_at = COALESCE(dropped_at, now())
             WHERE name = $1 AND partition = $2 AND record_offset = $3",
            &[&name, &partition, &offset],
        )
        .await
        .context("dropping the dead letter")?;
    if dropped_count == 0 {
        return not_there(name, offset);
    }
    println!("{name} {offset}: dropped");
    Ok(true)
}

fn not_there(name: &str, offset: i64) -> Result<bool> {
    bail!("consumer {name:?} has no dead letter at offset {offset}");
}
