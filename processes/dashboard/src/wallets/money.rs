//! Counts the money: the sum of all balances must be the sum of accepted credits minus accepted debits (W4). It reads all wallets
//! and all events, so it is paced as the recount of the rides is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use common::paced::{Paced, Source};
use deadpool_postgres::ClientWrapper as Client;
use pglog::Session;
use tokio::time::timeout;
use tracing::debug;

use crate::database;
use crate::sample::{Money, now_ms};

/// How long one count may take. Postgres ends its statements after 30 s, so this limit matters only on a lost connection.
const COUNT_WAIT: Duration = Duration::from_secs(40);

/// The latest count of the money, and a way to ask for the next one.
#[derive(Clone)]
pub(crate) struct Moneys {
    paced: Paced<Money, ()>,
    /// The latest that has succeeded.
    last: Option<Money>,
}

impl Moneys {
    /// Starts counting, on a connection of its own.
    pub fn start(config: &tokio_postgres::Config) -> Self {
        Self { paced: Paced::start(Counting { config: config.clone(), client: None }), last: None }
    }

    /// A new count if it is there soon, else the latest one.
    pub async fn fresh(&mut self) -> Option<Money> {
        if let Some(money) = self.paced.latest().await.and_then(|figure| figure.result.ok()) {
            self.last = Some(money);
        }
        self.last.clone()
    }
}

struct Counting {
    config: tokio_postgres::Config,
    /// `None` after an error, because the connection may be the cause.
    client: Option<Client>,
}

impl Source for Counting {
    type Value = Money;
    type Error = ();

    async fn work_out(&mut self) -> Result<Money, ()> {
        let counting = async {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => database::connect(&self.config).await?,
            };
            let money = count(&mut client).await?;
            self.client = Some(client);
            anyhow::Ok(money)
        };
        // An error is not shown: the panel reads the same tables, and says why it cannot.
        let counted = timeout(COUNT_WAIT, counting).await.context("counting the money took too long").flatten();
        counted.map_err(|error| debug!(error = format!("{error:#}"), "the money cannot be counted"))
    }
}

async fn count(client: &mut Client) -> Result<Money> {
    let tx = database::snapshot(client).await?;
    let began_at = Instant::now();
    // A sequential scan is best for a whole table. The session turns it off for the log's own queries.
    tx.batch_execute("SET LOCAL enable_seqscan = on").await.context("setting up the session")?;
    let row = Session::query_one(
        &tx,
        "-- dashboard::count_money
         SELECT wallet_count, accepted_count, rejected_count, (balances / 100)::numeric(40, 2)::text AS balances,
                (from_world / 100)::numeric(40, 2)::text AS from_world, balances = from_world AS adds_up
         FROM (SELECT count(*) AS wallet_count, COALESCE(sum(balance_minor), 0) AS balances FROM wallets) AS w,
              (SELECT count(*) FILTER (WHERE accepted) AS accepted_count,
                      count(*) FILTER (WHERE NOT accepted) AS rejected_count,
                      COALESCE(sum(amount_minor) FILTER (WHERE accepted AND action <> 'transfer'), 0) AS from_world
               FROM wallet_events) AS e",
        &[],
    );
    let row = row.await.context("counting the money")?;
    tx.rollback().await?;
    Ok(Money {
        at_ms: now_ms(),
        took_ms: began_at.elapsed().as_secs_f64() * 1e3,
        wallet_count: row.get("wallet_count"),
        accepted_count: row.get("accepted_count"),
        rejected_count: row.get("rejected_count"),
        balances: row.get("balances"),
        from_world: row.get("from_world"),
        adds_up: row.get("adds_up"),
    })
}
