//! The wallets in Postgres, compared with all that clients saw and with the log (W1 to W4). Money is neither made nor lost.

use std::collections::HashMap;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;

use crate::history::History;
use crate::ledger::{Answer, Fate, Ledger, Place, Seen, Sent};
use crate::wallet_records::{Event, WalletRecords};

/// Events per query.
const PAGE_LEN_MAX: i64 = 5000;

/// W4 and the link between both events of a transfer, in one snapshot. It is cheap enough for every look at the rides.
pub(crate) async fn check_sums(client: &Client, history: &History) -> Result<()> {
    let row = client
        .query_one(
            "-- chaos::wallet_checks::check_sums
             SELECT (SELECT COALESCE(sum(balance_minor), 0)::bigint FROM wallets),
                    COALESCE(sum(amount_minor) FILTER (WHERE counterparty = 'world'), 0)::bigint,
                    COALESCE(sum(amount_minor) FILTER (WHERE counterparty <> 'world'), 0)::bigint
             FROM wallet_events WHERE accepted",
            &[],
        )
        .await
        .context("summing up wallets")?;
    let (balances, from_world, between): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if balances != from_world || between != 0 {
        history.violation(&format!(
            "W4: the balances sum to {balances}, credits less debits to {from_world}, transfers to {between}"
        ));
    }
    Ok(())
}

/// The events that one command has.
#[derive(Default)]
struct Written {
    own: Vec<(String, Event)>,
    received: Vec<Event>,
}

/// Compares everything, when nothing changes any more.
pub(crate) async fn check(client: &Client, ledger: &Ledger, records: &WalletRecords, history: &History) -> Result<()> {
    check_sums(client, history).await?;
    let Seen { sent, balances, events, .. } = ledger.seen();
    let mut written: HashMap<u128, Written> = HashMap::new();
    let mut states: HashMap<Place, (String, Event)> = HashMap::new();
    let (mut last_id, mut event_count) = (String::new(), 0);
    loop {
        let page = events_after(client, &last_id).await?;
        let Some((id, ..)) = page.last() else { break };
        last_id.clone_from(id);
        event_count += page.len();
        for (id, key, trace_id, event) in page {
            if records.events.get(&id) != Some(&event) {
                let record = records.events.get(&id);
                history.violation(&format!("I1: event {id} is {event:?}, and its record {record:?}"));
            }
            let Some(command) = trace_id.and_then(|trace_id| sent.get(&trace_id)).map(|sent| &sent.command) else {
                history.violation(&format!("W1: event {id} is of no client's command: {event:?}"));
                continue;
            };
            if event.reason.is_none() {
                states.insert((event.wallet.clone(), event.version), (id.clone(), event.clone()));
            }
            let written = written.entry(trace_id.unwrap_or_default()).or_default();
            if event.wallet != command.wallet {
                written.received.push(event);
            } else if key == command.key {
                written.own.push((id, event));
            } else {
                history.violation(&format!("W1: event {id} has the key {key:?}, and the command was {command:?}"));
            }
        }
    }
    if event_count != records.events.len() {
        history.violation(&format!("I1: there are {event_count} events, and {} records", records.events.len()));
    }
    for (trace_id, sent) in &sent {
        if let Err(fault) = check_command(sent, &written.remove(trace_id).unwrap_or_default()) {
            history.violation(&format!("W1: {sent:?} {fault}"));
        }
    }
    check_money(client, &sent, &states, history).await?;
    for (place, balance_minor) in balances {
        let stored = states.get(&place).map_or(0, |(_, event)| event.balance_minor);
        if stored != balance_minor || place.1 > 0 && !states.contains_key(&place) {
            history.violation(&format!("W2: a client saw balance {balance_minor} at {place:?}, and it is {stored}"));
        }
    }
    for (place, (id, amount_minor)) in events {
        let is_stored = states.get(&place).is_some_and(|(stored_id, event)| {
            *stored_id == id && amount_minor.is_none_or(|amount_minor| amount_minor == event.amount_minor)
        });
        if !is_stored {
            history.violation(&format!(
                "W1: a client saw event {id} of {amount_minor:?} at {place:?}, and it is not there"
            ));
        }
    }
    Ok(())
}

type StoredEvent = (String, Option<String>, Option<u128>, Event);

