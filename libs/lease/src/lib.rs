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
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};

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
    fn take(&self, len_max: usize) -> impl Future<Output = Result<Vec<Self::Piece>, Self::Error>>;

    /// Does the work on a piece, with no transaction open.
    ///
    /// # Errors
    /// The piece stays undone, and is due again when its lease has run out.
    fn work(&self, piece: &Self::Piece) -> impl Future<Output = Result<Self::Done, Self::Failure>>;

    /// Records the result of the work, under the condition that the front page of this library describes.
    ///
    /// # Errors
    /// Ends the round. The piece is due again when its lease has run out, unless the statement took effect.
    fn settle(
        &self,
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
    /// Pieces that are worked on side by side. A piece that takes long holds up no other piece while there are fewer.
    pub side_by_side_max: usize,
    /// How often to look for more pieces while fewer are worked on.
    pub look_interval: Duration,
    /// The time to take pieces, and the time to do and settle each of them.
    pub wait: Duration,
}

/// A step did not end in time. A piece that was not settled is due again when its lease has run out.
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

/// Takes, does and settles pieces until none is due and all that were taken are settled, until the round is full, or until
/// `stop`. After `stop` and after an error it settles the pieces that it has taken, and takes no others.
///
/// # Errors
/// The first error of `take` or `settle`, or [`Late`].
pub async fn run_round<L: Leases>(leases: &L, round: &Round, stop: &CancellationToken) -> Result<Tally, L::Error> {
    let (mut tally, mut taken_count, mut failure) = (Tally::default(), 0, None);
    let mut in_hand = FuturesUnordered::new();
    loop {
        let room = round.side_by_side_max.saturating_sub(in_hand.len()).min(round.piece_count_max - taken_count);
        if room > 0 && failure.is_none() && !stop.is_cancelled() {
            match timeout(round.wait, leases.take(room)).await.map_err(|_| Late(round.wait).into()).flatten() {
                Ok(pieces) => {
                    taken_count += pieces.len();
                    in_hand.extend(pieces.into_iter().map(|piece| finish(leases, piece, round.wait)));
                }
                Err(error) => failure = Some(error),
            }
        }
        if in_hand.is_empty() {
            return failure.map_or(Ok(tally), Err);
        }
        let mut ended = tokio::select! {
            ended = in_hand.next() => ended,
            () = sleep(round.look_interval) => None,
        };
        // Pieces that have ended together are replaced by one take.
        while let Some(settled) = ended {
            match settled {
                Ok((Settled::Lost, _)) => tally.lost_count += 1,
                Ok((Settled::Ours, true)) => tally.done_count += 1,
                Ok((Settled::Ours, false)) => tally.failed_count += 1,
                Err(error) => drop(failure.get_or_insert(error)),
            }
            ended = in_hand.next().now_or_never().flatten();
        }
    }
}

/// Does and settles one piece. Also returns whether the work was done.
async fn finish<L: Leases>(leases: &L, piece: L::Piece, wait: Duration) -> Result<(Settled, bool), L::Error> {
    let finishing = async {
        let result = leases.work(&piece).await;
        let is_done = result.is_ok();
        Ok((leases.settle(piece, result).await?, is_done))
    };
    timeout(wait, finishing).await.map_err(|_| Late(wait))?
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::pending;
    use std::sync::Mutex;

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
        due: Mutex<VecDeque<&'static str>>,
        steps: Mutex<Vec<String>>,
        stop: CancellationToken,
    }

    impl Memory {
        fn note(&self, step: impl Into<String>) {
            self.steps.lock().unwrap().push(step.into());
        }
    }

    impl Leases for Memory {
        type Piece = &'static str;
        type Done = ();
        type Failure = ();
        type Error = Error;

        async fn take(&self, len_max: usize) -> Result<Vec<&'static str>, Error> {
            self.note(format!("take {len_max}"));
            let mut due = self.due.lock().unwrap();
            let len = len_max.min(due.len());
            Ok(due.drain(..len).collect())
        }

        async fn work(&self, piece: &&'static str) -> Result<(), ()> {
            match *piece {
                "fails" => return Err(()),
                "hangs" => pending().await,
                // It hangs until another piece has been settled that was not due when this one was taken.
                "waits" => {
                    self.due.lock().unwrap().push_back("new");
                    while !self.steps.lock().unwrap().contains(&"new".to_owned()) {
                        tokio::task::yield_now().await;
                    }
                }
                "stops" => self.stop.cancel(),
                _ => {}
            }
            Ok(())
        }

        async fn settle(&self, piece: &'static str, _: Result<(), ()>) -> Result<Settled, Error> {
            self.note(piece);
            match piece {
                "lost" => Ok(Settled::Lost),
                "away" => Err(Error::Away),
                _ => Ok(Settled::Ours),
            }
        }
    }

    async fn run(
        due: &[&'static str],
        piece_count_max: usize,
        side_by_side_max: usize,
    ) -> (Result<Tally, Error>, String) {
        let memory = Memory { due: Mutex::new(due.iter().copied().collect()), ..Memory::default() };
        let round = Round { piece_count_max, side_by_side_max, look_interval: WAIT / 20, wait: WAIT };
        let tally = run_round(&memory, &round, &memory.stop).await;
        let steps = memory.steps.lock().unwrap().join(", ");
        (tally, steps)
    }

    const WAIT: Duration = Duration::from_secs(1);

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
        assert_eq!(run(&due, 3, 1).await, (tally(3, 0, 0), "take 1, a, take 1, b, take 1, c".to_owned()));
        assert_eq!(run(&due, 0, 2).await, (tally(0, 0, 0), String::new()));
    }

    #[tokio::test]
    async fn pieces_that_end_together_are_replaced_by_one_take() {
        let steps = "take 2, a, b, take 2, c, d, take 2".to_owned();
        assert_eq!(run(&["a", "b", "c", "d"], 9, 2).await, (tally(4, 0, 0), steps));
    }

    #[tokio::test]
    async fn a_piece_that_fails_or_is_lost_keeps_no_other_from_being_done() {
        assert_eq!(run(&["fails", "lost", "a"], 3, 3).await.0, tally(1, 1, 1));
    }

    #[tokio::test]
    async fn a_piece_that_takes_long_holds_up_none_that_becomes_due_meanwhile() {
        assert_eq!(run(&["waits"], 5, 2).await.0, tally(2, 0, 0));
    }

    #[tokio::test]
    async fn without_the_database_the_round_ends() {
        assert_eq!(run(&["a", "away", "b"], 3, 1).await, (Err(Error::Away), "take 1, a, take 1, away".to_owned()));
    }

    #[tokio::test]
    async fn work_that_outlasts_its_time_is_not_settled_and_all_other_work_is() {
        let (tally, steps) = run(&["a", "hangs", "b"], 3, 3).await;
        assert_eq!(tally, Err(Error::Late(Late(WAIT))));
        assert!(steps.contains('a') && steps.contains('b') && !steps.contains("hangs"), "{steps}");
    }

    #[tokio::test]
    async fn a_stop_lets_taken_pieces_be_settled_and_takes_no_more() {
        let (done, steps) = run(&["stops", "a", "b"], 5, 2).await;
        assert_eq!(done, tally(2, 0, 0));
        assert!(steps.starts_with("take 2") && !steps.contains('b'), "{steps}");
    }
}
