//! The tests of the suite that a guest's kernel cannot pass, because it is older than what they test.
//!
//! Each fails in one guest over its kernel's loopback (`--guests uml --all`), where there is no device. A version is the
//! oldest that was tried and passes; the change of the kernel may be in an older one.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hvsock_guests::Guest;

use crate::expected::{Expected, Reason};

/// The tests that do not pass, by their number.
pub type Lacking = BTreeMap<usize, Expected>;

/// The version of the guests under QEMU. 6.1, that of User-mode Linux in Debian 12, fails.
const NEWER: &str = "6.12";

/// The half of a test that checks the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Server,
    Client,
}

/// Tests by their name, each with a version that passes, and why 6.1 fails.
const NEEDS: [(&str, Half, &str); 10] = [
    // ENOMEM in place of the error of the transport or of the buffer.
    ("SOCK_SEQPACKET invalid receive buffer", Half::Server, NEWER),
    ("SOCK_SEQPACKET big message", Half::Client, NEWER),
    ("SOCK_STREAM test invalid buffer", Half::Client, NEWER),
    ("SOCK_SEQPACKET test invalid buffer", Half::Client, NEWER),
    // MSG_PEEK of a SOCK_SEQPACKET socket fails.
    ("SOCK_SEQPACKET MSG_PEEK", Half::Server, NEWER),
    // A write after a shutdown sends no SIGPIPE.
    ("SOCK_STREAM SHUT_WR", Half::Client, NEWER),
    ("SOCK_STREAM SHUT_RD", Half::Client, NEWER),
    // There is no SO_ZEROCOPY.
    ("SOCK_STREAM MSG_ZEROCOPY", Half::Client, NEWER),
    ("SOCK_SEQPACKET MSG_ZEROCOPY", Half::Client, NEWER),
    // Setting SO_RCVLOWAT sends no credit update, so the test hangs.
    (RCVLOWAT, Half::Server, NEWER),
];

/// The test that does not fail but hangs.
const RCVLOWAT: &str = "SOCK_STREAM virtio credit update + SO_RCVLOWAT";

/// The tests that the kernel of one of these guests cannot pass.
pub fn lacking(server: &Guest, client: &Guest, names: &[String]) -> Result<Lacking> {
    let release = |guest: &Guest| -> Result<(u32, u32)> {
        let release = guest.run("uname -r", Duration::from_secs(60))?.text();
        let (name, vmm) = (guest.name(), guest.vmm().name());
        eprintln!("kernel:  {release} in {name}, {vmm}");
        version(&release).context(release)
    };
    let (server, client) = (release(server)?, release(client)?);
    let mut lacking = Lacking::new();
    for (name, half, needed) in NEEDS {
        let has = match half {
            Half::Server => server,
            Half::Client => client,
        };
        let is_lacking = version(needed).is_some_and(|needed| has < needed);
        let found = names.iter().position(|other| other == name);
        if let (true, Some(id)) = (is_lacking, found) {
            let reason = Reason::Kernel(needed);
            let expected = match name {
                RCVLOWAT => Expected::Hang(reason),
                _ => Expected::Failure(reason),
            };
            lacking.insert(id, expected);
        }
    }
    Ok(lacking)
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
