//! The two commands that change a registration and exit: `--copy-from` and `--unregister`.

use anyhow::Result;

use crate::bootstrap::copy;
use crate::checkpoint::unregister;
use crate::config::Config;
use crate::fold::Fold;

/// Carries out the command, and prints the result.
///
/// # Errors
/// As [`copy`] or [`unregister`].
pub(crate) async fn administer<F: Fold>(config: &Config, fold: &F) -> Result<()> {
    let name = &config.name;
    let mut client = connect::postgres::connect(&config.postgres.database_url, "consumer", || {}).await?;
    if let Some(source) = &config.copy_from {
        let last_offset = copy(&mut client, fold, source, name, config.stream.partition).await?;
        println!("consumer {name} starts with the state of {source} at offset {last_offset}");
    } else {
        unregister(&client, name, config.stream.partition).await?;
        println!("consumer {name} is unregistered");
    }
    Ok(())
}
