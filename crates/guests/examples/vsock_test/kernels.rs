//! The tests of the suite that a guest's kernel cannot pass, because it is older than what they test.
//!
//! Each has been seen to fail in one guest over its kernel's loopback (`--guests uml --all`), where there is no
//! device. A version is the oldest that was tried and passes; the change of the kernel may be in an older one.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hvsock_guests::Guest;

/// The version of Linux that a test needs, by the test's number.
pub type Lacking = BTreeMap<usize, &'static str>;

/// The version of the guests under QEMU. 6.1, that of User-mode Linux in Debian 12, fails.
const NEWER: &str = "6.12";

/// Tests by their name, each with a version that passes, and why 6.1 fails.
const NEEDS: [(&str, &str); 10] = [
    // ENOMEM in place of the error of the transport or of the buffer.
    ("SOCK_SEQPACKET invalid receive buffer", NEWER),
    ("SOCK_SEQPACKET big message", NEWER),
    ("SOCK_STREAM test invalid buffer", NEWER),
    ("SOCK_SEQPACKET test invalid buffer", NEWER),
    // MSG_PEEK of a SOCK_SEQPACKET socket fails.
    ("SOCK_SEQPACKET MSG_PEEK", NEWER),
    // A write after a shutdown sends no SIGPIPE.
    ("SOCK_STREAM SHUT_WR", NEWER),
    ("SOCK_STREAM SHUT_RD", NEWER),
    // There is no SO_ZEROCOPY.
    ("SOCK_STREAM MSG_ZEROCOPY", NEWER),
    ("SOCK_SEQPACKET MSG_ZEROCOPY", NEWER),
    // Setting SO_RCVLOWAT sends no credit update, so the test hangs.
    ("SOCK_STREAM virtio credit update + SO_RCVLOWAT", NEWER),
];

/// The tests that the older kernel of these guests cannot pass; none if `all` are to be run.
pub fn lacking(guests: &[&Guest], names: &[String], all: bool) -> Result<Lacking> {
    let mut oldest = (u32::MAX, 0);
    for guest in guests {
        let release = guest.run("uname -r", Duration::from_secs(60))?.text();
        eprintln!(
            "kernel:  {release} in {}, {}",
            guest.name(),
            guest.vmm().name()
        );
        oldest = oldest.min(version(&release).context(release)?);
    }
    let mut lacking = Lacking::new();
    let needs = NEEDS.iter().filter(|_| !all);
    for (name, needed) in needs.copied() {
        let is_lacking = version(needed).is_some_and(|needed| oldest < needed);
        let found = names.iter().position(|other| other == name);
        if let (true, Some(id)) = (is_lacking, found) {
            lacking.insert(id, needed);
        }
    }
    Ok(lacking)
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
