//! `dead-letters`: lists and shows the records that a consumer could not fold, and folds or drops them. The same for receipts
//! that could not be delivered.
//!
//! The fold is that of the consumer, as this binary has it. It decides whether a record is accepted today.
//!
//! An offset names a record only together with its partition. If the log has several, a command about one offset needs the
//! partition, and never guesses it.

use std::fmt;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Parser, Subcommand};
use common::stay_down::StayDown;
use connect::{PostgresArgs, parse_url};
use consumer::{CheckpointKey, FOLDS, Replay};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, PartitionCount, Partitions};
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

    /// The database of a consumer that keeps its state in a database of its own: its dead letters are there
    #[arg(long, env = "STATE_DATABASE_URL", hide_env_values = true, value_parser = parse_url, global = true)]
    pub state_database_url: Option<tokio_postgres::Config>,

    /// The partitions of the log to work on: all, or numbers such as 0,3.
    #[arg(long, env = "PARTITIONS", alias = "partition", default_value_t, global = true)]
    pub partitions: Partitions,

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
    let log = Log::read(&client, &config.partitions).await?;
    let is_of_receipts = matches!(config.action, Action::Receipts | Action::Resend { .. });
    if let Some(own) = config.state_database_url.as_ref().filter(|_| !is_of_receipts) {
        let connected = connect::postgres::connect(own, "dead-letters", || {}).await;
        client = connected.context("connecting to STATE_DATABASE_URL")?;
    }
    match &config.action {
        Action::List { name } => list(&client, name.as_deref(), &log).await,
        Action::Show { name, offset } => show(&client, &log.letter(&client, name, *offset).await?).await,
        Action::Replay { name, offset: Some(offset), .. } => {
            let letter = log.letter(&client, name, *offset).await?;
            replay(&mut client, &letter).await
        }
        Action::Replay { name, offset: None, .. } => replay_all(&mut client, name, &log).await,
        Action::Drop { name, offset } => drop_one(&client, &log.letter(&client, name, *offset).await?).await,
        Action::Receipts => receipts::list(&client).await,
        Action::Resend { ride_id, .. } => receipts::resend(&client, *ride_id).await,
    }
}

/// The part of the log that the command is about.
struct Log {
    count: PartitionCount,
    partitions: Vec<Partition>,
}

impl Log {
    async fn read(client: &Client, partitions: &Partitions) -> Result<Self> {
        let count = pglog::identity(client).await.context("reading the log's identity")?.partitions;
        Ok(Self { count, partitions: partitions.of(count).map_err(|unknown| StayDown(unknown.into()))? })
    }

    /// The dead letter that an offset names.
    ///
    /// # Errors
    /// [`StayDown`] if several partitions may be meant. The error names those in which there is such a dead letter.
    async fn letter<'a>(&self, client: &Client, name: &'a str, offset: i64) -> Result<Letter<'a>> {
        if let [partition] = self.partitions[..] {
            return Ok(Letter { name, partition, offset, count: self.count });
        }
        let rows = client
            .query(
                "-- operator::dead_letters::letter
                 SELECT partition FROM dead_letters
                 WHERE name = $1 AND record_offset = $2 AND partition = ANY ($3) ORDER BY partition",
                &[&name, &offset, &self.partitions],
            )
            .await
            .context("looking for the dead letter")?;
        let found: Vec<String> = rows.iter().map(|row| self.count.argument_for(row.get(0))).collect();
        let found = if found.is_empty() { "none of them".to_owned() } else { found.join(" or").trim().to_owned() };
        Err(StayDown(anyhow!(
            "the log has {} partitions, and each may have an offset {offset}: give the partition. There is a dead letter of {name:?} \
             at this offset in: {found}",
            self.count
        ))
        .into())
    }
}

/// The dead letter at an offset.
struct Letter<'a> {
    name: &'a str,
    partition: Partition,
    offset: i64,
    count: PartitionCount,
}

impl Letter<'_> {
    fn not_there(&self) -> Result<bool> {
        let Self { name, partition, offset, count } = self;
        let place = if *count == PartitionCount::ONE { String::new() } else { format!(" of partition {partition}") };
        bail!("consumer {name:?} has no dead letter at offset {offset}{place}");
    }
}

/// The consumer and the offset; also the partition, if the log has several.
impl fmt::Display for Letter<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, partition, offset, count } = self;
        write!(out, "{name} {offset}")?;
        if *count == PartitionCount::ONE { Ok(()) } else { write!(out, " (partition {partition})") }
    }
}

