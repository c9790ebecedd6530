//! The place (`ctid`) of the checkpoint's row in its table, as the last statement left it.
//!
//! While an old transaction is open, Postgres removes no version of a row, and a look-up by key passes all of them. The known
//! place avoids that. It only narrows the search: name, offset, generation and tokens are compared all the same, so with a
//! wrong place nothing moves.
//!
//! But only a look-up by key removes versions that no transaction needs from a page. Without any, a table grows until it is
//! vacuumed. So the row is looked up every eighth time, unless look-ups are slow: then they take a ninth of the time.

use std::time::{Duration, Instant};

/// Statements per look-up by key.
const LOOK_UP_INTERVAL: u32 = 8;

/// The place of one row, and when to look it up by its key.
#[derive(Debug)]
pub(crate) struct Place {
    known: Option<String>,
    /// Statements since the last look-up.
    age: u32,
    looked_up_at: Instant,
    look_up_took: Duration,
}

impl Default for Place {
    fn default() -> Self {
        Self { known: None, age: 0, looked_up_at: Instant::now(), look_up_took: Duration::ZERO }
    }
}

/// A look-up that has begun.
pub(crate) struct LookUp(Instant);

impl Place {
    /// Where the row is. `None`: it is to be looked up by its key.
    pub fn known(&self) -> Option<String> {
        let is_due =
            self.age >= LOOK_UP_INTERVAL && self.looked_up_at.elapsed() >= self.look_up_took * LOOK_UP_INTERVAL;
        self.known.clone().filter(|_| !is_due)
    }

    /// Another statement may have moved the row.
    pub fn forget(&mut self) {
        self.known = None;
    }

    /// A statement that knew the place has moved the row here.
    pub fn note(&mut self, place: String) {
        self.known = Some(place);
        self.age += 1;
    }

    /// A look-up by key begins.
    pub fn begin_look_up(&mut self) -> LookUp {
        self.forget();
        LookUp(Instant::now())
    }

    /// The look-up has found the row, and moved it here.
    pub fn end_look_up(&mut self, look_up: LookUp, place: String) {
        self.found(place, look_up.0.elapsed());
    }

    fn found(&mut self, place: String, look_up_took: Duration) {
        *self = Self { known: Some(place), age: 1, looked_up_at: Instant::now(), look_up_took };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_up(took: Duration) -> Place {
        let mut place = Place::default();
        place.found("(0,1)".to_owned(), took);
        place
    }

    #[test]
    fn a_row_is_looked_up_every_eighth_time() {
        let mut place = looked_up(Duration::ZERO);
        for number in 2..=8 {
            assert!(place.known().is_some(), "statement {number}");
            place.note(format!("(0,{number})"));
        }
        assert_eq!(place.known(), None);
    }

    #[test]
    fn slow_look_ups_are_made_less_often() {
        let mut place = looked_up(Duration::from_secs(3600));
        for number in 2..=1000 {
            place.note(format!("(0,{number})"));
        }
        assert_eq!(place.known().as_deref(), Some("(0,1000)"));
    }

    #[test]
    fn a_forgotten_place_is_looked_up() {
        let mut place = looked_up(Duration::ZERO);
        place.forget();
        assert_eq!(place.known(), None);
    }
}
