//! The two flights of a group, as SQL.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::pin::pin;

use deadpool_postgres::ClientWrapper;
use futures_util::join;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use super::changes::changes;
use super::decisions::{Known, Ledger, NewEvent, Verdict, WORLD};
use super::statements::{BEGIN, BEGIN_WITH_LOCK_WAIT, Statements};
use super::unknown::Unknown;
use super::{Command, Outcome};
use crate::documents::Change;
use crate::id::{EventId, WalletId};
use crate::state::{Action, State};

/// A group that was committed.
#[derive(Debug)]
pub struct Written {
    /// The decision about each command, in the order of the commands.
    pub verdicts: Vec<Verdict>,
    /// The changes of its wallets, for the read model.
    pub changes: Vec<Change>,
}

/// Why a group has no verdicts.
#[derive(Debug)]
pub enum Failure {
    /// Postgres refused, or the connection broke. Nothing was written, and no transaction is open.
    Postgres(Error),
    /// Postgres did not respond in time. Nothing was written. Give the connection up.
    Late,
    /// No response to COMMIT has arrived. Give the connection up, and ask on another one.
    Unknown(Box<Unknown>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

/// Writes the events of `commands` and stages their records in one transaction, and wakes the streamer. It
/// returns once everything is durable. The commands are decided in this order.
///
/// A wallet that another session holds stops only the commands that need it ([`Verdict::Held`]). The transaction waits for
/// the wallet `waits_for`, if there is one, for a quarter of a second. If it does not get this wallet, nothing is written.
///
/// A session may also have inserted a lock row and not committed it. Then this one waits for some milliseconds, and inserts
/// no row. It need not wait for such a wallet again if it is one of the `stuck` ones: their rows are not inserted, unless it
/// `waits_for` this wallet.
///
/// # Errors
/// See [`Failure`]. If the future is dropped, give the connection up: the transaction may be open.
pub async fn write(
    client: &ClientWrapper,
    commands: &[Command],
    waits_for: Option<WalletId>,
    stuck: &HashSet<WalletId>,
    deadline: Instant,
) -> Result<Written, Failure> {
    let statements = until(deadline, Statements::prepare(client)).await??;
    let begun = until(deadline, begin(client, &statements, commands, waits_for, stuck)).await?;
    let mut ledger = match begun {
        Ok(ledger) => ledger,
        Err(error) => {
            // If the connection is broken, so is the transaction.
            let _ = until(deadline, client.batch_execute("ROLLBACK")).await?;
            return match waits_for {
                Some(wallet) if is_lock_timeout(&error) => {
                    Ok(Written { verdicts: vec![Verdict::Held(wallet); commands.len()], changes: Vec::new() })
                }
                _ => Err(error.into()),
            };
        }
    };
    let verdicts: Vec<Verdict> = commands.iter().map(|command| ledger.decide(command)).collect();
    let Some(first) = ledger.events.first() else {
        until(deadline, client.batch_execute("ROLLBACK")).await??;
        return Ok(Written { verdicts, changes: Vec::new() });
    };
    let (wallet, event_id) = (first.wallet, first.event_id);
    match timeout_at(deadline, write_and_commit(client, &statements, &ledger.events)).await {
        Ok((Ok(rows), Ok(()))) => {
            // Postgres returns the rows in the order of insertion.
            let times = rows.iter().map(|row| row.get("created_at"));
            Ok(Written { verdicts, changes: changes(&ledger.events, times, &ledger.newest) })
        }
        // Postgres made a ROLLBACK of the COMMIT. An error that ends the session is looked up, as a lost connection is.
        Ok((Err(error), _)) if is_of_statement(&error) => Err(error.into()),
        _ => {
            let wallets = ledger.events.iter().map(|new| new.wallet).collect();
            Err(Failure::Unknown(Box::new(Unknown { wallet, event_id, wallets, verdicts })))
        }
    }
}

/// Whether Postgres refused the statement, and goes on with the session.
fn is_of_statement(error: &Error) -> bool {
    error.as_db_error().is_some_and(|error| error.parsed_severity() == Some(Severity::Error))
}

/// Whether a lock did not become free in time.
fn is_lock_timeout(error: &Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

async fn until<T>(deadline: Instant, future: impl Future<Output = T>) -> Result<T, Failure> {
    timeout_at(deadline, future).await.map_err(|_| Failure::Late)
}

/// Flight 1: begins the transaction, locks the wallets and reads what the decisions need.
async fn begin<'a>(
    client: &ClientWrapper,
    statements: &Statements,
    commands: &'a [Command],
    waits_for: Option<WalletId>,
    stuck: &HashSet<WalletId>,
) -> Result<Ledger<'a>, Error> {
    // Sorted: two sessions that insert the same rows wait for each other in one direction only.
    let wallets: BTreeSet<WalletId> = commands.iter().flat_map(Command::wallets).collect();
    let wallets: Vec<WalletId> = wallets.into_iter().collect();
    let wallet_ids: Vec<&str> = wallets.iter().map(WalletId::as_str).collect();
    let is_inserted = |wallet: &&WalletId| Some(**wallet) == waits_for || !stuck.contains(wallet);
    let inserted_ids: Vec<&str> = wallets.iter().filter(is_inserted).map(WalletId::as_str).collect();
    let with_key = |command: &'a Command| command.key.as_deref().map(|key| (command.wallet, key));
    let keys: Vec<(WalletId, &str)> = commands.iter().filter_map(with_key).collect();
    let (key_wallet_ids, key_texts): (Vec<&str>, Vec<&str>) = keys.iter().map(|(id, key)| (id.as_str(), *key)).unzip();
    let ids: [&(dyn ToSql + Sync); 1] = [&wallet_ids];
    let inserted: [&(dyn ToSql + Sync); 1] = [&inserted_ids];
    let key_params: [&(dyn ToSql + Sync); 2] = [&key_wallet_ids, &key_texts];

    // All are sent in this order, and before the first response.
    let (inserted, begun, waited, locked, states, known) = join!(
        client.execute(&statements.insert_locks, &inserted),
        client.batch_execute(if waits_for.is_some() { BEGIN_WITH_LOCK_WAIT } else { BEGIN }),
        async {
            match waits_for {
                Some(wallet) => client.query(&statements.wait_for_lock, &[&wallet.as_str()]).await.map(drop),
                None => Ok(()),
            }
        },
        client.query(&statements.lock_free, &ids),
        client.query(&statements.read_states, &ids),
        async { if keys.is_empty() { Ok(Vec::new()) } else { client.query(&statements.read_keys, &key_params).await } },
    );
    begun?;
    // Without a row a wallet is not locked, so that the commands for it count as held.
    inserted.map(drop).or_else(|error| if is_lock_timeout(&error) { Ok(()) } else { Err(error) })?;
    waited?;
    let of_row = |row: &Row| wallets[row.get::<_, i64>("place") as usize - 1];
    let mut ledger = Ledger::default();
    ledger.states.extend(locked?.iter().map(|row| (of_row(row), State::default())));
    for row in states? {
        let read = State { version: row.get("version"), balance_minor: row.get("balance_minor") };
        ledger.states.entry(of_row(&row)).and_modify(|state| *state = read);
        ledger.newest.insert(of_row(&row), event_id_of(&row));
    }
    ledger.known = known?.iter().map(|row| (keys[row.get::<_, i64>("place") as usize - 1], known_from(row))).collect();
    Ok(ledger)
}

fn event_id_of(row: &Row) -> EventId {
    row.get::<_, &str>("event_id").parse().expect("Postgres checks that it is a KSUID")
}

/// The event of a key.
fn known_from(row: &Row) -> Known {
    let counterparty: &str = row.get("counterparty");
    let parsed = |text: &str| text.parse().expect("Postgres checks that it is a KSUID");
    Known {
        action: Action::from_name(row.get("action")).expect("Postgres checks the actions"),
        amount_minor: row.get("amount_minor"),
        counterparty: (counterparty != WORLD).then(|| parsed(counterparty)),
        outcome: Outcome {
            event_id: event_id_of(row),
            rejection: row.get("reason"),
            version: row.get("version"),
            balance_minor: row.get("balance_minor"),
            is_replayed: true,
        },
    }
}

/// Flight 2: writes the events, stages their records, and commits. Returns the response to the write and to COMMIT. The hint
/// is sent right behind, and its response is not awaited.
async fn write_and_commit(
    client: &ClientWrapper,
    statements: &Statements,
    events: &[NewEvent<'_>],
) -> (Result<Vec<Row>, Error>, Result<(), Error>) {
    let columns = Columns::of(events);
    let mut params = columns.params();
    let traceparents: Vec<Option<String>> =
        events.iter().map(|new| new.command.traceparent.map(|traceparent| traceparent.to_string())).collect();
    let is_traced = traceparents.iter().any(Option::is_some);
    if is_traced {
        params.push(&traceparents);
    }
    let statement = if is_traced { &statements.write_traced } else { &statements.write };
    let mut writing =
        pin!(async { join!(client.query(statement, &params), async { client.batch_execute("COMMIT").await }) });
    tokio::select! {
        // The write and COMMIT are sent first.
        biased;
        written = &mut writing => written,
        _ = pglog::hint(client) => writing.await,
    }
}

/// The events of a group, column by column.
struct Columns<'a> {
    event_ids: Vec<&'a str>,
    wallet_ids: Vec<&'a str>,
    versions: Vec<i64>,
    balances_minor: Vec<i64>,
    reasons: Vec<Option<String>>,
    actions: Vec<&'static str>,
    amounts_minor: Vec<i64>,
    counterparties: Vec<&'a str>,
    keys: Vec<Option<&'a str>>,
    origin_ips: Vec<IpAddr>,
    record_actions: Vec<&'static str>,
    record_data: Vec<String>,
}

impl<'a> Columns<'a> {
    fn of(events: &'a [NewEvent<'_>]) -> Self {
        Self {
            event_ids: events.iter().map(|new| new.event_id.as_str()).collect(),
            wallet_ids: events.iter().map(|new| new.wallet.as_str()).collect(),
            versions: events.iter().map(|new| new.state.version).collect(),
            balances_minor: events.iter().map(|new| new.state.balance_minor).collect(),
            reasons: events.iter().map(NewEvent::reason).collect(),
            actions: events.iter().map(|new| new.event.action.name()).collect(),
            amounts_minor: events.iter().map(|new| new.event.amount_minor).collect(),
            counterparties: events.iter().map(NewEvent::counterparty_name).collect(),
            keys: events.iter().map(|new| new.key).collect(),
            origin_ips: events.iter().map(|new| new.command.origin_ip).collect(),
            record_actions: events.iter().map(NewEvent::record_action).collect(),
            record_data: events.iter().map(NewEvent::record_data).collect(),
        }
    }

    /// In the order of the statement's parameters.
    fn params(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![
            &self.event_ids,
            &self.wallet_ids,
            &self.versions,
            &self.balances_minor,
            &self.reasons,
            &self.actions,
            &self.amounts_minor,
            &self.counterparties,
            &self.keys,
            &self.origin_ips,
            &self.record_actions,
            &self.record_data,
        ]
    }
}
