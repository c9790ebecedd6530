//! Counts and times requests, by route.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use tokio::time::Instant;

/// Describes the metrics per route. A server that counts requests calls this once.
pub fn describe_metrics() {
    describe_counter!("rocket_rides_http_requests_total", "Requests by method, route and status");
    describe_histogram!(
        "rocket_rides_http_request_duration_seconds",
        Unit::Seconds,
        "From request to answer, by route"
    );
}

/// A request that is being timed.
pub(crate) struct Measurement {
    began_at: Instant,
    method: &'static str,
    route: &'static str,
}

impl Measurement {
    /// Starts timing.
    pub fn begin(method: &Method, route: &'static str) -> Self {
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::HEAD => "HEAD",
            _ => "other",
        };
        Self { began_at: Instant::now(), method, route }
    }

    /// Counts the response.
    pub fn end(self, status: StatusCode) {
        let Self { began_at, method, route } = self;
        let took: Duration = began_at.elapsed();
        let status = status.as_u16().to_string();
        counter!("rocket_rides_http_requests_total", "method" => method, "route" => route, "status" => status)
            .increment(1);
        histogram!("rocket_rides_http_request_duration_seconds", "route" => route).record(took);
    }
}

/// The first of `routes` that a path is on, or `other`. A route with a parameter takes every path that begins like it:
/// metrics need few labels, not the router's exact result.
///
/// ```
/// let routes = ["/rides", "/rides/{id}"];
/// assert_eq!(web::route_of("/rides/7", &routes), "/rides/{id}");
/// assert_eq!(web::route_of("/ride", &routes), "other");
/// ```
pub fn route_of(path: &str, routes: &[&'static str]) -> &'static str {
    let is_on = |route: &&&'static str| match route.split_once('{') {
        Some((start, _)) => path.starts_with(start),
        None => path == **route,
    };
    routes.iter().find(is_on).copied().unwrap_or("other")
}
