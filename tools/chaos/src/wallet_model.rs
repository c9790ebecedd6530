//! The wallets' documents in Redis. A connection with MONITOR sees every write, in order: a document never replaces a newer one
//! of the same epoch (W6). Postgres has the event of every document that readers believe. At rest, each document is the state in
//! Postgres, and every api shows it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use common::shutdown::{CancellationToken, sleep_or_stop};
use deadpool_postgres::ClientWrapper as Client;
use futures_util::StreamExt;
use serde_json::Value;

use crate::history::History;
use crate::ledger::minor;
use crate::wallets;
use crate::world::World;

/// The key of the mark: the epoch of the documents, and the offset up to which they are certain.
pub(crate) const MARK: &str = "rocket-rides-log:wallets";

/// The key of a document begins with this.
pub(crate) const PREFIX: &str = "wallet.";

/// The most transactions of a document.
const TRANSACTION_COUNT_MAX: i64 = 20;

/// Keys that Redis looks at per request.
const SCAN_LEN: usize = 1000;

/// The pause before a new connection when Redis was away.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Watches all writes of documents until `stop`.
pub(crate) async fn watch(world: Arc<World>, stop: CancellationToken) {
    while sleep_or_stop(CONNECT_PAUSE, &stop).await {
        // An error means that Redis is away. Meanwhile it may lose documents, so the next connection expects none.
        tokio::select! {
            _ = watch_once(&world) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn watch_once(world: &World) -> Result<()> {
    let url = world.redis.lock().await.url().to_owned();
    let monitor = stream::redis::client(&url)?.get_async_monitor().await.context("watching Redis")?;
    let mut lines = monitor.into_on_message::<String>();
    let mut documents = Documents::default();
    while let Some(line) = lines.next().await {
        documents.take(&line, &world.history);
    }
    Ok(())
}

/// The documents as the writes left them: by key, their epoch and version.
#[derive(Default)]
struct Documents(HashMap<String, (String, i64)>);

impl Documents {
    /// Takes a line of MONITOR, such as `1339518083.1 [0 lua] "SET" "wallet.28…" "{\"epoch\":\"x\",\"version_id\":7,…"`.
    fn take(&mut self, line: &str, history: &History) {
        let Some(command) = line.split_once("] ").map(|(_, command)| command) else { return };
        let words = command.trim_matches('"').split("\" \"").collect::<Vec<_>>();
        match (words[0].to_ascii_lowercase().as_str(), &words[1..]) {
            ("set", [key, document, ..]) if key.starts_with(PREFIX) => {
                let document: Value = serde_json::from_str(&document.replace("\\\"", "\"")).unwrap_or_default();
                let Some((epoch, version)) = document["epoch"].as_str().zip(document["version_id"].as_i64()) else {
                    return history.violation(&format!("W6: {key} is set to something else than a document: {line}"));
                };
                let known = self.0.insert((*key).to_owned(), (epoch.to_owned(), version));
                if let Some((known_epoch, known_version)) = known
                    && known_epoch == epoch
                    && known_version > version
                {
                    history.violation(&format!(
                        "W6: version {version} of {key} replaces version {known_version} of the same epoch {epoch}"
                    ));
                }
            }
            ("del" | "unlink", keys) => keys.iter().for_each(|key| {
                self.0.remove(*key);
            }),
            ("flushall" | "flushdb", _) => self.0.clear(),
            _ => {}
        }
    }
}

/// The documents that readers believe, by key: those of the mark's epoch.
async fn believed(world: &World) -> Result<HashMap<String, Value>> {
    let (mut redis, mut cursor, mut keys) = (world.redis_connection().await?, 0_u64, Vec::<String>::new());
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{PREFIX}*")).arg("COUNT").arg(SCAN_LEN);
        let (next, found): (u64, Vec<String>) = scan.query_async(&mut redis).await.context("looking for documents")?;
        keys.extend(found);
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    // One command reads the mark and all documents, as readers do.
    let texts = redis::cmd("MGET").arg(MARK).arg(&keys).query_async::<Vec<Option<String>>>(&mut redis).await;
    let texts = texts.context("reading documents")?;
    let mut values =
        texts.iter().map(|text| serde_json::from_str(text.as_deref().unwrap_or_default()).unwrap_or_default());
    let mark: Value = values.next().unwrap_or_default();
    let is_believed = |document: &Value| mark["epoch"].is_string() && document["epoch"] == mark["epoch"];
    Ok(keys.into_iter().zip(values).filter(|(_, document)| is_believed(document)).collect())
}

/// Postgres must have the event of each document that readers believe (W6). An api writes a document after the commit of its
/// event, so this is true at any time, if Redis is read first.
pub(crate) async fn check_events(world: &World, client: &Client) -> Result<()> {
    // While a fault changes Redis, the checker does not wait for it.
    if world.redis.try_lock().is_err() {
        return Ok(());
    }
    // An error means that Redis is away.
    let Ok(believed) = believed(world).await else { return Ok(()) };
    let event_ids: Vec<&str> = believed.values().filter_map(|document| document["event_id"].as_str()).collect();
    let rows = client
        .query(
            "-- chaos::wallet_model::check_events
             SELECT event_id::text, wallet_id::text, version FROM wallet_events
             WHERE event_id = ANY($1::text[]) AND accepted",
            &[&event_ids],
        )
        .await
        .context("looking for the events of documents")?;
    let stored: HashMap<&str, (String, i64)> =
        rows.iter().map(|row| (row.get(0), (format!("{PREFIX}{}", row.get::<_, &str>(1)), row.get(2)))).collect();
    for (key, document) in &believed {
        let event = document["event_id"].as_str().and_then(|event_id| stored.get(event_id));
        if event.is_none_or(|(of, version)| of != key || document["version_id"] != *version) {
            world
                .history
                .violation(&format!("W6: readers believe {key}, and its event in Postgres is {event:?}: {document}"));
        }
    }
    Ok(())
}

/// Compares the documents that readers believe, and the responses of the apis, with Postgres. Returns a text with each
/// difference; without a difference it is empty. Call it only while no request is in flight, because documents follow Postgres with a
/// delay.
pub(crate) async fn stale(world: &World, client: &Client) -> Result<String> {
    let rows = client
        .query(
            "-- chaos::wallet_model::stale
             SELECT w.id::text, w.version, w.balance_minor, newest.events
             FROM wallets AS w CROSS JOIN LATERAL (
                 SELECT COALESCE(array_agg(concat_ws(' ', t.version, t.event_id, t.amount_minor, t.counterparty)), '{}') AS events
                 FROM (SELECT * FROM wallet_events AS e WHERE e.wallet_id = w.id AND e.accepted
                       ORDER BY e.version DESC LIMIT $1) AS t) AS newest
             WHERE w.version > 0",
            &[&TRANSACTION_COUNT_MAX],
        )
        .await
        .context("reading the wallets")?;
    let (mut believed, mut texts) = (believed(world).await?, Vec::new());
    for row in rows {
        let (wallet, version, balance_minor): (&str, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let key = format!("{PREFIX}{wallet}");
        let document = believed.remove(&key).unwrap_or_default();
        let found = document["version_id"].as_i64().zip(minor(&document["data"]["balance"]));
        let transactions = document["data"]["transactions"].as_array().into_iter().flatten().map(line_of);
        if found != Some((version, balance_minor)) {
            texts.push(format!("{key} is {found:?} instead of version {version}, balance {balance_minor}"));
        } else if transactions.collect::<Option<Vec<_>>>() != Some(row.get(3)) {
            texts.push(format!("{key} has other transactions than Postgres"));
        } else {
            texts.extend(wallets::misread(world, wallet, (version, balance_minor)).await);
        }
    }
    texts.extend(believed.keys().map(|key| format!("readers believe {key}, and Postgres has no such wallet")));
    Ok(texts.join(", "))
}

/// A transaction of a document, as the statement in [`stale`] writes an event.
fn line_of(transaction: &Value) -> Option<String> {
    Some(format!(
        "{} {} {} {}",
        transaction["version"].as_i64()?,
        transaction["event_id"].as_str()?,
        minor(&transaction["amount"])?,
        transaction["source_entity_id"].as_str()?
    ))
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressBar;

    use super::*;

    /// The violations after these commands.
    fn violations(commands: &[&str]) -> Vec<String> {
        let path = std::env::temp_dir().join(format!("chaos-history-{}", rand::random::<u64>()));
        let history = History::create(&path, ProgressBar::hidden()).unwrap();
        let mut documents = Documents::default();
        for command in commands {
            documents.take(&format!("1339518083.107412 [0 lua] {command}"), &history);
        }
        std::fs::remove_file(path).unwrap();
        history.verdict().0
    }

    fn set(epoch: &str, version: i64) -> String {
        format!(r#""SET" "wallet.a" "{{\"epoch\":\"{epoch}\",\"version_id\":{version},\"event_id\":\"b\"}}""#)
    }

    #[test]
    fn an_older_version_replaces_a_newer_one_of_another_epoch_only() {
        let (old, new) = (set("x", 6), set("x", 7));
        assert_eq!(violations(&[&new, &old]).len(), 1);
        assert_eq!(violations(&[&old, &new, &new, &set("y", 3)]), Vec::<String>::new());
    }

    #[test]
    fn any_version_follows_an_absence() {
        let (old, new) = (set("x", 6), set("x", 7));
        for absence in [r#""DEL" "wallet.b" "wallet.a""#, r#""unlink" "wallet.a""#, r#""FLUSHALL""#] {
            assert_eq!(violations(&[&new, absence, &old]), Vec::<String>::new(), "{absence}");
        }
        assert_eq!(violations(&[&new, r#""DEL" "wallet.b""#, &old]).len(), 1);
    }

    #[test]
    fn a_value_that_is_no_document_is_seen() {
        assert_eq!(violations(&[r#""set" "wallet.a" "7""#]).len(), 1);
        assert_eq!(violations(&[r#""set" "other" "7""#]), Vec::<String>::new());
    }
}
