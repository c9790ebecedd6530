//! The host that a request asks for. A server that only this machine may use refuses other names: an attacker could point another
//! name at this address.

use axum::http::HeaderMap;
use axum::http::header::HOST;

/// The header `Host`; empty if it is missing or unreadable.
pub fn host(headers: &HeaderMap) -> &str {
    headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default()
}

/// `localhost:5007` without its port: `localhost`.
pub fn without_port(host: &str) -> &str {
    host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name)
}
