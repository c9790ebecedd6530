//! The consumer's row in `checkpoints`: loading it, and moving it by compare-and-set (I5).
//!
//! The compare-and-set fences a second process of the same name and the replay of a dead letter: whichever commits first
//! makes the other start over.

use anyhow::{Context, Result, bail, ensure};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{Partition, Session};
use tokio_postgres::Statement;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use crate::fold::Update;
use crate::vouch::Tokens;

/// Events since the last commit, counted for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries skipped because their offset was already passed.
    pub duplicate_count: i64,
    /// Records read from Postgres because the stream lacked them.
    pub healed_count: i64,
    /// Stream entries that are not of this log.
    pub rejected_count: i64,
    /// Injected crashes survived.
    pub crash_count: i64,
}

/// The part of the row that the state in memory belongs to. The state may be committed only while the row still says the
/// same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The state reflects the records 1 … last_offset.
    pub last_offset: i64,
    /// Rises when the state changes and the offset does not: a dead letter was replayed.
    pub generation: i64,
}

/// The checkpoint that was committed last; `None` if no such consumer is registered.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn find(session: &impl Session, name: &str, partition: Partition) -> Result<Option<Checkpoint>> {
    let row = session
        .query_opt(
            "-- consumer::checkpoint::find
             SELECT last_offset, generation FROM checkpoints WHERE name = $1 AND partition = $2",
            &[&name, &partition],
        )
        .await
        .context("loading the checkpoint")?;
    Ok(row.map(|row| Checkpoint { last_offset: row.get(0), generation: row.get(1) }))
}

/// A move of a checkpoint.
#[derive(Debug)]
pub(crate) struct Advance {
    /// The checkpoint that must be there.
    pub old: Checkpoint,
    /// The offset that it moves to.
    pub new_offset: i64,
    /// Added to the counts of the row.
    pub counts: Counts,
    /// Tokens that Postgres must vouch for.
    pub tokens: Tokens,
}

impl Advance {
    const PARAM_COUNT: usize = 10;

    fn params(&self) -> [&(dyn ToSql + Sync); Self::PARAM_COUNT] {
        let Self { old, new_offset, counts, tokens } = self;
        assert!(*new_offset >= old.last_offset, "a checkpoint never goes back: {old:?} to {new_offset}");
        [
            &old.last_offset,
            &old.generation,
            new_offset,
            &counts.duplicate_count,
            &counts.healed_count,
            &counts.rejected_count,
            &counts.crash_count,
            &tokens.first_offsets,
            &tokens.last_offsets,
            &tokens.tokens,
        ]
    }

    /// The compare-and-set, which also compares the tokens. `$1` is the consumer's name and `$2` the partition;
    /// [`params`](Self::params) begin at `$first`.
    fn sql(first: usize) -> String {
        let [last_offset, generation, new_offset, duplicates, healed, rejected, crashes, firsts, lasts, tokens] =
            std::array::from_fn(|index| format!("${}", first + index));
        format!(
            "UPDATE checkpoints
             SET last_offset = {new_offset}, duplicate_count = duplicate_count + {duplicates},
                 healed_count = healed_count + {healed}, rejected_count = rejected_count + {rejected},
                 crash_count = crash_count + {crashes}, updated_at = now()
             WHERE name = $1 AND partition = $2 AND last_offset = {last_offset} AND generation = {generation}
               AND NOT EXISTS (
                   SELECT FROM unnest({firsts}::bigint[], {lasts}::bigint[], {tokens}::bigint[])
                               AS read (first_offset, last_offset, token)
                   WHERE NOT EXISTS (
                       SELECT FROM (SELECT first_offset + record_count - 1 AS last_offset, token FROM log_batches
                                    WHERE partition = $2 AND first_offset <= read.first_offset
                                    ORDER BY first_offset DESC LIMIT 1) AS batch
                       WHERE batch.last_offset >= read.last_offset AND batch.token = read.token))"
        )
    }
}

/// Moves the checkpoint. `false` means that another process has changed checkpoint or state, or that Postgres does not vouch
/// for the tokens: nothing of this transaction may be committed.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn advance(tx: &impl Session, name: &str, partition: Partition, advance: &Advance) -> Result<bool> {
    let key: [&(dyn ToSql + Sync); 2] = [&name, &partition];
    let statement = format!("-- consumer::checkpoint::advance\n{}", Advance::sql(3));
    let moved_count =
        tx.execute(&statement, &[&key[..], &advance.params()].concat()).await.context("moving the checkpoint")?;
    Ok(moved_count == 1)
}

/// Statements after which the rows are looked up by their key again.
const LOOKUP_INTERVAL: u32 = 8;

/// The places (`ctid`) of the rows that the last statement wrote, as far as they are known. A place only narrows the search:
/// name, offset, generation and tokens are compared all the same, so with a wrong place nothing moves.
///
/// While an old transaction is open, Postgres removes no version of a row, and a look-up by key passes all of them. But only
/// such a look-up removes versions that no transaction needs from a page. Without any look-up a table grows until it is
/// vacuumed. A page holds about seventy versions, and all consumers share it.
#[derive(Debug, Default)]
struct Versions {
    checkpoint: Option<String>,
    state: Option<String>,
    /// Statements since the look-up by key, including that statement.
    age: u32,
}

