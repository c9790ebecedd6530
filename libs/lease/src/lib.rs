//! A leased piece of work: take it for a while, do it with no transaction open, settle it. Any number of processes share the
//! pieces.
//!
//! ```text
//! due ----take: SKIP LOCKED, lease until a time--> leased
//! leased -work, settle---------------------------> done
//! leased -the work fails, or the process dies; the lease runs out--> due
//! ```
//!
//! **Take** chooses rows that are due with `FOR UPDATE SKIP LOCKED`, sets the time until which they are leased, and commits, all
//! in one statement. So two processes never take the same piece at the same time, and no process waits for a row lock.
//!
//! **Work** may take long and may call other servers, because no transaction is open and no lock is held. A process may die at
//! any point of it. The lease then runs out, and another process does the work again: the work must bear that, for example
//! by a key that the called server remembers.
//!
//! **Settle** records the result. By then the lease may have run out, and another process may have taken the piece. The
//! condition of the settling statement depends on the kind of the result:
//!
//! - A *fact* is written even if the lease is lost. A receipt that was sent stays sent: without the mark, it would be sent once
//!   more. `WHERE delivered_at IS NULL` keeps the first mark.
//! - A *decision* is written only if the lease is still ours, because the current holder may decide otherwise. The statement
//!   compares a token: any column that changes with each take. Bookings compare the token of their claim.
//!
//! If the condition finds no row, `settle` returns [`Settled::Lost`].

use std::time::Duration;

use common::shutdown::CancellationToken;
use tokio::time::timeout;

/// Pieces of work that are leased, and how each step is done.
pub trait Leases {
    /// A piece that this process has taken.
    type Piece;

    /// The result of the work on a piece.
    type Done;

    /// Why the work on a piece failed. It does not end the round.
    type Failure;

    /// Why a round ends early: the database is away.
    type Error: From<Late>;

    /// Takes up to `len_max` pieces that are due, in one statement. Their leases must last longer than [`Round::wait`], unless a
    /// token keeps the holder of a lost lease from settling.
    ///
    /// # Errors
    /// Ends the round.
    fn take(&mut self, len_max: usize) -> impl Future<Output = Result<Vec<Self::Piece>, Self::Error>>;

    /// Does the work on a piece, with no transaction open.
    ///
    /// # Errors
    /// The piece stays undone, and is due again when its lease has run out.
    fn work(&mut self, piece: &Self::Piece) -> impl Future<Output = Result<Self::Done, Self::Failure>>;

    /// Records the result of the work, under the condition that the front page of this library describes.
    ///
    /// # Errors
    /// Ends the round. The piece is due again when its lease has run out, unless the statement took effect.
    fn settle(
        &mut self,
        piece: Self::Piece,
        result: Result<Self::Done, Self::Failure>,
    ) -> impl Future<Output = Result<Settled, Self::Error>>;
}

/// Whether a piece was still ours when it was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was, and the result is recorded.
    Ours,
    /// Another process took it after our lease had run out, and its result counts.
    Lost,
}

/// The bounds of one round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Pieces in all.
    pub piece_count_max: usize,
    /// Pieces that are taken together and worked on one after another. The lease of the last one must outlast the work on
    /// those before it.
    pub take_len_max: usize,
    /// The time to take, do and settle the pieces that are taken together.
    pub wait: Duration,
}

/// Pieces were not settled in time. Those that are left are due again when their leases have run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("leased work was not settled within {0:?}")]
pub struct Late(pub Duration);

/// The pieces of one round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// The work was done, and the result is recorded.
    pub done_count: usize,
    /// The work failed.
    pub failed_count: usize,
    /// Another process has taken the piece meanwhile.
    pub lost_count: usize,
}

impl Tally {
    /// All pieces that were settled.
    pub fn piece_count(&self) -> usize {
        self.done_count + self.failed_count + self.lost_count
    }
}

/// Takes, does and settles pieces until fewer are due than could be taken together, until the round is full, or until `stop`.
/// After `stop` it settles the pieces that it has taken, and takes no others.
///
/// # Errors
/// The error of `take` or `settle`, or [`Late`].
pub async fn run_round<L: Leases>(leases: &mut L, round: &Round, stop: &CancellationToken) -> Result<Tally, L::Error> {
    let mut tally = Tally::default();
    while tally.piece_count() < round.piece_count_max && !stop.is_cancelled() {
        let len_max = round.take_len_max.min(round.piece_count_max - tally.piece_count());
        let taken = timeout(round.wait, run_batch(leases, len_max, &mut tally));
        if taken.await.map_err(|_| Late(round.wait))?? < len_max {
            break;
        }
    }
    Ok(tally)
}

