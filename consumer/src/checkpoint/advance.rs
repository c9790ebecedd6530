//! Moving checkpoints and states by compare-and-set (I5).
//!
//! A checkpoint moves by one statement, together with the state and the dead letters; the checkpoints of several partitions move
//! by one statement, too. Each moves, or does not, by itself: a conflict in one partition holds back no other.

use anyhow::{Context, Result};
use pglog::{Partition, Session};
use tokio_postgres::types::ToSql;

use super::{Checkpoint, Counts};
use crate::fold::CheckpointKey;
use crate::letters::Letters;
use crate::place::Place;
use crate::vouch::Tokens;

/// A move of a checkpoint.
#[derive(Debug)]
pub(crate) struct Advance<'a> {
    /// The checkpoint that must be there.
    pub old: Checkpoint,
    /// The offset that it moves to.
    pub new_offset: i64,
    /// The state at the new offset. `None`: it is the old one, or the fold has rows.
    pub state: Option<String>,
    /// Added to the counts of the row.
    pub counts: Counts,
    /// Tokens that Postgres must vouch for.
    pub tokens: Tokens,
    /// Records that the state lacks.
    pub letters: Letters<'a>,
}

/// Moves checkpoint and state by one statement. `$1` and `$2` are the key, `$3` and `$4` the old checkpoint, `$11` to `$13` the
/// tokens that must be those of the records' batches. It returns the place of the new row; no row if nothing was moved.
macro_rules! advance_statement {
    ($condition:literal, $letters:literal) => {
        concat!(
            "-- consumer::checkpoint::advance
             WITH moved AS (
                 UPDATE checkpoints
                 SET last_offset = $5, duplicate_count = duplicate_count + $6, healed_count = healed_count + $7,
                     rejected_count = rejected_count + $8, crash_count = crash_count + $9,
                     state = COALESCE($10::text::fold_state, state), updated_at = now()
                 WHERE name = $1 AND partition = $2 AND last_offset = $3 AND generation = $4
                   AND NOT EXISTS (
                       SELECT FROM unnest($11::bigint[], $12::bigint[], $13::bigint[])
                                   AS read (first_offset, last_offset, token)
                       WHERE NOT EXISTS (
                           SELECT FROM (SELECT first_offset + record_count - 1 AS last_offset, token FROM log_batches
                                        WHERE partition = $2 AND first_offset <= read.first_offset
                                        ORDER BY first_offset DESC LIMIT 1) AS batch
                           WHERE batch.last_offset >= read.last_offset AND batch.token = read.token))",
            $condition,
            " RETURNING ctid)",
            $letters,
            " SELECT ctid::text FROM moved"
        )
    };
}

const ADVANCE: &str = advance_statement!("", "");
const ADVANCE_AT_PLACE: &str = advance_statement!(" AND ctid = $14::text::tid", "");
const ADVANCE_WITH_LETTERS: &str = advance_statement!(
    "",
    ", letters AS (
         INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
         SELECT $1, $2, letter.* FROM unnest($14::bigint[], $15::text[], $16::text[], $17::text[], $18::text[]) AS letter
         WHERE EXISTS (SELECT FROM moved))"
);

impl Advance<'_> {
    /// `$3` to `$13`.
    fn params(&self) -> [&(dyn ToSql + Sync); 11] {
        let Self { old, new_offset, state, counts, tokens, .. } = self;
        assert!(*new_offset >= old.last_offset, "a checkpoint never goes back: {old:?} to {new_offset}");
        [
            &old.last_offset,
            &old.generation,
            new_offset,
            &counts.duplicate_count,
            &counts.healed_count,
            &counts.rejected_count,
            &counts.crash_count,
            state,
            &tokens.first_offsets,
            &tokens.last_offsets,
            &tokens.tokens,
        ]
    }

    /// Moves checkpoint and state, and writes the dead letters, by one statement. Outside of a transaction the statement
    /// commits. `false` means that nothing was done: another process has changed checkpoint or state, or Postgres does not
    /// vouch for the tokens. `place` tells where the row is, and learns where it is now.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn execute(&self, client: &impl Session, key: &CheckpointKey, place: &mut Place) -> Result<bool> {
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&key.name, &key.partition];
        params.extend(self.params());
        if !self.letters.is_empty() {
            params.extend(self.letters.params());
            let row = client.query_opt(ADVANCE_WITH_LETTERS, &params).await.context("moving the checkpoint")?;
            place.forget();
            return Ok(row.is_some());
        }
        let known = place.known();
        if let Some(known) = &known {
            params.push(known);
            let row = client.query_opt(ADVANCE_AT_PLACE, &params).await.context("moving the checkpoint")?;
            params.pop();
            if let Some(row) = row {
                place.note(row.get(0));
                return Ok(true);
            }
            // Every change moves a row to another place, and so does VACUUM FULL: look it up by its key now.
        }
        let look_up = place.begin_look_up();
        let row = client.query_opt(ADVANCE, &params).await.context("moving the checkpoint")?;
        let Some(row) = row else { return Ok(false) };
        place.end_look_up(look_up, row.get(0));
        Ok(true)
    }
}

