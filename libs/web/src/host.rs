//! The host that a request asks for. A server answers under the names that it is meant for: an attacker could point another name
//! at its address, and a browser would then let the attacker's page read the responses (DNS rebinding).

use std::net::IpAddr;
use std::str::FromStr;

use axum::http::HeaderMap;
use axum::http::header::HOST;

/// The names under which a server answers. Three kinds are always among them, because no attacker can own them: IP addresses
/// (probes use them), `localhost`, and other names without a dot (a service of Docker Compose or Kubernetes).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    is_any: bool,
    names: Vec<String>,
}

/// A list such as `rides.example.com,api.rides.svc.cluster.local`, or `*` for any name.
impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut hosts = Self::default();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
            match name {
                "*" => hosts.is_any = true,
                _ if is_name => hosts.names.push(name.to_ascii_lowercase()),
                _ => {
                    return Err(format!(
                        "{name} is no host name: give names such as rides.example.com, without scheme, port or path, \
                         and commas between them; or * for any name"
                    ));
                }
            }
        }
        Ok(hosts)
    }
}

impl Hosts {
    /// Whether a request with these headers asks for a name of this server. A request without a `Host`, which no browser
    /// sends, does.
    pub fn accept(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(HOST).iter();
        let Some(value) = values.next() else { return true };
        let (Ok(host), None) = (value.to_str(), values.next()) else { return false };
        let name = without_port(host);
        !name.is_empty() && (self.is_any || address(name).is_some() || self.has(name))
    }

    fn has(&self, name: &str) -> bool {
        // A name may end with the dot of the root.
        let name = name.strip_suffix('.').unwrap_or(name);
        !name.contains('.') || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Whether the `Host` of a request can only mean this machine: `127.0.0.1:5013`, `localhost`.
pub fn is_this_machine(headers: &HeaderMap) -> bool {
    let name = without_port(headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default());
    name.eq_ignore_ascii_case("localhost") || address(name).is_some_and(|address| address.is_loopback())
}

/// The address in `127.0.0.1` or `[::1]`.
fn address(name: &str) -> Option<IpAddr> {
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name).parse().ok()
}

/// `localhost:5007` without its port: `localhost`.
fn without_port(host: &str) -> &str {
    host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn asking_for(hosts: &[&str]) -> HeaderMap {
        hosts.iter().map(|host| (HOST, HeaderValue::from_str(host).unwrap())).collect()
    }

    #[test]
    fn only_names_that_no_other_machine_can_have_mean_this_machine() {
        for host in ["127.0.0.1:5013", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:5013", "[::1]"] {
            assert!(is_this_machine(&asking_for(&[host])), "{host}");
        }
        for host in
            ["rides.example.com:5013", "127.0.0.1.example.com", "", ":5013", "10.0.0.1:5013", "localhost.example.com"]
        {
            assert!(!is_this_machine(&asking_for(&[host])), "{host}");
        }
    }

    #[test]
    fn a_server_answers_under_its_own_names_only() {
        let (default, listed): (Hosts, Hosts) = (Hosts::default(), "Rides.example.com, b.example".parse().unwrap());
        let own =
            ["127.0.0.1:5005", "10.0.0.7", "[2001:db8::1]:5005", "[::1]", "localhost", "LOCALHOST.:5005", "api:80"];
        for host in own {
            assert!(default.accept(&asking_for(&[host])) && listed.accept(&asking_for(&[host])), "{host}");
        }
        for host in ["rides.example.com", "RIDES.EXAMPLE.COM:443", "rides.example.com.", "b.example:80"] {
            assert!(listed.accept(&asking_for(&[host])) && !default.accept(&asking_for(&[host])), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "rides.example.com.evil.example", "", ":80", "a.b:x"] {
            assert!(!listed.accept(&asking_for(&[host])) && !default.accept(&asking_for(&[host])), "{host}");
        }
        assert!(!default.accept(&asking_for(&["localhost", "evil.example"])), "two headers");
        assert!(default.accept(&HeaderMap::new()));
        assert!("*".parse::<Hosts>().unwrap().accept(&asking_for(&["evil.example"])));
    }

    #[test]
    fn a_setting_that_is_no_list_of_names_is_refused() {
        assert_eq!("".parse(), Ok(Hosts::default()));
        for text in ["https://a.example", "a.example:80", "a.example/x", "a b", "*.a.example", "ü.example"] {
            let refused = text.parse::<Hosts>();
            assert!(refused.is_err_and(|error| error.contains("is no host name")), "{text}");
        }
    }
}
