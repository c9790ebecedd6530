//! The client's address behind reverse proxies.
//!
//! Source: RFC 7239 for `Forwarded`. `X-Forwarded-For` has no standard; each proxy appends the address that it has seen.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The proxies that are trusted to tell the address of a client. By default none is, because a client can send the same headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

/// A list of addresses and networks: `10.0.0.0/8,::1`.
impl FromStr for Proxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let network = |part: &str| {
            let network = part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| {
                format!("{part} is no address: give addresses or networks such as 10.0.0.0/8, with commas between them")
            })
        };
        parts.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl Proxies {
    /// The address of the client. Each trusted proxy names the peer that it has seen, the last proxy at the end. So the list is
    /// read from its end, up to the first address that is no trusted proxy.
    ///
    /// If the two headers lead to different clients, a proxy sets one of them and passes on the other as the client sent it.
    /// Then neither is believed, and the result is the address of the last proxy.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.trust(peer) {
            return peer;
        }
        let listed = [hops(headers, "x-forwarded-for", address), hops(headers, "forwarded", forwarded_for)];
        let [first, second] = listed.map(|hops| hops.map(|hops| self.client_of(peer, &hops)));
        match (first, second) {
            (Some(first), Some(second)) if first != second => peer,
            (first, second) => first.or(second).unwrap_or(peer),
        }
    }

    fn client_of(&self, peer: IpAddr, hops: &[Option<IpAddr>]) -> IpAddr {
        let mut client = peer;
        for hop in hops.iter().rev() {
            match hop {
                Some(hop) if self.trust(client) => client = *hop,
                // A proxy that hides the address, or an untrusted proxy: nothing before it is certain.
                _ => break,
            }
        }
        client
    }

    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// The addresses in a header that may be sent several times. `None`: it is not there.
fn hops(headers: &HeaderMap, name: &str, read: fn(&str) -> Option<IpAddr>) -> Option<Vec<Option<IpAddr>>> {
    let mut values = headers.get_all(name).iter().peekable();
    values.peek()?;
    let texts = values.map(|value| value.to_str().unwrap_or_default());
    Some(texts.flat_map(|text| text.split(',')).map(|hop| read(hop.trim())).collect())
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()));
    address.map(|address| address.to_canonical())
}

/// The address in `for="[2001:db8::1]:4711";proto=https`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    address(node.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn client(proxies: &str, peer: &str, headers: &[(&str, &str)]) -> String {
        let pair =
            |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        let headers = headers.iter().map(pair).collect();
        proxies.parse::<Proxies>().unwrap().client(peer.parse().unwrap(), &headers).to_string()
    }

    const XFF: &str = "x-forwarded-for";

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        assert_eq!(client("", "10.0.0.1", &[(XFF, "1.2.3.4")]), "10.0.0.1");
        assert_eq!(client("10.0.0.2", "10.0.0.1", &[(XFF, "1.2.3.4")]), "10.0.0.1");
        assert_eq!(client("10.0.0.0/24", "10.0.0.1", &[(XFF, "1.2.3.4")]), "1.2.3.4");
        assert_eq!(client("10.0.0.0/24", "10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.0/24", "::ffff:10.0.0.1", &[(XFF, "::ffff:1.2.3.4")]), "1.2.3.4");
    }

    #[test]
    fn the_list_is_read_from_its_end() {
        let proxies = "10.0.0.0/8, ::1";
        // The client has sent the first addresses itself.
        assert_eq!(client(proxies, "10.0.0.1", &[(XFF, "6.6.6.6, 1.2.3.4, 10.0.0.7")]), "1.2.3.4");
        assert_eq!(client(proxies, "::1", &[(XFF, "6.6.6.6"), (XFF, "1.2.3.4"), (XFF, "10.0.0.7")]), "1.2.3.4");
        assert_eq!(client(proxies, "10.0.0.1", &[(XFF, "1.2.3.4, unknown, 10.0.0.7")]), "10.0.0.7");
        assert_eq!(client(proxies, "10.0.0.1", &[(XFF, "10.0.0.9, 10.0.0.7")]), "10.0.0.9");
        assert_eq!(client(proxies, "10.0.0.1", &[(XFF, "")]), "10.0.0.1");
        for (written, read) in
            [("1.2.3.4:80", "1.2.3.4"), ("[2001:db8::1]:80", "2001:db8::1"), ("2001:db8::1", "2001:db8::1")]
        {
            assert_eq!(client(proxies, "10.0.0.1", &[(XFF, written)]), read);
        }
    }

    #[test]
    fn forwarded_is_read_alike_and_a_contradiction_is_not_believed() {
        let forwarded = "for=6.6.6.6, For=\"[2001:db8::1]:4711\";proto=https, by=10.0.0.7; for=10.0.0.8";
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &[("forwarded", forwarded)]), "2001:db8::1");
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &[("forwarded", "for=_hidden")]), "10.0.0.1");
        let both = [("forwarded", "for=6.6.6.6"), (XFF, "1.2.3.4")];
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &both), "10.0.0.1");
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &[("forwarded", "for=1.2.3.4"), (XFF, "1.2.3.4")]), "1.2.3.4");
    }

    #[test]
    fn a_setting_that_is_no_list_of_addresses_is_refused() {
        for text in ["proxy.example", "10.0.0.0/33", "10.0.0", "*"] {
            assert!(text.parse::<Proxies>().is_err_and(|error| error.contains("is no address")), "{text}");
        }
    }
}
