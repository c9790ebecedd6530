//! The metrics of the api.

use monitor::{counter, declare_counter, describe_histogram, histogram};

/// Describes every metric.
pub(crate) fn describe() {
    web::describe_metrics();
    booking::describe_metrics();
    declare_counter("rocket_rides_rides_written_total", "Guests' rides that were written and confirmed", &[]);
    describe_histogram!("rocket_rides_group_size", "Rides that were committed together");
    declare_counter("rocket_rides_idempotent_replays_total", "Bookings that were answered as they were before", &[]);
    declare_counter(
        "rocket_rides_idempotency_conflicts_total",
        "Bookings whose key is in use or was used otherwise",
        &[],
    );
}

/// Counts the rides of a group that was committed.
pub(crate) fn written(ride_count: usize) {
    counter!("rocket_rides_rides_written_total").increment(ride_count as u64);
    histogram!("rocket_rides_group_size").record(ride_count as f64);
}
