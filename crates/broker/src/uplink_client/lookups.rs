//! Look-ups of names at a host that gives this broker no uplink: each on a stream of its own, which needs no
//! privileged port.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hvsock_endpoint::LookupKind;
use hvsock_endpoint::uplink::{GuestFrame, HostFrame};
use mio::Token;

use super::stream::{FrameStream, Read};

/// How long an answer may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);
/// The most at a time. The host has a limit of streams, too.
const MOST: usize = 4;

/// A look-up.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) stream: FrameStream,
    pub(super) token: Token,
    /// The name, until it is asked for.
    name: Option<String>,
    deadline: Instant,
}

/// The look-ups by number.
#[derive(Debug, Default)]
pub(super) struct Lookups(BTreeMap<u64, Lookup>);

impl Lookups {
    /// Whether there may be one more.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < MOST
    }

    /// Adds one, whose stream is being connected.
    pub(super) fn add(&mut self, number: u64, name: String, socket: OwnedFd, token: Token) {
        let lookup = Lookup {
            stream: FrameStream::new(socket),
            token,
            name: Some(name),
            deadline: Instant::now() + TIMEOUT,
        };
        self.0.insert(number, lookup);
    }

    /// One.
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Lookup> {
        self.0.get_mut(&number)
    }

    /// Removes one.
    pub(super) fn remove(&mut self, number: u64) -> Option<Lookup> {
        self.0.remove(&number)
    }

    /// One whose time has passed.
    pub(super) fn expired(&self, now: Instant) -> Option<u64> {
        let mut all = self.0.iter();
        let found = all.find(|(_, lookup)| lookup.deadline <= now);
        found.map(|(number, _)| *number)
    }

    /// When the next one's time has passed.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().map(|lookup| lookup.deadline).min()
    }
}

impl Lookup {
    /// Asks, once the stream is connected, and reads the answer: the GUID, or that there is none. `None` if
    /// there is no answer yet.
    pub(super) fn proceed(&mut self) -> Option<Option<[u8; 16]>> {
        if let Some(name) = self.name.take() {
            let kind = LookupKind::Service;
            let asked = self.stream.add(&GuestFrame::Lookup { kind, name });
            if asked.and_then(|()| self.stream.flush()).is_err() {
                return Some(None);
            }
        }
        self.stream.ready();
        match self.stream.read() {
            Read::Nothing => None,
            Read::Frame(HostFrame::Found { guid }) => Some(Some(guid)),
            Read::Frame(_) | Read::Ended(_) => Some(None),
        }
    }
}