/// Writes checkpoint and state in one statement, on one connection. It remembers where the rows are, and the prepared
/// statements: in moderate traffic a page is a record or two, and building the statement's text took a quarter of the work.
#[derive(Debug, Default)]
pub(crate) struct Saver {
    versions: Versions,
    statements: Vec<(StatementKey, Statement)>,
}

/// The properties that a statement's text depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct StatementKey {
    /// The statement that writes the state, if it changed, and the number of its own parameters.
    update: Option<(&'static str, usize)>,
    /// Whether it is known where the rows are.
    knows_checkpoint: bool,
    knows_state: bool,
}

impl Saver {
    /// Forgets where the rows are: another statement may have moved them.
    pub fn forget_versions(&mut self) {
        self.versions = Versions::default();
    }

    /// As [`advance`], and writes the state, if it is changed, in the same statement, which is a transaction of its own.
    /// `false` means that nothing was done.
    pub async fn advance_and_save(
        &mut self,
        client: &Client,
        name: &str,
        partition: Partition,
        advance: &Advance,
        update: Option<&Update<'_>>,
    ) -> Result<bool> {
        if self.versions.age >= LOOKUP_INTERVAL {
            self.forget_versions();
        }
        loop {
            let was_known = self.versions.age > 0;
            match self.advance_and_save_once(client, name, partition, advance, update).await {
                Ok(false) if was_known => {}
                Err(error) if is_state_gone(&error) && was_known => {}
                Err(error) if is_state_gone(&error) => bail!("the state of consumer {name} is gone"),
                moved => return moved.context("moving the checkpoint and saving the state"),
            }
            // Every change moves a row to another place, and so does VACUUM FULL: look it up by its key now.
            self.forget_versions();
        }
    }

    /// Makes one attempt. Looks for the rows where they were, and notes where they are now.
    async fn advance_and_save_once(
        &mut self,
        client: &Client,
        name: &str,
        partition: Partition,
        advance: &Advance,
        update: Option<&Update<'_>>,
    ) -> Result<bool, tokio_postgres::Error> {
        let Versions { checkpoint, state, .. } = &self.versions;
        let statement_key = StatementKey {
            update: update.map(|update| (update.sql, update.params.len())),
            knows_checkpoint: checkpoint.is_some(),
            knows_state: update.is_some() && state.is_some(),
        };
        let statement = match self.statements.iter().find(|(prepared, _)| *prepared == statement_key) {
            Some((_, statement)) => statement.clone(),
            None => {
                let statement = client.prepare_cached(&statement_key.sql()).await?;
                self.statements.push((statement_key, statement.clone()));
                statement
            }
        };
        let key: [&(dyn ToSql + Sync); 2] = [&name, &partition];
        let advance_params = advance.params();
        let state_params = update.map_or(&[][..], |update| &update.params);
        let mut params = [&key, state_params, &advance_params].concat();
        params.extend(checkpoint.as_ref().map(|place| place as &(dyn ToSql + Sync)));
        params.extend(state.as_ref().filter(|_| statement_key.knows_state).map(|place| place as &(dyn ToSql + Sync)));
        let row = client.client().query_one(&statement, &params).await?;
        self.versions.checkpoint = row.get(1);
        if update.is_some() {
            self.versions.state = row.get(2);
        }
        self.versions.age += 1;
        Ok(row.get(0))
    }
}

impl StatementKey {
    /// The parameters are the consumer's name, the partition, those of the update, those of the [`Advance`], and the places
    /// of the rows, as far as they are known.
    fn sql(&self) -> String {
        let first_of_advance = 3 + self.update.map_or(0, |(_, param_count)| param_count);
        let mut place = first_of_advance + Advance::PARAM_COUNT;
        let mut at = |is_known: bool| {
            if !is_known {
                return String::new();
            }
            place += 1;
            format!(" AND ctid = ${}::text::tid", place - 1)
        };
        let advance = Advance::sql(first_of_advance) + &at(self.knows_checkpoint);
        let (saving, verdict, saved_at) = match self.update {
            Some((update, _)) => (
                format!(", saved AS ({update}{} AND EXISTS (SELECT FROM moved) RETURNING ctid)", at(self.knows_state)),
                // A checkpoint that moves without its state divides by zero, and nothing is done.
                "CASE (SELECT count(*) FROM moved) WHEN 0 THEN false ELSE 1 / (SELECT count(*) FROM saved) = 1 END",
                "(SELECT ctid::text FROM saved)",
            ),
            None => (String::new(), "EXISTS (SELECT FROM moved)", "NULL::text"),
        };
        format!(
            "-- consumer::checkpoint::advance_and_save
             WITH moved AS ({advance} RETURNING ctid){saving}
             SELECT {verdict}, (SELECT ctid::text FROM moved), {saved_at}"
        )
    }
}

fn is_state_gone(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::DIVISION_BY_ZERO)
}

/// Removes the consumer with its state and dead letters, so that it holds back the reaper no longer.
///
/// # Errors
/// There is no such consumer, or Postgres is away.
pub async fn unregister(client: &Client, name: &str, partition: Partition) -> Result<()> {
    let removed_count = client
        .execute(
            "-- consumer::checkpoint::unregister
             DELETE FROM checkpoints WHERE name = $1 AND partition = $2",
            &[&name, &partition],
        )
        .await
        .context("unregistering")?;
    ensure!(removed_count == 1, "no consumer {name:?} is registered in partition {partition}");
    Ok(())
}
