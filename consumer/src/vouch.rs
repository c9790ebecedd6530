//! The check that a stream entry is of this log: it must carry the token of the batch that holds its offset.
//!
//! Any client of Redis can append to a stream. Only the streamer knows the tokens, and Postgres vouches for them.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{BatchRange, Partition, Record};

/// Batches per look-up.
const RANGES_LEN_MAX: i64 = 1000;

/// The tokens of the batches ahead.
#[derive(Debug, Default)]
pub(crate) struct Vouchers {
    ranges: VecDeque<BatchRange>,
    /// Whether Postgres may have batches behind these ranges.
    may_be_more: bool,
}

/// Where a stream entry comes from, as Postgres says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is the record at its offset.
    ThisLog,
    /// Another program wrote it, or the streamer of another log.
    Foreign,
    /// Its batch was not looked up yet: there are very many batches in between.
    NotKnownYet,
}

impl Vouchers {
    /// Looks up the batches from `next_offset` on, if `last_offset` lies beyond the known ones.
    ///
    /// # Errors
    /// Postgres is away.
    pub async fn look_up(
        &mut self,
        client: &Client,
        partition: Partition,
        next_offset: i64,
        last_offset: i64,
    ) -> Result<()> {
        while self.ranges.front().is_some_and(|range| range.last_offset < next_offset) {
            self.ranges.pop_front();
        }
        let known_to = self.ranges.back().map_or(next_offset - 1, |range| range.last_offset);
        self.may_be_more = false;
        if last_offset <= known_to {
            return Ok(());
        }
        let found = pglog::batch_ranges(client, partition, known_to + 1, RANGES_LEN_MAX)
            .await
            .context("looking up the tokens of batches")?;
        self.may_be_more = found.len() as i64 == RANGES_LEN_MAX;
        self.ranges.extend(found);
        Ok(())
    }

    /// The origin of an entry with this token, at an offset that is `next_offset` of [`look_up`](Self::look_up) or higher.
    pub fn origin(&self, offset: i64, token: i64) -> Origin {
        let index = self.ranges.partition_point(|range| range.last_offset < offset);
        match self.ranges.get(index) {
            None if self.may_be_more => Origin::NotKnownYet,
            None => Origin::Foreign,
            Some(range) if range.first_offset <= offset && range.token == token => Origin::ThisLog,
            Some(_) => Origin::Foreign,
        }
    }
}

/// The tokens of records that follow each other, for Postgres to compare: ranges of offsets, and the token that was read in
/// each. Three columns of equal length.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub first_offsets: Vec<i64>,
    pub last_offsets: Vec<i64>,
    pub tokens: Vec<i64>,
}

impl Tokens {
    /// One range per run of records with the same token. No two batches have the same token, so a run of this log's records
    /// is of one batch.
    pub fn of(records: &[Record<'_>]) -> Self {
        let mut found = Self::default();
        for run in records.chunk_by(|one, next| one.token == next.token) {
            found.first_offsets.push(run[0].offset);
            found.last_offsets.push(run[run.len() - 1].offset);
            found.tokens.push(run[0].token);
        }
        found
    }

    /// Adds the ranges of another partition.
    pub fn append(&mut self, others: &Self) {
        self.first_offsets.extend(&others.first_offsets);
        self.last_offsets.extend(&others.last_offsets);
        self.tokens.extend(&others.tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_one_batch_are_compared_once() {
        let record = |offset, token| Record {
            partition: Partition::FIRST,
            offset,
            token,
            object: "ride",
            action: "create",
            data: "{}",
            staged_at_us: 0,
            traceparent: None,
        };
        let tokens = Tokens::of(&[record(5, 100), record(6, 100), record(7, 200), record(8, 100)]);
        assert_eq!(tokens.first_offsets, [5, 7, 8]);
        assert_eq!(tokens.last_offsets, [6, 7, 8]);
        assert_eq!(tokens.tokens, [100, 200, 100]);
        assert_eq!(Tokens::of(&[]), Tokens::default());
    }

    #[test]
    fn only_the_token_of_its_batch_makes_an_entry_ours() {
        let ranges = [
            BatchRange { first_offset: 5, last_offset: 9, token: 100 },
            BatchRange { first_offset: 10, last_offset: 10, token: 200 },
        ];
        let all = Vouchers { ranges: ranges.into(), may_be_more: false };
        assert_eq!(all.origin(5, 100), Origin::ThisLog);
        assert_eq!(all.origin(10, 200), Origin::ThisLog);
        assert_eq!(all.origin(10, 100), Origin::Foreign);
        assert_eq!(all.origin(4, 100), Origin::Foreign);
        assert_eq!(all.origin(11, 200), Origin::Foreign);
        let first = Vouchers { may_be_more: true, ..all };
        assert_eq!(first.origin(11, 200), Origin::NotKnownYet);
    }
}
