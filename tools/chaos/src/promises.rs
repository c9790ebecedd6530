//! The confirmations of the api, which the checker compares with the database.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::history::History;

/// The confirmations of the api and of late transactions.
#[derive(Default)]
pub(crate) struct Promises {
    /// Confirmed rides: id and distance in mm.
    pub confirmed: Mutex<HashMap<i64, i64>>,
    /// The ids of confirmed bookings.
    pub booked: Mutex<HashSet<i64>>,
    /// Requests of unknown outcome: without a response, or with a response that leaves it open.
    pub unknown_count: AtomicU64,
    /// Requests that were certainly refused.
    pub refused_count: AtomicU64,
}

impl Promises {
    pub fn confirm(&self, id: i64, distance_mm: i64, history: &History) {
        let twice = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).insert(id, distance_mm);
        if twice.is_some() {
            history.violation(&format!("ride {id} was confirmed twice"));
        }
    }

    pub fn booked(&self, id: i64) {
        self.booked.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    pub fn unknown(&self) {
        self.unknown_count.fetch_add(1, Ordering::Relaxed);
    }
}
