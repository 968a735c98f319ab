//! The addresses of this partition, from the kernel's tables.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The most addresses of one kind.
const MAX_ADDRESSES: usize = 256;

/// The addresses without those of the loopback interface and without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4, in the kernel's order.
    pub v4: Vec<Ipv4Addr>,
    /// IPv6, in the kernel's order.
    pub v6: Vec<Ipv6Addr>,
}

/// All current addresses. Empty if the tables cannot be read.
pub fn all() -> Addresses {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Addresses {
        v4: of_trie(&read("/proc/net/fib_trie")),
        v6: of_table(&read("/proc/net/if_inet6")),
    }
}

/// The local hosts of `fib_trie`: a line `|-- ADDRESS`, followed by one with `/32 host LOCAL`.
fn of_trie(trie: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in trie.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse().ok();
        } else if line.trim_start().starts_with("/32 host LOCAL") {
            let address = last.filter(|address| !address.is_loopback());
            found.extend(address.filter(|address| !found.contains(address)));
        }
    }
    found.truncate(MAX_ADDRESSES);
    found
}

/// The addresses of `if_inet6`: 32 digits, then the interface's number, prefix, scope, flags and name.
fn of_table(table: &str) -> Vec<Ipv6Addr> {
    let lines = table.lines().take(MAX_ADDRESSES);
    let addresses = lines.filter_map(|line| {
        let digits = line.split_whitespace().next()?;
        let bits = u128::from_str_radix(digits, 16).ok()?;
        Some(Ipv6Addr::from(bits))
    });
    addresses.filter(|address| !address.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    const TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.0.2.0/24 2 0 2
        +-- 10.0.2.0/28 2 0 2
           |-- 10.0.2.0
              /24 link UNICAST
           |-- 10.0.2.15
              /32 host LOCAL
        |-- 10.0.2.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
           |-- 127.0.0.1
              /32 host LOCAL
Local:
           |-- 10.0.2.15
              /32 host LOCAL
";

    #[test]
    fn local_hosts_are_found_in_the_trie_once_each() {
        assert_eq!(of_trie(TRIE), [Ipv4Addr::new(10, 0, 2, 15)]);
        assert_eq!(
            of_trie("|-- nonsense\n/32 host LOCAL\n"),
            [] as [Ipv4Addr; 0]
        );
    }

    #[test]
    fn ipv6_addresses_are_hexadecimal() {
        let table = "fe800000000000000000000000000001 02 40 20 80     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\nodd\n";
        assert_eq!(of_table(table), ["fe80::1".parse::<Ipv6Addr>().unwrap()]);
    }

    /// Compares with the source address that the kernel chooses, if there is a route.
    #[test]
    fn the_address_that_the_kernel_would_use_is_among_them() {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let source = socket.local_addr().unwrap().ip();
            assert!(all().v4.into_iter().any(|address| address == source));
        }
    }
}
