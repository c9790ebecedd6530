//! The two commands that change a registration and exit: `--copy-from` and `--unregister`.

use anyhow::Result;

use crate::bootstrap::copy;
use crate::checkpoint::unregister;
use crate::config::Config;
use crate::fold::CheckpointKey;
use crate::registry::Registry;

/// Carries out the command, and prints the result.
///
/// # Errors
/// As [`copy`] or [`unregister`].
pub(crate) async fn administer(config: &Config, registry: &Registry) -> Result<()> {
    let (name, partition) = (&config.name, config.stream.partition);
    let mut client = connect::postgres::connect(&config.postgres.database_url, "consumer", || {}).await?;
    if let Some(source) = &config.copy_from {
        let key = CheckpointKey { name: name.clone(), partition };
        let last_offset = copy(&mut client, registry, config.fold.as_deref(), source, &key).await?;
        println!("consumer {name} starts with the state of {source} at offset {last_offset}");
    } else {
        unregister(&client, name, partition).await?;
        println!("consumer {name} is unregistered");
    }
    Ok(())
}
