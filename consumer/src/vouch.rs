//! Which stream entries are of this log? Those that carry the token of the batch which their offset belongs to. Anybody
//! can append to a Redis stream; only the streamer knows the token, and Postgres vouches for it.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use deadpool_postgres::ClientWrapper as Client;
use pglog::{BatchRange, Record};

/// Batches looked up at once.
const RANGES_LEN_MAX: i64 = 1000;

/// The tokens of the batches ahead.
#[derive(Debug, Default)]
pub(crate) struct Vouchers {
    ranges: VecDeque<BatchRange>,
}

/// What Postgres says of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the record at its offset.
    OfThisLog,
    /// It is not, whatever it says.
    Stranger,
    /// Not looked up yet: there are very many batches in between.
    NotKnownYet,
}

impl Vouchers {
    /// Looks up the batches from `next_offset` on, if `last_offset` lies beyond what is known.
    pub async fn prepare(
        &mut self,
        client: &Client,
        partition: i32,
        next_offset: i64,
        last_offset: i64,
    ) -> Result<Known> {
        while self.ranges.front().is_some_and(|range| range.last_offset < next_offset) {
            self.ranges.pop_front();
        }
        let known_to = self.ranges.back().map_or(next_offset - 1, |range| range.last_offset);
        if last_offset <= known_to {
            return Ok(Known { may_be_more: false });
        }
        let found = pglog::batch_ranges(client, partition, known_to + 1, RANGES_LEN_MAX)
            .await
            .context("looking up the tokens of batches")?;
        let may_be_more = found.len() as i64 == RANGES_LEN_MAX;
        self.ranges.extend(found);
        Ok(Known { may_be_more })
    }

    /// Judges an entry by its offset, which is `next_offset` of [`prepare`](Self::prepare) or higher, and its token.
    pub fn judge(&self, offset: i64, token: i64, known: &Known) -> Verdict {
        let index = self.ranges.partition_point(|range| range.last_offset < offset);
        match self.ranges.get(index) {
            None if known.may_be_more => Verdict::NotKnownYet,
            None => Verdict::Stranger,
            Some(range) if range.first_offset <= offset && range.token == token => Verdict::OfThisLog,
            Some(_) => Verdict::Stranger,
        }
    }
}

/// The tokens of records that follow each other, for Postgres to compare: a range of offsets and what was read there. Three
/// columns of equal length.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub first_offsets: Vec<i64>,
    pub last_offsets: Vec<i64>,
    pub tokens: Vec<i64>,
}

impl Tokens {
    /// One range for each run of records with the same token: of one batch, if it is the true one, for no two have the same.
    pub fn of(records: &[Record<'_>]) -> Self {
        let mut found = Self::default();
        for run in records.chunk_by(|one, next| one.token == next.token) {
            found.first_offsets.push(run[0].offset);
            found.last_offsets.push(run[run.len() - 1].offset);
            found.tokens.push(run[0].token);
        }
        found
    }
}

/// How far the lookup went.
#[derive(Debug)]
pub(crate) struct Known {
    may_be_more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_one_batch_are_compared_once() {
        let record = |offset, token| Record {
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
        let vouchers = Vouchers { ranges: ranges.into() };
        let (all, more) = (Known { may_be_more: false }, Known { may_be_more: true });
        assert_eq!(vouchers.judge(5, 100, &all), Verdict::OfThisLog);
        assert_eq!(vouchers.judge(10, 200, &all), Verdict::OfThisLog);
        assert_eq!(vouchers.judge(10, 100, &all), Verdict::Stranger);
        assert_eq!(vouchers.judge(4, 100, &all), Verdict::Stranger);
        assert_eq!(vouchers.judge(11, 200, &all), Verdict::Stranger);
        assert_eq!(vouchers.judge(11, 200, &more), Verdict::NotKnownYet);
    }
}
