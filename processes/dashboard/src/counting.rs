//! Counts that read whole tables. Each is made on a connection of its own, and again when the page wants a newer one.

use std::time::Duration;

use anyhow::{Context, Result};
use common::paced::{Paced, Source};
use deadpool_postgres::ClientWrapper as Client;
use tokio::time::timeout;
use tracing::debug;

use crate::database;

/// How long one count may take. Postgres ends its statements after 30 s, so this limit matters only on a lost connection.
const COUNT_WAIT: Duration = Duration::from_secs(40);

/// How something is counted.
pub(crate) trait Count: Send + Sync + 'static {
    /// The result.
    type Counted: Clone + Send + Sync + 'static;

    /// The things that are counted, for the log: `the rides`.
    const THINGS: &'static str;

    /// Counts once.
    ///
    /// # Errors
    /// Postgres is away, or refuses.
    fn count(&self, client: &mut Client) -> impl Future<Output = Result<Self::Counted>> + Send;
}

/// The latest count, and a way to ask for the next one.
#[derive(Clone)]
pub(crate) struct Counts<T> {
    paced: Paced<T, ()>,
    /// The latest that has succeeded.
    last: Option<T>,
}

impl<T: Clone + Send + Sync + 'static> Counts<T> {
    /// Starts counting, on a connection of its own.
    pub fn start(config: &tokio_postgres::Config, count: impl Count<Counted = T>) -> Self {
        Self { paced: Paced::start(Counting { config: config.clone(), count, client: None }), last: None }
    }

    /// A new count if it is there soon, else the latest one.
    pub async fn fresh(&mut self) -> Option<T> {
        if let Some(counted) = self.paced.latest().await.and_then(|figure| figure.result.ok()) {
            self.last = Some(counted);
        }
        self.last.clone()
    }
}

struct Counting<C> {
    config: tokio_postgres::Config,
    count: C,
    /// `None` after an error, because the connection may be the cause.
    client: Option<Client>,
}

impl<C: Count> Source for Counting<C> {
    type Value = C::Counted;
    type Error = ();

    async fn work_out(&mut self) -> Result<C::Counted, ()> {
        let counting = async {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => database::connect(&self.config).await?,
            };
            let counted = self.count.count(&mut client).await?;
            self.client = Some(client);
            anyhow::Ok(counted)
        };
        // An error is not shown: each count has a reader beside it that asks the same server, and the page says what that
        // reader cannot read.
        let counted = timeout(COUNT_WAIT, counting).await;
        let counted = counted.with_context(|| format!("counting {} took too long", C::THINGS)).flatten();
        counted.map_err(|error| debug!(error = format!("{error:#}"), "{} cannot be counted", C::THINGS))
    }
}
