//! The program around the folds of the examples: a consumer, and the replay of its dead letters.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use common::shutdown::CancellationToken;
use consumer::{CheckpointKey, Registry, Replay};

/// The flags of every consumer, and one more.
#[derive(Debug, Clone, Parser)]
#[group(skip)]
struct Config {
    #[command(flatten)]
    consumer: consumer::Config,

    /// Fold the dead letter at this offset with the fold of today, under the role of an operator; then exit. If the log has several
    /// partitions, --partitions names the one.
    #[arg(long, value_name = "OFFSET", conflicts_with_all = ["drain", "copy_from", "unregister"])]
    replay: Option<i64>,
}

/// Runs a consumer with one of these folds.
pub fn main(folds: Registry) -> ExitCode {
    let run = async |config, shutdown| run(config, folds, shutdown).await;
    process::main(|config: &Config| &config.consumer.process, run)
}

async fn run(config: Config, folds: Registry, shutdown: CancellationToken) -> Result<()> {
    let Some(offset) = config.replay else { return consumer::run(config.consumer, folds, shutdown).await };
    let name = config.consumer.name;
    let mut client = connect::postgres::connect(&config.consumer.postgres.database_url, &name, || {}).await?;
    let identity = pglog::prepare_session(&client).await?;
    let [partition] = config.consumer.stream.partitions.of(identity.partitions)?[..] else {
        bail!("an offset is of one partition: name it, for example --partitions 0");
    };
    // The dead letters lie beside the state.
    if let Some(own) = &config.consumer.state_database_url {
        client = connect::postgres::connect(own, &name, || {}).await?;
    }
    let key = CheckpointKey { name: name.clone(), partition };
    let mut fold = folds.of_consumer(&client, &key).await?;
    match consumer::replay(&mut client, &mut fold, &name, partition, offset).await? {
        Replay::Applied => println!("{name} {offset}: folded"),
        Replay::Rejected(rejection) => bail!("the record at offset {offset} is still rejected: {rejection}"),
        Replay::NotThere => bail!("consumer {name} has no dead letter at offset {offset}"),
    }
    Ok(())
}