/// A page of events by their ids: id, key, trace id, and the rest.
async fn events_after(client: &Client, last_id: &str) -> Result<Vec<StoredEvent>> {
    let rows = client
        .query(
            "-- chaos::wallet_checks::events_after
             SELECT event_id::text, idempotency_key, traceparent::text, wallet_id::text, version, amount_minor, balance_minor,
                    counterparty, action, reason
             FROM wallet_events WHERE event_id > $1::text ORDER BY event_id LIMIT $2",
            &[&last_id, &PAGE_LEN_MAX],
        )
        .await
        .context("reading the wallets' events")?;
    let event = |row: &tokio_postgres::Row| Event {
        wallet: row.get(3),
        version: row.get(4),
        amount_minor: row.get(5),
        balance_minor: row.get(6),
        counterparty: row.get(7),
        action: row.get(8),
        reason: row.get(9),
    };
    let trace_id = |text: Option<&str>| u128::from_str_radix(text?.get(3..35)?, 16).ok();
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), trace_id(row.get(2)), event(row))).collect())
}

/// A command has the event that its response tells. Without a response it has at most one.
fn check_command(sent: &Sent, written: &Written) -> Result<(), String> {
    let (command, told) = (&sent.command, format!("has {:?} and {:?}", written.own, written.received));
    let (id, event) = match (&sent.fate, written.own.as_slice()) {
        (Fate::Open | Fate::Refused, []) if written.received.is_empty() => return Ok(()),
        (Fate::Open | Fate::Decided(_), [(id, event)]) => (id, event),
        _ => return Err(told),
    };
    let (amount_minor, counterparty) = match (&command.to, command.endpoint) {
        (Some(to), _) => (-command.amount_minor, to.as_str()),
        (None, "credit") => (command.amount_minor, "world"),
        (None, _) => (-command.amount_minor, "world"),
    };
    let is_asked = (event.amount_minor, event.counterparty.as_str(), event.action.as_str())
        == (amount_minor, counterparty, command.endpoint);
    let is_received = match (&command.to, &event.reason, written.received.as_slice()) {
        (Some(to), None, [received]) => {
            (&received.wallet, &received.counterparty, received.amount_minor)
                == (to, &command.wallet, command.amount_minor)
        }
        (Some(_), Some(_), []) | (None, _, []) => true,
        _ => false,
    };
    let is_told = match &sent.fate {
        Fate::Decided(Answer { rejection: Some(rejection), event_id, .. }) => {
            Some(rejection) == event.reason.as_ref() && event_id.as_ref().is_none_or(|told| told == id)
        }
        Fate::Decided(answer) => {
            let told = (answer.event_id.as_ref(), answer.version, answer.balance_minor);
            event.reason.is_none() && told == (Some(id), Some(event.version), Some(event.balance_minor))
        }
        Fate::Open | Fate::Refused => true,
    };
    if is_asked && is_received && is_told { Ok(()) } else { Err(told) }
}

/// The sum of all balances is that of the credits less the debits that clients know of, and of those of unknown fate that are
/// there.
async fn check_money(
    client: &Client,
    sent: &HashMap<u128, Sent>,
    states: &HashMap<Place, (String, Event)>,
    history: &History,
) -> Result<()> {
    let query = "-- chaos::wallet_checks::check_money
                 SELECT COALESCE(sum(balance_minor), 0)::bigint FROM wallets";
    let balances: i64 = client.query_one(query, &[]).await.context("summing up balances")?.get(0);
    let signed = |sent: &Sent| match sent.command.endpoint {
        "credit" => sent.command.amount_minor,
        "debit" => -sent.command.amount_minor,
        _ => 0,
    };
    let known: i64 = sent
        .values()
        .filter(|sent| matches!(&sent.fate, Fate::Decided(answer) if answer.rejection.is_none()))
        .map(signed)
        .sum();
    let (mut least, mut most) = (known, known);
    for sent in sent.values().filter(|sent| matches!(sent.fate, Fate::Open)) {
        let amount_minor = signed(sent);
        if amount_minor < 0 { least += amount_minor } else { most += amount_minor }
    }
    if !(least..=most).contains(&balances) {
        let count = states.len();
        history.violation(&format!(
            "money: {count} states sum to {balances}, and clients know of {known}, within {least} and {most}"
        ));
    }
    Ok(())
}
