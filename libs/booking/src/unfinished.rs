//! The bookings that are not finished, for metrics and for people.

use std::time::Duration;

use monitor::{declare_gauge, gauge};
use pglog::Session;

use crate::breaker::Breaker;
use crate::charging::ASK_UNTIL;
use crate::desk::Desk;
use crate::error::Error;
use crate::order::TARGET;

/// A booking that is older, has a ride, and has no charge is doubtful: it may be charged, and the processor cannot be asked
/// by the key any more.
pub const DOUBTFUL_AFTER: Duration = ASK_UNTIL;

const OLDEST: &str = "rocket_rides_booking_unfinished_seconds";
const DOUBTFUL: &str = "rocket_rides_bookings_doubtful";

/// The bookings that are not finished.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Unfinished {
    /// The age of the oldest; 0: there is none.
    pub oldest_s: f64,
    /// Those that are doubtful: see [`DOUBTFUL_AFTER`].
    pub doubtful_count: i64,
}

/// Describes every metric of a process that books.
pub fn describe_metrics() {
    payments::describe_metrics();
    Breaker::describe();
}

impl Unfinished {
    /// Describes the gauges.
    pub fn describe() {
        declare_gauge(OLDEST, "The age of the oldest booking that is not finished; 0: there is none", &[]);
        declare_gauge(
            DOUBTFUL,
            "Bookings that may be charged and are too old for the processor to be asked by key",
            &[],
        );
    }

    /// Sets the gauges.
    pub fn record(&self) {
        gauge!(OLDEST).set(self.oldest_s);
        gauge!(DOUBTFUL).set(self.doubtful_count as f64);
    }
}

/// Counts the bookings that are not finished.
///
/// # Errors
/// Postgres is away.
pub async fn unfinished(desk: &Desk) -> Result<Unfinished, Error> {
    let statement = "-- booking::unfinished
        SELECT COALESCE(extract(epoch FROM now() - min(created_at)), 0)::float8,
               count(*) FILTER (WHERE recovery_point = 'ride_created' AND created_at < now() - $2 * INTERVAL '1 second')
        FROM tracked_operations WHERE status <> 'finished' AND starts_with(target, $1)";
    let row = desk.client().await?.query_one(statement, &[&TARGET, &DOUBTFUL_AFTER.as_secs_f64()]).await?;
    Ok(Unfinished { oldest_s: row.get(0), doubtful_count: row.get(1) })
}
