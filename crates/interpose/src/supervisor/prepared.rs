//! An endpoint connection that is prepared for the next connect: the broker has made, or is making, what the program's
//! socket is to be connected to. So of two exchanges with the broker one remains in the program's call.
//!
//! It is made while a connect waits for the broker, and only if the connect before was less than [`LIFETIME`] ago:
//! a program that connects once costs nothing more. There is at most one, and it is not kept for longer than that.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hvsock::Endpoint;
use hvsock_endpoint::{BrokerMessage, ClientMessage};
use hvsock_sys::remote::Credentials;

use crate::broker::{Closed, Connection};

/// How long a prepared connection is kept, and within which time of one connect another one is expected. Brokers
/// close connections without a request after 10 seconds.
const LIFETIME: Duration = Duration::from_secs(1);

/// What exists ahead for the next connect, and whether one is expected.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    next: Option<Next>,
    last_connect: Option<Instant>,
}

/// A connection on which ATTACH was sent.
#[derive(Debug)]
struct Next {
    connection: Connection,
    credentials: Option<Credentials>,
    filler: u32,
    until: Instant,
}

/// A prepared connection that serves a connect.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The connection, on which only the request is missing.
    pub(crate) connection: Connection,
    /// What the program's socket is connected to; `None` if the broker has not answered yet.
    pub(crate) attachable: Option<OwnedFd>,
}

impl Prepared {
    /// The prepared connection, if there is one with these rights and for this many bytes, and the broker has not closed
    /// it.
    pub(crate) fn take(
        &mut self,
        credentials: Option<&Credentials>,
        filler: u32,
        now: Instant,
    ) -> Option<Attached> {
        let next = self.next.take()?;
        let fits = next.filler == filler && next.credentials.as_ref() == credentials;
        if !fits || next.until <= now {
            return None;
        }
        let attachable = match next.connection.receive() {
            Ok(None) => None,
            Ok(Some(received)) if received.message == BrokerMessage::Attachable => {
                Some(received.descriptors.into_iter().next()?)
            }
            Ok(Some(_)) | Err(Closed) => return None,
        };
        Some(Attached {
            connection: next.connection,
            attachable,
        })
    }

    /// Notes a connect, and prepares the next one if that is to be expected. It has these rights and this many bytes then.
    pub(crate) fn follow(
        &mut self,
        endpoint: &Endpoint,
        credentials: Option<Credentials>,
        filler: u32,
        now: Instant,
    ) {
        let last = self.last_connect.replace(now);
        let is_expected = last.is_some_and(|last| now.duration_since(last) < LIFETIME);
        if !is_expected || self.next.is_some() {
            return;
        }
        // Without it the next connect does all by itself, and reports what is wrong.
        let Ok(connection) = Connection::open(endpoint, credentials.as_ref()) else {
            return;
        };
        connection.send(&ClientMessage::Attach { filler });
        self.next = Some(Next {
            connection,
            credentials,
            filler,
            until: now + LIFETIME,
        });
    }

    /// When the connection is closed if it is not used before.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.next.as_ref().map(|next| next.until)
    }

    /// Closes the connection if its time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.expires().is_some_and(|until| until <= now) {
            self.next = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::path::PathBuf;

    use hvsock_sys::{message, seqpacket, stream};
    use tempfile::TempDir;

    use super::*;

    /// A broker's endpoint, at which connects follow one another.
    struct World {
        listener: OwnedFd,
        endpoint: Endpoint,
        prepared: Prepared,
        now: Instant,
        _dir: TempDir,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path: PathBuf = dir.path().join("e");
            Self {
                listener: seqpacket::listen(&path, 0o600, 8).unwrap(),
                endpoint: Endpoint::from(path),
                prepared: Prepared::default(),
                now: Instant::now(),
                _dir: dir,
            }
        }

        /// A connect. Returns what the broker has got of the next one.
        fn connect(&mut self, filler: u32) -> Option<OwnedFd> {
            let (endpoint, now) = (&self.endpoint, self.now);
            self.prepared.follow(endpoint, None, filler, now);
            let client = seqpacket::accept(&self.listener).unwrap()?;
            let mut bytes = [0; 64];
            let received = message::recv(&client, &mut bytes).unwrap();
            let message = ClientMessage::decode(&bytes[..received.len]).unwrap();
            assert_eq!(message, ClientMessage::Attach { filler });
            Some(client)
        }

        fn take(&mut self, filler: u32) -> Option<Attached> {
            self.prepared.take(None, filler, self.now)
        }
    }

    fn answer(client: &OwnedFd, message: &BrokerMessage) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let (listener, _) = stream::pair().unwrap();
        message::send(client, &bytes, &[listener.as_fd()]).unwrap();
    }

    #[test]
    fn the_second_of_two_connects_within_a_second_prepares_a_third() {
        let mut world = World::new();
        assert!(world.connect(0).is_none());
        world.now += LIFETIME;
        assert!(world.connect(0).is_none(), "the first was too long ago");
        world.now += LIFETIME / 2;
        let client = world.connect(0).unwrap();
        assert!(world.connect(0).is_none(), "there is one already");
        answer(&client, &BrokerMessage::Attachable);
        let attached = world.take(0).unwrap();
        assert!(attached.attachable.is_some());
        assert!(world.take(0).is_none());
        // Its answer may still be under way.
        let _client = world.connect(0).unwrap();
        assert!(world.take(0).unwrap().attachable.is_none());
    }

    #[test]
    fn a_prepared_connection_of_other_rights_or_another_kind_or_time_is_not_used() {
        let mut world = World::new();
        let other = Credentials {
            user: 1,
            group: 1,
            groups: Vec::new(),
        };
        world.connect(0);
        let _client = world.connect(0).unwrap();
        assert!(world.prepared.take(Some(&other), 0, world.now).is_none());
        let _client = world.connect(0).unwrap();
        assert!(world.take(1024).is_none());
        let _client = world.connect(1024).unwrap();
        assert_eq!(world.prepared.expires(), Some(world.now + LIFETIME));
        world.now += LIFETIME;
        assert!(world.take(1024).is_none());
        world.connect(0);
        let client = world.connect(0).unwrap();
        world.prepared.expire(world.now + LIFETIME / 2);
        assert!(!message::is_peer_closed(&client));
        world.prepared.expire(world.now + LIFETIME);
        assert!(message::is_peer_closed(&client) && world.prepared.expires().is_none());
    }

    #[test]
    fn a_prepared_connection_that_the_broker_has_closed_is_not_used() {
        let mut world = World::new();
        world.connect(0);
        drop(world.connect(0).unwrap());
        assert!(world.take(0).is_none());
        let client = world.connect(0).unwrap();
        let refused = hvsock_endpoint::Refused {
            code: 16,
            errno: 105,
            detail: "idle".into(),
        };
        answer(&client, &BrokerMessage::Refused(refused));
        drop(client);
        assert!(world.take(0).is_none());
    }
}
