//! A fold of your own with a state: the longest ride. Its state is stored in the row of the checkpoint, so it needs no table.
//!
//! ```text
//! DATABASE_URL=postgres://… REDIS_URL=redis://… cargo run -p consumer --example longest -- longest0
//! ```
//!
//! `examples/python/fold.py` is the same fold in Python. The programs can continue with each other's consumers, because fold
//! name, version and state are the same.

mod program;

use std::process::ExitCode;

use consumer::{FoldId, Registry, Rejection, StateFold, read_object, state_fold};
use pglog::Record;
use serde::{Deserialize, Serialize};

fn main() -> ExitCode {
    program::main(FOLDS)
}

/// The folds of this program.
const FOLDS: Registry = Registry(&[state_fold::<Longest>]);

/// The longest ride that counts, in mm.
const DISTANCE_MM_MAX: i64 = 1_000_000_000_000;

/// The state, as its JSON is stored.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Longest {
    ride_id: Option<i64>,
    distance_mm: i64,
    ride_count: i64,
}

/// The fields that the payload of `ride create` must have.
#[derive(Deserialize)]
struct Ride {
    id: i64,
    distance_mm: i64,
}

impl StateFold for Longest {
    const ID: FoldId = FoldId { name: "longest", version: 1 };

    fn takes(&self, object: &str, action: &str) -> bool {
        object == "ride" && action == "create"
    }

    fn apply(&mut self, record: &Record<'_>) -> Result<(), Rejection> {
        let ride: Ride = read_object(record, "a ride")?;
        if ride.id < 1 || !(1..=DISTANCE_MM_MAX).contains(&ride.distance_mm) {
            return Err(Rejection("id or distance_mm is out of range".to_owned()));
        }
        self.ride_count += 1;
        if ride.distance_mm > self.distance_mm {
            (self.ride_id, self.distance_mm) = (Some(ride.id), ride.distance_mm);
        }
        Ok(())
    }

    fn summary(&self) -> String {
        format!("longest={}mm rides={}", self.distance_mm, self.ride_count)
    }
}
