//! What an api counts and measures.

use std::time::Duration;

use hyper::Method;
use monitor::{Unit, counter, declare_counter, describe_counter, describe_histogram, histogram};

/// Says what the metrics mean.
pub(crate) fn describe() {
    describe_counter!("rocket_rides_http_requests_total", "Requests by method, route and status");
    describe_histogram!(
        "rocket_rides_http_request_duration_seconds",
        Unit::Seconds,
        "From request to answer, by route"
    );
    declare_counter("rocket_rides_rides_written_total", "Guests' rides that were written and confirmed", &[]);
    describe_histogram!("rocket_rides_group_size", "Rides that were committed together");
    declare_counter("rocket_rides_idempotent_replays_total", "Bookings that were answered as they were before", &[]);
    declare_counter(
        "rocket_rides_idempotency_conflicts_total",
        "Bookings whose key is in use or was used otherwise",
        &[],
    );
}

pub(crate) fn answered(method: &Method, path: &str, status: u16, took: Duration) {
    let method = match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        _ => "other",
    };
    let route = match path {
        "/rides" => "/rides",
        "/totals" => "/totals",
        "/healthz" => "/healthz",
        "/openapi.json" => "/openapi.json",
        _ if path.starts_with("/rides/") => "/rides/{id}",
        _ if path.starts_with("/docs") => "/docs",
        _ => "other",
    };
    counter!("rocket_rides_http_requests_total", "method" => method, "route" => route, "status" => status.to_string())
        .increment(1);
    histogram!("rocket_rides_http_request_duration_seconds", "route" => route).record(took);
}

pub(crate) fn written(ride_count: usize) {
    counter!("rocket_rides_rides_written_total").increment(ride_count as u64);
    histogram!("rocket_rides_group_size").record(ride_count as f64);
}
