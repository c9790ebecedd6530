//! Reads the wallets for each sample: the newest events, the wallets that pages look at, and the read model in Redis.
//!
//! It has connections of its own, to Postgres and to the Redis of the model. If a table is missing or a server does not answer,
//! the wallets' panel says so, and the rest of the page goes on.

mod events;
mod model;
mod money;
mod rates;
mod watchers;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tracing::debug;
use wallet::WalletId;
use wallet::model::Model as ReadModel;

use self::model::InRedis;
use self::money::AllMoney;
pub(crate) use self::rates::Rates;
pub(crate) use self::watchers::Watchers;
use crate::counting::{Counts, took_too_long};
use crate::database;
use crate::sample::{Agreement, InPostgres, Money, Wallet, WalletEvent, Wallets, now_ms};

/// How long Redis may take. Postgres is read after it, and a sample should not wait for both.
pub(crate) const REDIS_WAIT: Duration = Duration::from_millis(500);

/// How long Postgres may take.
const POSTGRES_WAIT: Duration = Duration::from_millis(1000);

const AWAY: &str = "Postgres does not answer.";
const NO_TABLES: &str = "This database has no tables of wallets: apply schema.sql.";
const NO_RIGHT: &str = "This page may not read the tables of wallets: apply ops/roles.sql.";
const TOO_LONG: &str = "Postgres needs more than a minute for it: use the program audit.";

/// The servers that know the wallets.
pub(crate) struct Reader {
    postgres: tokio_postgres::Config,
    model: ReadModel,
    watchers: Watchers,
    moneys: Counts<Money>,
    client: Option<Client>,
    /// The last known newest events, and when they were read.
    known: (Option<u64>, Vec<WalletEvent>),
}

impl Reader {
    /// Connects with the first reading.
    pub fn new(postgres: &tokio_postgres::Config, model: ReadModel, watchers: Watchers) -> Self {
        Self {
            postgres: postgres.clone(),
            model,
            watchers,
            moneys: Counts::start(postgres, AllMoney),
            client: None,
            known: (None, vec![]),
        }
    }

    /// The wallets as they are now. If a server cannot be read, the result says so.
    pub async fn read(&mut self) -> Wallets {
        let ids = self.watchers.ids();
        let mut moneys = self.moneys.clone();
        let ((in_redis, in_postgres), money) = tokio::join!(
            async {
                // In this order: a document that is newer than Postgres is then an error, and no matter of time.
                let in_redis = InRedis::read(&self.model, &ids).await;
                let in_postgres = timeout(POSTGRES_WAIT, self.read_postgres(&ids)).await;
                (in_redis, in_postgres.context("postgres does not answer").flatten())
            },
            moneys.fresh()
        );
        let money_problem = moneys.problem().map(problem);
        self.moneys = moneys;
        let in_postgres =
            in_postgres.inspect_err(|error| debug!(error = format!("{error:#}"), "the wallets cannot be read"));
        let problem = in_postgres.as_ref().err().map(problem);
        let (newest, states) = in_postgres.map_or((None, None), |(newest, states)| (Some(newest), Some(states)));
        if let Some(newest) = newest {
            self.known = (Some(now_ms()), newest);
        }
        let (at_ms, newest) = self.known.clone();
        let watched = watched(&ids, in_redis.as_ref().ok(), states);
        let model = in_redis.map(|in_redis| in_redis.model()).unwrap_or_default();
        Wallets { problem, at_ms, newest, money, money_problem, model, watched, ..Wallets::default() }
    }

    async fn read_postgres(&mut self, ids: &[WalletId]) -> Result<(Vec<WalletEvent>, BTreeMap<WalletId, InPostgres>)> {
        let client = match self.client.take() {
            Some(client) => client,
            None => database::connect(&self.postgres).await?,
        };
        let newest = events::newest(&client).await?;
        let states = events::of(&client, ids).await?;
        self.client = Some(client);
        Ok((newest, states))
    }
}

/// Why the wallets cannot be read.
fn problem(error: &anyhow::Error) -> &'static str {
    if took_too_long(error) {
        return TOO_LONG;
    }
    let error = error.downcast_ref::<tokio_postgres::Error>();
    match error.and_then(tokio_postgres::Error::code) {
        Some(&SqlState::UNDEFINED_TABLE) => NO_TABLES,
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => NO_RIGHT,
        _ => AWAY,
    }
}

/// Each wallet that a page looks at, compared. `None`: the server does not answer.
fn watched(
    ids: &[WalletId],
    in_redis: Option<&InRedis>,
    mut states: Option<BTreeMap<WalletId, InPostgres>>,
) -> BTreeMap<WalletId, Wallet> {
    let wallet = |(index, id): (usize, &WalletId)| {
        let postgres = states.as_mut().and_then(|states| states.remove(id));
        let agreement = match (in_redis, &postgres) {
            (Some(in_redis), Some(postgres)) => in_redis.compare(index, postgres),
            _ => Agreement::Unknown,
        };
        let redis_version = in_redis.and_then(|in_redis| in_redis.version(index));
        (*id, Wallet { postgres, agreement, redis_version })
    };
    ids.iter().enumerate().map(wallet).collect()
}
