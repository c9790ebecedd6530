//! Which addresses a webhook may connect to.
//!
//! A declared URL may name a server of the own network by mistake or on purpose, and its owner may point the name there later. So a
//! webhook connects to public addresses only, unless the declaration allows the others.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;

/// Which addresses may be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Public addresses only.
    Public,
    /// Every address, also this machine's and those of its network.
    Private,
}

impl Reach {
    /// Whether this address may be connected.
    pub fn allows(self, address: IpAddr) -> bool {
        self == Self::Private || is_public(address)
    }
}

/// Networks that are not public. Source: the registries of special-purpose addresses of IANA.
static NOT_PUBLIC: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    [
        "0.0.0.0/8",       // this network
        "10.0.0.0/8",      // private
        "100.64.0.0/10",   // shared by the customers of a carrier
        "127.0.0.0/8",     // this machine
        "169.254.0.0/16",  // this link; the metadata service of clouds
        "172.16.0.0/12",   // private
        "192.0.0.0/24",    // protocols
        "192.0.2.0/24",    // documentation
        "192.88.99.0/24",  // 6to4 relays
        "192.168.0.0/16",  // private
        "198.18.0.0/15",   // benchmarks
        "198.51.100.0/24", // documentation
        "203.0.113.0/24",  // documentation
        "224.0.0.0/4",     // multicast
        "240.0.0.0/4",     // reserved; broadcast
        "2001::/23",       // protocols; Teredo, which contains IPv4
        "2001:db8::/32",   // documentation
        "2002::/16",       // 6to4, which contains IPv4
        "3fff::/20",       // documentation
    ]
    .map(|network| network.parse().expect("a network"))
    .to_vec()
});

/// Public addresses of IPv6 are in here.
const GLOBAL_UNICAST: &str = "2000::/3";

/// Translates to IPv4: the last 32 bits are the address.
const TRANSLATED: &str = "64:ff9b::/96";

/// Whether the address is of a public network.
pub fn is_public(address: IpAddr) -> bool {
    let is_in = |network: &str| network.parse::<IpNet>().is_ok_and(|network| network.contains(&address));
    match address {
        // `::ffff:127.0.0.1` connects to 127.0.0.1.
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => is_public(v6.to_canonical()),
        IpAddr::V6(v6) if is_in(TRANSLATED) => is_public(IpAddr::V4((v6.to_bits() as u32).into())),
        IpAddr::V6(_) if !is_in(GLOBAL_UNICAST) => false,
        _ => !NOT_PUBLIC.iter().any(|network| network.contains(&address)),
    }
}

#[cfg(test)]
mod tests {
    use super::is_public;

    #[test]
    fn public_addresses_are_told_from_all_others() {
        let public = [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ];
        let private = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001:0:7f00:1::",
            "2001:db8::1",
            "fec0::1",
        ];
        for address in public {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in private {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }
}
