//! The wallets' read model in Redis: documents under `wallet.<ksuid>`, and a mark that says how far they are certain.
//!
//! The api writes the document of a wallet behind each command. That write may be lost, or come late. This fold makes the model
//! certain (W6): it brings the wallets of each page of records up to date before the checkpoint moves; it checks the mark; and
//! its scrubber compares every wallet with Postgres, for ever. If Redis or Postgres was put back to an older state, the fold
//! begins a new epoch: readers then ignore every document that was written before, and the scrubber builds the model anew.

mod compare;
mod metrics;
mod projector;
mod scrubber;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use connect::PostgresArgs;
use deadpool_postgres::ClientWrapper as Client;
use monitor::Health;
use pglog::Record;
use serde::Deserialize;
use stream::StreamArgs;
use wallet::documents::DOCS;
use wallet::model::{Model, mark_key};
use wallet::{EventId, WalletId, WalletsArgs};

use crate::fold::{FoldId, LogPlace, ModelFold, PageEnd, Rejection, Statement, read_object};
use projector::Projector;

/// How long Redis may take for a request. Some hundred documents take it a few milliseconds.
const REPLY_WAIT: Duration = Duration::from_secs(5);

/// The wallets of a page of records, and the model that is to be brought up to date.
#[derive(Default)]
pub struct WalletsFold {
    changed: Changed,
    /// `None` in a program that knows the fold and does not run it, such as `dead-letters`.
    projector: Option<Projector>,
}

/// The newest event of each wallet that a page of records changes.
type Changed = BTreeMap<WalletId, Newest>;

/// An accepted event of a wallet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    version: i64,
    event_id: EventId,
}

/// The fields that the payload of a record must have.
#[derive(Deserialize)]
struct Payload<'a> {
    wallet_id: &'a str,
    version: i64,
    event_id: &'a str,
}

impl WalletsFold {
    /// The fold with its model, for a consumer that runs.
    ///
    /// # Errors
    /// There is no server for the model.
    pub fn with_model(
        args: &WalletsArgs,
        postgres: &PostgresArgs,
        stream: &StreamArgs,
        health: &Health,
    ) -> Result<Self> {
        let model = open(args, stream)?;
        if health.is_served() {
            metrics::declare();
        }
        Ok(Self { changed: Changed::new(), projector: Some(Projector::new(model, postgres)) })
    }

    /// Deletes the mark. Readers then believe no document: none is made certain any more. If a consumer of this fold is left, it
    /// begins a new epoch.
    ///
    /// # Errors
    /// Redis is away.
    pub(crate) async fn end_model(args: &WalletsArgs, stream: &StreamArgs) -> Result<()> {
        let model = open(args, stream)?;
        let ended = async {
            if let Some(mark) = model.mark().await? {
                model.end(mark.epoch).await?;
            }
            anyhow::Ok(())
        };
        ended.await.with_context(|| {
            format!(
                "readers still believe the documents of wallets in Redis, which no consumer keeps up any more: delete the key {} \
                 there",
                mark_key(&stream.stream_name)
            )
        })
    }

    fn projector(&mut self) -> Result<&mut Projector> {
        self.projector.as_mut().context("this program does not run the fold wallets: use the program consumer")
    }
}

/// The model, on the server that the settings name.
///
/// # Errors
/// There is none for it.
fn open(args: &WalletsArgs, stream: &StreamArgs) -> Result<Model> {
    let redis = args.server(&stream.redis_url)?;
    Ok(Model::start(redis.clone(), &stream.stream_name, REPLY_WAIT))
}

impl ModelFold for WalletsFold {
    const ID: FoldId = FoldId { name: "wallets", version: 1 };

    fn takes(&self, object: &str, action: &str) -> bool {
        // A rejected attempt changes no document.
        object == "wallet" && matches!(action, "credit" | "debit" | "transfer")
    }

    fn trial(&self) -> Statement {
        Statement::new(DOCS).with(Vec::<String>::new())
    }

    fn doubt(&mut self) {
        if let Some(projector) = &mut self.projector {
            projector.doubt();
        }
    }

    fn begin_page(&mut self) {
        self.changed.clear();
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        let payload: Payload<'_> = read_object(record, "an event of a wallet")?;
        let reject = |error: wallet::NotAKsuid| Rejection(format!("data is not an event of a wallet: {error}"));
        let wallet = payload.wallet_id.parse().map_err(reject)?;
        let newest = Newest { version: payload.version, event_id: payload.event_id.parse().map_err(reject)? };
        let entry = self.changed.entry(wallet).or_insert(newest);
        if entry.version < newest.version {
            *entry = newest;
        }
        Ok(())
    }

    async fn settle(&mut self, client: &Client, page: PageEnd) -> Result<()> {
        let changed = std::mem::take(&mut self.changed);
        self.projector()?.settle(client, &changed, page).await
    }

    async fn tend(&mut self, client: &Client, places: &[LogPlace]) -> Result<Duration> {
        self.projector()?.tend(client, places).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_event_of_each_wallet_is_collected() {
        let (one, two) = (WalletId::new(), WalletId::new());
        let events = [EventId::new(), EventId::new(), EventId::new()];
        let mut fold = WalletsFold::default();
        for (wallet, version, event_id) in [(one, 1, events[0]), (two, 7, events[1]), (one, 2, events[2])] {
            let data = format!(
                r#"{{"wallet_id":"{wallet}","version":{version},"event_id":"{event_id}","amount_minor":5,"more":1e400}}"#
            );
            fold.apply(&record(&data)).unwrap();
        }
        assert_eq!(fold.changed[&one], Newest { version: 2, event_id: events[2] });
        assert_eq!(fold.changed[&two], Newest { version: 7, event_id: events[1] });
        fold.begin_page();
        assert!(fold.changed.is_empty());
        assert!(fold.takes("wallet", "transfer") && !fold.takes("wallet", "reject") && !fold.takes("ride", "credit"));
    }

    #[test]
    fn other_payloads_are_rejected() {
        let mut fold = WalletsFold::default();
        for bad in [
            r#"{"id":7,"amount":5}"#,
            "[]",
            r#"{"wallet_id":"x","version":1,"event_id":"28skwt5B8zTrs6AqBWrSgCHLcRL"}"#,
            r#"{"wallet_id":"28skwt5B8zTrs6AqBWrSgCHLcRL","version":1e3,"event_id":"28skwt5B8zTrs6AqBWrSgCHLcRL"}"#,
            r#"{"wallet_id":"28skwt5B8zTrs6AqBWrSgCHLcRL","version":1,"event_id":"world"}"#,
        ] {
            let reason = fold.apply(&record(bad)).unwrap_err().0;
            assert!(reason.starts_with("data is not an event of a wallet: "), "{bad}: {reason}");
        }
        assert!(fold.changed.is_empty());
    }

    fn record(data: &str) -> Record<'_> {
        let partition = pglog::Partition::FIRST;
        Record {
            partition,
            offset: 1,
            token: 1,
            object: "wallet",
            action: "credit",
            data,
            staged_at_us: 0,
            traceparent: None,
        }
    }
}
