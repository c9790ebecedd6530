//! Checks the contract of destinations ([`crate::destination`]), for the tests of every kind. A program that adds a kind of its own
//! calls [`check`] in a test.
//!
//! | step | the contract |
//! | --- | --- |
//! | a store is repeated | it is stored, once |
//! | an undo is repeated, and a late store follows | nothing is stored, and the store is refused for good |
//! | an undo comes before the store | the store is refused for good |
//! | a late undo of attempt 1 | attempt 2 stays |
//! | an undo of the newer of two units about one subject | the older stays |
//! | another unit has the same number, because Postgres was put back | its undo touches only itself |
//! | a store is given up or overtaken, and an undo follows | nothing is stored |
//! | a unit is forgotten, twice | what it has stored stays |

use std::ops::AsyncFn;

use anyhow::{Result, bail, ensure};
use futures_util::FutureExt;
use uuid::Uuid;

use crate::destination::{Destination, Outcome, Refusal, Unit};

/// How often a store and an undo of one attempt overtake each other.
const RACE_COUNT: i64 = 20;

/// Checks a destination. `make` makes a unit that the destination stores, from its number, its key and its attempt. `has` says
/// whether the destination has the part of this attempt: it looks into the place where the destination stores.
///
/// # Errors
/// The step that breaks the contract, and how. Or the destination is away.
pub async fn check(
    destination: &dyn Destination,
    make: impl Fn(i64, Uuid, i32) -> Unit,
    has: impl AsyncFn(&Unit) -> bool,
) -> Result<()> {
    let check = Check { destination, make, has };
    check.repetition().await?;
    check.undo_first().await?;
    check.attempts().await?;
    check.neighbours().await?;
    check.races().await?;
    check.forgotten().await
}

struct Check<'a, M, H> {
    destination: &'a dyn Destination,
    make: M,
    has: H,
}

impl<M: Fn(i64, Uuid, i32) -> Unit, H: AsyncFn(&Unit) -> bool> Check<'_, M, H> {
    /// The first attempt of a new unit.
    fn unit(&self, uow: i64) -> Unit {
        (self.make)(uow, Uuid::new_v4(), 1)
    }

    /// The next attempt of a unit.
    fn after(&self, unit: &Unit) -> Unit {
        (self.make)(unit.uow, unit.key, unit.attempt + 1)
    }

    async fn store(&self, unit: &Unit, step: &str) -> Result<()> {
        let outcome = self.destination.store(unit).await;
        ensure!(outcome == Outcome::Stored, "{step}: the store ended with {outcome:?}");
        self.expect(unit, true, step).await
    }

    async fn undo(&self, unit: &Unit, step: &str) -> Result<()> {
        if let Err(refusal) = self.destination.undo(unit.reference()).await {
            bail!("{step}: the undo failed: {refusal}");
        }
        self.expect(unit, false, step).await
    }

    /// A store of an attempt that was undone.
    async fn refuse(&self, unit: &Unit, step: &str) -> Result<()> {
        match self.destination.store(unit).await {
            Outcome::Failed(refusal) if refusal.status == Refusal::undone().status => {}
            outcome => bail!("{step}: a store of an undone attempt ended with {outcome:?}, and not with 409"),
        }
        self.expect(unit, false, step).await
    }

    async fn expect(&self, unit: &Unit, is_stored: bool, step: &str) -> Result<()> {
        let verb = if is_stored { "lacks" } else { "has" };
        let attempt = unit.attempt;
        ensure!((self.has)(unit).await == is_stored, "{step}: the destination {verb} the part of attempt {attempt}");
        Ok(())
    }

    async fn repetition(&self) -> Result<()> {
        let unit = self.unit(1);
        for step in ["a store", "a second store"] {
            self.store(&unit, step).await?;
        }
        for step in ["an undo", "a second undo"] {
            self.undo(&unit, step).await?;
        }
        self.refuse(&unit, "a late store").await?;
        self.undo(&unit, "an undo after a late store").await
    }

    async fn undo_first(&self) -> Result<()> {
        let unit = self.unit(2);
        self.undo(&unit, "an undo before the store").await?;
        self.refuse(&unit, "a store after its undo").await
    }

    async fn attempts(&self) -> Result<()> {
        let first = self.unit(3);
        let second = self.after(&first);
        self.store(&first, "attempt 1").await?;
        self.undo(&first, "the undo of attempt 1").await?;
        self.store(&second, "attempt 2").await?;
        self.undo(&first, "a late undo of attempt 1").await?;
        self.expect(&second, true, "a late undo of attempt 1").await?;
        self.refuse(&first, "a late store of attempt 1").await?;
        self.expect(&second, true, "a late store of attempt 1").await?;
        self.undo(&second, "the undo of attempt 2").await
    }

    async fn neighbours(&self) -> Result<()> {
        let (older, newer, same) = (self.unit(4), self.unit(5), self.unit(4));
        for unit in [&older, &newer, &same] {
            self.store(unit, "units beside each other").await?;
        }
        self.undo(&newer, "the undo of the newer unit").await?;
        self.undo(&same, "the undo of another unit with the same number").await?;
        self.expect(&older, true, "the undo of other units").await
    }

    async fn races(&self) -> Result<()> {
        for round in 0..RACE_COUNT {
            let unit = self.unit(100 + round);
            // A store that is given up may go on, on the server or in another thread.
            if round % 2 == 0 {
                let _ = self.destination.store(&unit).now_or_never();
            }
            let (undone, stored) =
                futures_util::join!(self.destination.undo(unit.reference()), self.destination.store(&unit));
            ensure!(undone.is_ok(), "an undo beside a store: {undone:?}");
            let is_known = match &stored {
                Outcome::Stored => true,
                Outcome::Failed(refusal) => refusal.status == Refusal::undone().status,
                Outcome::Declined => false,
            };
            ensure!(is_known, "a store beside an undo ended with {stored:?}");
            self.refuse(&unit, "a store that was overtaken by its undo").await?;
        }
        Ok(())
    }

    async fn forgotten(&self) -> Result<()> {
        let first = self.unit(1000);
        let second = self.after(&first);
        self.undo(&first, "the undo of attempt 1").await?;
        self.store(&second, "attempt 2").await?;
        for step in ["a unit is forgotten", "a unit is forgotten again"] {
            if let Err(refusal) = self.destination.forget(second.reference()).await {
                bail!("{step}: {refusal}");
            }
            self.expect(&second, true, step).await?;
        }
        Ok(())
    }
}