/// Moves the checkpoints of several partitions. `$1` is the name, `$2` to `$10` have one element per partition, `$11` to `$14` are
/// the tokens. It begins with the same line as the statement for one partition: both commit a consumer.
///
/// The arrays are in the order of the partitions. So two such statements, and the transactions that register and copy, lock rows
/// in one order.
macro_rules! advance_all_statement {
    ($token:literal, $vouched:literal, $letters:literal) => {
        concat!(
            "-- consumer::checkpoint::advance
             WITH moved AS (
                 UPDATE checkpoints AS old
                 SET last_offset = new.last_offset, duplicate_count = old.duplicate_count + new.duplicate_count,
                     healed_count = old.healed_count + new.healed_count,
                     rejected_count = old.rejected_count + new.rejected_count,
                     crash_count = old.crash_count + new.crash_count,
                     state = COALESCE(new.state::fold_state, old.state), updated_at = now()",
            $token,
            "
                 FROM unnest($2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[],
                             $9::bigint[], $10::text[])
                          AS new (partition, old_offset, generation, last_offset, duplicate_count, healed_count,
                                  rejected_count, crash_count, state)
                 WHERE old.name = $1 AND old.partition = new.partition AND old.last_offset = new.old_offset
                   AND old.generation = new.generation",
            $vouched,
            "
                 RETURNING old.partition)",
            $letters,
            " SELECT partition FROM moved"
        )
    };
    (log, $letters:literal) => {
        advance_all_statement!(
            "",
            " AND NOT EXISTS (
                       SELECT FROM unnest($11::int[], $12::bigint[], $13::bigint[], $14::bigint[])
                                   AS read (partition, first_offset, last_offset, token)
                       WHERE read.partition = new.partition AND NOT EXISTS (
                           SELECT FROM (SELECT first_offset + record_count - 1 AS last_offset, token FROM log_batches
                                        WHERE partition = read.partition AND first_offset <= read.first_offset
                                        ORDER BY first_offset DESC LIMIT 1) AS batch
                           WHERE batch.last_offset >= read.last_offset AND batch.token = read.token))",
            $letters
        )
    };
    // There are no batches to compare the tokens with. The last one is kept.
    (own, $letters:literal) => {
        advance_all_statement!(
            ", token = COALESCE((
                         SELECT read.token FROM unnest($11::int[], $12::bigint[], $13::bigint[], $14::bigint[])
                                                    AS read (partition, first_offset, last_offset, token)
                         WHERE read.partition = new.partition ORDER BY read.last_offset DESC LIMIT 1), 0)",
            "",
            $letters
        )
    };
}

/// Writes the dead letters of the partitions that have moved.
macro_rules! with_letters {
    ($home:ident) => {
        advance_all_statement!(
            $home,
            ", letters AS (
                 INSERT INTO dead_letters (name, partition, record_offset, object, action, data, reason)
                 SELECT $1, letter.* FROM unnest($15::int[], $16::bigint[], $17::text[], $18::text[], $19::text[], $20::text[])
                                              AS letter (partition)
                 WHERE partition IN (SELECT partition FROM moved))"
        )
    };
}

/// Where checkpoints are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// In the log's own database.
    Log,
    /// In the consumer's own database.
    Own,
}

impl Home {
    /// The statement that moves the checkpoints, with or without dead letters.
    fn statement(self, has_letters: bool) -> &'static str {
        match (self, has_letters) {
            (Self::Log, false) => advance_all_statement!(log, ""),
            (Self::Log, true) => with_letters!(log),
            (Self::Own, false) => advance_all_statement!(own, ""),
            (Self::Own, true) => with_letters!(own),
        }
    }
}

/// Moves the checkpoints of one consumer in several partitions, which are in order, as [`Advance::execute`] does for one. Returns
/// those that have moved. For the others nothing was done.
///
/// # Errors
/// Postgres is away.
pub(crate) async fn advance_all(
    client: &impl Session,
    home: Home,
    name: &str,
    advances: &[(Partition, &Advance<'_>)],
) -> Result<Vec<Partition>> {
    assert!(advances.is_sorted_by_key(|(partition, _)| *partition), "rows are locked in one order");
    let column =
        |value: fn(&Advance<'_>) -> i64| advances.iter().map(|(_, advance)| value(advance)).collect::<Vec<_>>();
    let partitions: Vec<Partition> = advances.iter().map(|(partition, _)| *partition).collect();
    let moves = [
        column(|advance| advance.old.last_offset),
        column(|advance| advance.old.generation),
        column(|advance| {
            assert!(advance.new_offset >= advance.old.last_offset, "a checkpoint never goes back: {advance:?}");
            advance.new_offset
        }),
        column(|advance| advance.counts.duplicate_count),
        column(|advance| advance.counts.healed_count),
        column(|advance| advance.counts.rejected_count),
        column(|advance| advance.counts.crash_count),
    ];
    let states: Vec<Option<&str>> = advances.iter().map(|(_, advance)| advance.state.as_deref()).collect();
    let mut read = (Vec::new(), Tokens::default());
    let mut rejected = (Vec::new(), Letters::default());
    for (partition, advance) in advances {
        read.0.resize(read.0.len() + advance.tokens.tokens.len(), *partition);
        read.1.append(&advance.tokens);
        rejected.0.resize(rejected.0.len() + advance.letters.len(), *partition);
        rejected.1.append(&advance.letters);
    }
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&name, &partitions];
    params.extend(moves.iter().map(|column| column as &(dyn ToSql + Sync)));
    params.extend::<[&(dyn ToSql + Sync); 5]>([
        &states,
        &read.0,
        &read.1.first_offsets,
        &read.1.last_offsets,
        &read.1.tokens,
    ]);
    let has_letters = !rejected.0.is_empty();
    if has_letters {
        params.push(&rejected.0);
        params.extend(rejected.1.params());
    }
    let rows = client.query(home.statement(has_letters), &params).await.context("moving the checkpoints")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
