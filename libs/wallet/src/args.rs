//! The setting of every process that uses the read model.

use clap::Args;
use stream::args::parse_redis_url;

/// Where the read model is.
#[derive(Clone, Default, Args)]
pub struct WalletsArgs {
    /// The Redis server of the wallets' read model. Default: REDIS_URL. It wants a server of its own, not a Redis Cluster
    #[arg(long, env = "WALLETS_REDIS_URL", hide_env_values = true, value_parser = parse_redis_url)]
    pub wallets_redis_url: Option<redis::Client>,
}

impl std::fmt::Debug for WalletsArgs {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.wallets_redis_url.as_ref().map(|client| client.get_connection_info().addr().to_string());
        write!(out, "{}", address.as_deref().unwrap_or("REDIS_URL"))
    }
}