async fn list(client: &Client, only: Option<&str>, log: &Log) -> Result<bool> {
    let (mut after_name, mut after) = (String::new(), (Partition::FIRST, 0_i64));
    loop {
        let rows = client
            .query(
                "-- operator::dead_letters::list
                 SELECT name, partition, record_offset, object, action, reason, dropped_at IS NOT NULL AS is_dropped
                 FROM dead_letters
                 WHERE partition = ANY ($1) AND ($2::text IS NULL OR name = $2)
                   AND (name, partition, record_offset) > ($3, $4, $5)
                 ORDER BY name, partition, record_offset LIMIT $6",
                &[&log.partitions, &only, &after_name, &after.0, &after.1, &PAGE_LEN_MAX],
            )
            .await
            .context("listing dead letters")?;
        for row in &rows {
            (after_name, after) = (row.get("name"), (row.get("partition"), row.get("record_offset")));
            let letter = Letter { name: &after_name, partition: after.0, offset: after.1, count: log.count };
            let (object, action): (&str, &str) = (row.get("object"), row.get("action"));
            let dropped = if row.get("is_dropped") { " (dropped)" } else { "" };
            let reason: &str = row.get("reason");
            println!("{}", one_line(&format!("{letter} {object} {action}: {reason}{dropped}")));
        }
        if (rows.len() as i64) < PAGE_LEN_MAX {
            return Ok(true);
        }
    }
}

async fn show(client: &Client, letter: &Letter<'_>) -> Result<bool> {
    let Letter { name, partition, offset, .. } = letter;
    let row = client
        .query_opt(
            "-- operator::dead_letters::show
             SELECT object, action, data, reason, created_at::text, dropped_at::text FROM dead_letters
             WHERE name = $1 AND partition = $2 AND record_offset = $3",
            &[name, partition, offset],
        )
        .await
        .context("reading the dead letter")?;
    let Some(row) = row else { return letter.not_there() };
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

async fn replay(client: &mut Client, letter: &Letter<'_>) -> Result<bool> {
    match fold(client, letter).await? {
        Some(is_folded) => Ok(is_folded),
        None => letter.not_there(),
    }
}

/// Whether the record was folded; `None` if the dead letter does not exist.
async fn fold(client: &mut Client, letter: &Letter<'_>) -> Result<Option<bool>> {
    let Letter { name, partition, offset, .. } = *letter;
    let key = CheckpointKey { name: name.to_owned(), partition };
    let mut fold = FOLDS.of_consumer(client, &key).await?;
    match consumer::replay(client, &mut fold, name, partition, offset).await? {
        Replay::Applied => {
            println!("{letter}: folded");
            Ok(Some(true))
        }
        Replay::Rejected(rejection) => {
            println!("{letter}: still rejected, and kept: {}", one_line(&rejection.0));
            Ok(Some(false))
        }
        Replay::NotThere => Ok(None),
    }
}

/// Replays the dead letters of all partitions that the command is about.
async fn replay_all(client: &mut Client, name: &str, log: &Log) -> Result<bool> {
    let (mut after, mut all_folded) = ((Partition::FIRST, 0_i64), true);
    loop {
        let rows = client
            .query(
                "-- operator::dead_letters::replay_all
                 SELECT partition, record_offset FROM dead_letters
                 WHERE name = $1 AND partition = ANY ($2) AND (partition, record_offset) > ($3, $4) AND dropped_at IS NULL
                 ORDER BY partition, record_offset LIMIT $5",
                &[&name, &log.partitions, &after.0, &after.1, &PAGE_LEN_MAX],
            )
            .await
            .context("listing dead letters")?;
        for row in &rows {
            after = (row.get(0), row.get(1));
            let letter = Letter { name, partition: after.0, offset: after.1, count: log.count };
            // None: another process has replayed it in the meantime.
            all_folded &= fold(client, &letter).await?.unwrap_or(true);
        }
        if (rows.len() as i64) < PAGE_LEN_MAX {
            return Ok(all_folded);
        }
    }
}

async fn drop_one(client: &Client, letter: &Letter<'_>) -> Result<bool> {
    let Letter { name, partition, offset, .. } = letter;
    // The row stays, because an audit must know which records the consumer's state lacks on purpose.
    let dropped_count = client
        .execute(
            "-- operator::dead_letters::drop_one
             UPDATE dead_letters SET dropped_at = COALESCE(dropped_at, now())
             WHERE name = $1 AND partition = $2 AND record_offset = $3",
            &[name, partition, offset],
        )
        .await
        .context("dropping the dead letter")?;
    if dropped_count == 0 {
        return letter.not_there();
    }
    println!("{letter}: dropped");
    Ok(true)
}
