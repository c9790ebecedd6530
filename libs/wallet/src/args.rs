//! The settings of the read model.

use std::fmt::{self, Debug, Formatter};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use stream::Servers;
use stream::args::{parse_redis_url, parse_stream_name};
use tracing::info;

use crate::model::Model;

/// The advice where the read model would be on a Redis Cluster.
pub(crate) const WANTS_OWN_SERVER: &str =
    "the wallets' read model wants a server of its own: set WALLETS_REDIS_URL to one Redis server";

/// Where the read model is.
#[derive(Clone, Default, Args)]
pub struct WalletsArgs {
    /// The Redis server of the wallets' read model. Default: REDIS_URL. It wants a server of its own, not a Redis Cluster
    #[arg(long, env = "WALLETS_REDIS_URL", hide_env_values = true, value_parser = parse_redis_url)]
    pub wallets_redis_url: Option<redis::Client>,
}

impl WalletsArgs {
    /// The server of the read model, for a process that needs one.
    ///
    /// # Errors
    /// There is none: `stream` is a Redis Cluster.
    pub fn server<'a>(&'a self, stream: &'a Servers) -> Result<&'a redis::Client> {
        match &self.wallets_redis_url {
            Some(own) => Ok(own),
            None if stream.is_cluster() => bail!("REDIS_URL is a Redis Cluster, and {WANTS_OWN_SERVER}"),
            None => Ok(stream.first()),
        }
    }
}

impl Debug for WalletsArgs {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write_address(out, self.wallets_redis_url.as_ref(), "as REDIS_URL")
    }
}

/// Writes where a server is, without the password.
fn write_address(out: &mut Formatter<'_>, client: Option<&redis::Client>, otherwise: &str) -> fmt::Result {
    match client {
        Some(client) => write!(out, "{}", client.get_connection_info().addr()),
        None => out.write_str(otherwise),
    }
}

/// The same for a process that has no use for the stream. Without a server there is no read model.
#[derive(Clone, Args)]
pub struct ModelArgs {
    /// The server of the read model, if it is another than that of the stream.
    #[command(flatten)]
    pub wallets: WalletsArgs,

    /// The Redis server, for example redis://localhost:6379 or redis+unix:///run/redis.sock; rediss:// encrypts. Without it,
    /// wallets are read from Postgres alone; also if it is a Redis Cluster
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<Servers>,

    /// Name of the stream's key, which the key of the read model's mark begins with.
    #[arg(long, env = "STREAM_NAME", default_value = "rocket-rides-log", value_parser = parse_stream_name)]
    stream_name: String,
}

impl ModelArgs {
    /// Starts the read model, if there is a server for it. A request to it waits up to `wait`.
    pub fn start(&self, wait: Duration) -> Option<Model> {
        if self.wallets.wallets_redis_url.is_none() && self.redis_url.as_ref().is_some_and(Servers::is_cluster) {
            info!("REDIS_URL is a Redis Cluster: wallets are read from Postgres alone ({WANTS_OWN_SERVER})");
        }
        Some(Model::start(self.client()?.clone(), &self.stream_name, wait))
    }

    fn client(&self) -> Option<&redis::Client> {
        // The keys of the model are in several slots, and it must not be a part of the cluster by chance.
        let server = self.redis_url.as_ref().filter(|servers| !servers.is_cluster()).map(Servers::first);
        self.wallets.wallets_redis_url.as_ref().or(server)
    }
}

impl Debug for ModelArgs {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write_address(out, self.client(), "nowhere")
    }
}