/// Returns how many pieces were taken.
async fn run_batch<L: Leases>(leases: &mut L, len_max: usize, tally: &mut Tally) -> Result<usize, L::Error> {
    let pieces = leases.take(len_max).await?;
    let taken_count = pieces.len();
    for piece in pieces {
        let result = leases.work(&piece).await;
        let is_done = result.is_ok();
        match leases.settle(piece, result).await? {
            Settled::Lost => tally.lost_count += 1,
            Settled::Ours if is_done => tally.done_count += 1,
            Settled::Ours => tally.failed_count += 1,
        }
    }
    Ok(taken_count)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Error {
        Late(Late),
        Away,
    }

    impl From<Late> for Error {
        fn from(late: Late) -> Self {
            Self::Late(late)
        }
    }

    /// Pieces in memory. The text of a piece says how the work on it goes.
    #[derive(Default)]
    struct Memory {
        due: VecDeque<&'static str>,
        steps: Vec<String>,
        stop: CancellationToken,
    }

    impl Leases for Memory {
        type Piece = &'static str;
        type Done = ();
        type Failure = ();
        type Error = Error;

        async fn take(&mut self, len_max: usize) -> Result<Vec<&'static str>, Error> {
            self.steps.push(format!("take {len_max}"));
            Ok(self.due.drain(..len_max.min(self.due.len())).collect())
        }

        async fn work(&mut self, piece: &&'static str) -> Result<(), ()> {
            match *piece {
                "fails" => return Err(()),
                "hangs" => pending().await,
                "stops" => self.stop.cancel(),
                _ => {}
            }
            Ok(())
        }

        async fn settle(&mut self, piece: &'static str, _: Result<(), ()>) -> Result<Settled, Error> {
            self.steps.push(piece.to_owned());
            match piece {
                "lost" => Ok(Settled::Lost),
                "away" => Err(Error::Away),
                _ => Ok(Settled::Ours),
            }
        }
    }

    async fn run(due: &[&'static str], piece_count_max: usize, take_len_max: usize) -> (Result<Tally, Error>, String) {
        let mut memory = Memory { due: due.iter().copied().collect(), ..Memory::default() };
        let (round, stop) = (Round { piece_count_max, take_len_max, wait: WAIT }, memory.stop.clone());
        let tally = run_round(&mut memory, &round, &stop).await;
        (tally, memory.steps.join(", "))
    }

    const WAIT: Duration = Duration::from_millis(100);

    fn tally(done_count: usize, failed_count: usize, lost_count: usize) -> Result<Tally, Error> {
        Ok(Tally { done_count, failed_count, lost_count })
    }

    #[tokio::test]
    async fn a_round_ends_when_nothing_is_due() {
        assert_eq!(run(&["a", "b"], 5, 1).await, (tally(2, 0, 0), "take 1, a, take 1, b, take 1".to_owned()));
    }

    #[tokio::test]
    async fn a_round_takes_no_more_than_its_bounds() {
        let due = ["a", "b", "c", "d", "e"];
        assert_eq!(run(&due, 3, 2).await, (tally(3, 0, 0), "take 2, a, b, take 1, c".to_owned()));
        assert_eq!(run(&due, 0, 2).await, (tally(0, 0, 0), String::new()));
    }

    #[tokio::test]
    async fn a_piece_that_fails_or_is_lost_keeps_no_other_from_being_done() {
        assert_eq!(run(&["fails", "lost", "a"], 3, 3).await, (tally(1, 1, 1), "take 3, fails, lost, a".to_owned()));
    }

    #[tokio::test]
    async fn without_the_database_the_round_ends() {
        assert_eq!(run(&["a", "away", "b"], 3, 1).await, (Err(Error::Away), "take 1, a, take 1, away".to_owned()));
    }

    #[tokio::test]
    async fn work_that_outlasts_its_time_is_not_settled() {
        assert_eq!(run(&["a", "hangs", "b"], 3, 3).await, (Err(Error::Late(Late(WAIT))), "take 3, a".to_owned()));
    }

    #[tokio::test]
    async fn a_stop_lets_taken_pieces_be_settled_and_takes_no_more() {
        assert_eq!(run(&["stops", "a", "b"], 5, 2).await, (tally(2, 0, 0), "take 2, stops, a".to_owned()));
    }
}
