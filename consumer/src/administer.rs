//! The commands that change a registration and exit: `--register`, `--copy-from` and `--unregister`. Each acts on all partitions
//! that the process is told to fold, in one transaction.

use anyhow::{Context, Result, ensure};
use common::shutdown::CancellationToken;
use common::stay_down::StayDown;
use deadpool_postgres::ClientWrapper as Client;
use pglog::Partition;

use crate::advice::Whose;
use crate::bootstrap::{copy, register_anew};
use crate::checkpoint::{Removed, in_words, remove};
use crate::config::Config;
use crate::consumer::Consumer;
use crate::home;
use crate::registry::Registry;

/// Carries out the command, and prints the result. Returns the name of the fold of a consumer that is unregistered now.
///
/// # Errors
/// As [`register_anew`], [`copy`] or [`remove`]; an [`UnknownPartition`](pglog::UnknownPartition).
pub(crate) async fn administer(config: &Config, registry: &Registry) -> Result<Option<String>> {
    let whose = Whose { name: config.name.clone(), partitions: config.stream.partitions.clone() };
    let name = &whose.name;
    let mut client = connect::postgres::connect(&config.postgres.database_url, "consumer", || {}).await?;
    let identity = pglog::prepare_session(&client).await.context("setting up the session")?;
    let partitions = whose.partitions.of(identity.partitions).map_err(|unknown| StayDown(unknown.into()))?;
    // A log that is not cut has no partitions to tell of.
    let is_cut = identity.partitions.number() > 1;
    if let Some(own) = &config.state_database_url {
        let own = home::connect(own, name).await?;
        return administer_elsewhere(config, registry, (&client, &own), (&whose, &partitions), is_cut).await;
    }
    if config.register {
        let fold = &mut config.fold(registry)?;
        let registered = register_anew(&mut client, fold, &whose, &partitions, config.from).await?;
        println!("consumer {name} is registered {}", places(is_cut, &registered));
    } else if let Some(source) = &config.copy_from {
        let fold = config.fold.as_deref();
        let copied = copy(&mut client, registry, fold, source, (&whose, &partitions)).await?;
        println!("consumer {name} starts with the state of {source} {}", places(is_cut, &copied));
    } else {
        let removed = remove(&client, name, &partitions).await?;
        if removed.is_elsewhere {
            println!("its state is still in its own database: set STATE_DATABASE_URL to forget that, too");
        }
        return tell_removed(name, &partitions, removed, is_cut);
    }
    Ok(None)
}

/// The same for a consumer whose state is in a database of its own.
async fn administer_elsewhere(
    config: &Config,
    registry: &Registry,
    (client, own): (&Client, &Client),
    (whose, partitions): (&Whose, &[Partition]),
    is_cut: bool,
) -> Result<Option<String>> {
    let name = &whose.name;
    ensure!(
        config.copy_from.is_none(),
        "--copy-from copies within the log's own database: leave STATE_DATABASE_URL out"
    );
    if config.register {
        let mut consumer = Consumer::new(config, config.fold(registry)?, CancellationToken::new());
        let registered = consumer.register_elsewhere(config.from).await?;
        println!("consumer {name} is registered {}", places(is_cut, &registered));
        return Ok(None);
    }
    // In this order: a state whose registration is gone can be taken up again, while the records after it are there. If this was cut
    // off in between, it is run again.
    let mut removed = remove(client, name, partitions).await?;
    removed.partitions.extend(home::forget(own, name, partitions).await?);
    removed.partitions.sort_unstable();
    removed.partitions.dedup();
    tell_removed(name, partitions, removed, is_cut)
}

/// Prints where a consumer was unregistered. Returns the name of its fold.
fn tell_removed(name: &str, wanted: &[Partition], removed: Removed, is_cut: bool) -> Result<Option<String>> {
    removed.ensure_any(name, wanted)?;
    let of = if is_cut { format!(" in {}", in_words(&removed.partitions)) } else { String::new() };
    println!("consumer {name} is unregistered{of}");
    Ok(removed.fold)
}

/// `at offset 7`, or `in partitions 0,3 at offsets 7,9`.
fn places(is_cut: bool, places: &[(Partition, i64)]) -> String {
    let (partitions, offsets): (Vec<Partition>, Vec<i64>) = places.iter().copied().unzip();
    let offsets: Vec<String> = offsets.iter().map(i64::to_string).collect();
    match offsets.as_slice() {
        [offset] if !is_cut => format!("at offset {offset}"),
        [offset] => format!("in {} at offset {offset}", in_words(&partitions)),
        offsets => format!("in {} at offsets {}", in_words(&partitions), offsets.join(",")),
    }
}
