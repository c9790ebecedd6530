//! Ports for processes that are started later.
//!
//! Two launchers may choose the same free port, because their processes listen on it only later. So a launcher claims each port:
//! it binds the UDP port of the same number, which no process here uses. The claim ends when the launcher ends, even by a kill.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use anyhow::{Result, ensure};

/// Systems give the ports above to connections, as their own ends: a process that is started again could find one taken.
const LAST_PORT: u16 = 32_767;

/// A TCP port of 127.0.0.1 that no other launcher chooses while this value lives.
#[derive(Debug)]
pub struct ClaimedPort {
    /// The number.
    pub port: u16,
    _claim: UdpSocket,
}

impl ClaimedPort {
    /// Claims one port, unless it is claimed by another or in use.
    pub fn new(port: u16) -> Option<Self> {
        let claim = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        Some(Self { port, _claim: claim })
    }
}

/// Claims the first `count` ports from `first` on that are free.
///
/// # Errors
/// There are not so many.
pub fn claim_ports(first: u16, count: usize) -> Result<Vec<ClaimedPort>> {
    let ports: Vec<ClaimedPort> = (first..=LAST_PORT).filter_map(ClaimedPort::new).take(count).collect();
    ensure!(ports.len() == count, "no {count} ports are free from {first} to {LAST_PORT}");
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::{LAST_PORT, claim_ports};

    fn numbers(claimed: &[super::ClaimedPort]) -> Vec<u16> {
        claimed.iter().map(|claimed| claimed.port).collect()
    }

    #[test]
    fn ports_that_are_claimed_or_in_use_are_passed_over() {
        let first = claim_ports(20_000, 3).unwrap();
        let second = claim_ports(20_000, 3).unwrap();
        assert!(second[0].port > first[2].port, "{first:?} {second:?}");
        let listener = std::net::TcpListener::bind(("127.0.0.1", second[0].port)).unwrap();
        let taken = second[0].port;
        drop((first, second));
        assert!(!numbers(&claim_ports(20_000, 6).unwrap()).contains(&taken));
        drop(listener);
    }

    #[test]
    fn a_range_without_so_many_free_ports_is_an_error() {
        let error = claim_ports(LAST_PORT, 2).unwrap_err().to_string();
        assert_eq!(error, "no 2 ports are free from 32767 to 32767");
    }
}
