//! The commands that change a registration and exit: `--register`, `--copy-from` and `--unregister`.

use anyhow::{Context, Result};

use crate::bootstrap::{copy, register_anew};
use crate::checkpoint::unregister;
use crate::config::Config;
use crate::fold::CheckpointKey;
use crate::registry::Registry;

/// Carries out the command, and prints the result. Returns the name of the fold of a consumer that is unregistered now.
///
/// # Errors
/// As [`register_anew`], [`copy`] or [`unregister`].
pub(crate) async fn administer(config: &Config, registry: &Registry) -> Result<Option<String>> {
    let (name, partition) = (&config.name, config.stream.partition());
    let key = CheckpointKey { name: name.clone(), partition };
    let mut client = connect::postgres::connect(&config.postgres.database_url, "consumer", || {}).await?;
    pglog::prepare_session(&client).await.context("setting up the session")?;
    if config.register {
        let last_offset = register_anew(&mut client, &mut config.fold(registry)?, &key, config.from).await?;
        println!("consumer {name} is registered at offset {last_offset}");
    } else if let Some(source) = &config.copy_from {
        let last_offset = copy(&mut client, registry, config.fold.as_deref(), source, &key).await?;
        println!("consumer {name} starts with the state of {source} at offset {last_offset}");
    } else {
        let fold = unregister(&client, name, partition).await?;
        println!("consumer {name} is unregistered");
        return Ok(fold);
    }
    Ok(None)
}
