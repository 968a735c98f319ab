//! The broker's end of a socket whose other end a process has, and what is charged for it.

pub(crate) mod snapshot;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use hvsock_endpoint::BrokerMessage;
use hvsock_sys::message;
use hvsock_sys::sync::lock;

use crate::budget::{Charge, Owner};

/// The broker's end of a process's socket. It carries the charge for its descriptor, and that for the
/// descriptors which the broker has sent on it and the process has not received yet.
///
/// The kernel keeps unread messages after the sender has closed. So a socket that is dropped while its
/// process has yet to receive descriptors is shut down and kept among the [`UnreadSockets`], and with
/// it the charge, until the process reads or closes. The process sees the same end in both cases.
#[derive(Clone, Debug)]
pub(crate) struct ProcessSocket(Arc<Inner>);

/// A reference to a [`ProcessSocket`] that does not keep it open.
#[derive(Debug)]
pub(crate) struct WeakProcessSocket(Weak<Inner>);

/// Sockets that the broker has done with, but whose processes have yet to receive descriptors.
#[derive(Debug, Default)]
pub(crate) struct UnreadSockets {
    sockets: Mutex<VecDeque<UnreadSocket>>,
    /// The sockets are still those of another broker, which may go on: none is shut down.
    is_held: AtomicBool,
}

/// A descriptor, the charge for its unread messages, and that for itself.
type UnreadSocket = (OwnedFd, InFlightCharge, Option<Charge>);

/// Sockets that one sweep checks. There are no more than messages that may be in flight.
const SWEEP: usize = 16;

#[derive(Debug)]
struct Inner {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    charge: Option<Charge>,
    in_flight: Mutex<InFlightCharge>,
    /// Where it goes if it is dropped too early. Set before the first descriptors are sent.
    unread: OnceLock<Arc<UnreadSockets>>,
}

/// The charge for the messages with descriptors that may be unread.
#[derive(Debug, Default)]
struct InFlightCharge {
    charge: Option<Charge>,
    /// The charge is kept when all messages are read, for the next one.
    kept: bool,
}

impl ProcessSocket {
    /// A socket whose descriptor is charged.
    pub(crate) fn charged(fd: OwnedFd, charge: Charge) -> Self {
        Self::with(fd, Some(charge))
    }

    fn with(fd: OwnedFd, charge: Option<Charge>) -> Self {
        Self(Arc::new(Inner {
            fd: Some(fd),
            charge,
            in_flight: Mutex::default(),
            unread: OnceLock::new(),
        }))
    }

    /// Adds the charge for a message with descriptors that was sent. Returns whether there was none
    /// before.
    pub(crate) fn add_in_flight(&self, charge: Charge, unread: &Arc<UnreadSockets>) -> bool {
        self.0.unread.get_or_init(|| Arc::clone(unread));
        let mut in_flight = self.0.in_flight();
        match &mut in_flight.charge {
            Some(before) => {
                before.merge(charge);
                false
            }
            none => {
                *none = Some(charge);
                true
            }
        }
    }

    /// Takes the charge if the process has read all messages.
    pub(crate) fn take_in_flight(&self) -> Option<Charge> {
        match message::has_unread(self) {
            true => None,
            false => self.0.in_flight().charge.take(),
        }
    }

    /// The number of messages that may be unread.
    pub(crate) fn in_flight(&self) -> u64 {
        self.0.in_flight().charge.as_ref().map_or(0, Charge::amount)
    }

    /// Who is charged for messages that may be unread.
    pub(crate) fn in_flight_owner(&self) -> Option<Owner> {
        self.0.in_flight().charge.as_ref().map(Charge::owner)
    }

    /// Keeps the charge even when all messages are read, so that the next message can be sent whatever
    /// others use, or gives it back then.
    pub(crate) fn keep_in_flight(&self, kept: bool) {
        self.0.in_flight().kept = kept;
    }

    /// Gives the charge back if the process has read all messages. Returns whether some is left.
    pub(crate) fn settle(&self) -> bool {
        let mut in_flight = self.0.in_flight();
        let is_open = in_flight.charge.is_some() && (in_flight.kept || message::has_unread(self));
        if !is_open {
            in_flight.charge = None;
        }
        is_open
    }

    /// Sends a message without descriptors. Never blocks, so a process with a full receive queue misses it.
    pub(crate) fn send(&self, message: &BrokerMessage) {
        // A message that is not read in time would make those before it look unread.
        self.settle();
        let mut bytes = Vec::with_capacity(64);
        message.encode(&mut bytes);
        let _ = message::send(self, &bytes, &[]);
    }

    pub(crate) fn downgrade(&self) -> WeakProcessSocket {
        WeakProcessSocket(Arc::downgrade(&self.0))
    }
}

impl WeakProcessSocket {
    /// The socket, unless it has been dropped.
    pub(crate) fn upgrade(&self) -> Option<ProcessSocket> {
        self.0.upgrade().map(ProcessSocket)
    }
}

/// A socket that the broker has made itself, as a part of a connection that is charged as a whole.
impl From<OwnedFd> for ProcessSocket {
    fn from(fd: OwnedFd) -> Self {
        Self::with(fd, None)
    }
}

impl AsFd for ProcessSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0.fd {
            Some(fd) => fd.as_fd(),
            None => unreachable!("it is taken only when the last reference is dropped"),
        }
    }
}

impl Inner {
    fn in_flight(&self) -> MutexGuard<'_, InFlightCharge> {
        lock(&self.in_flight)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let in_flight = std::mem::take(&mut *lock(&self.in_flight));
        if in_flight.charge.is_some()
            && let (Some(unread), Some(fd)) = (self.unread.get(), self.fd.take())
            && message::has_unread(&fd)
        {
            unread.add(fd, in_flight, self.charge.take());
        }
    }
}

impl UnreadSockets {
    /// Those of a broker that takes over, which does nothing to sockets before [`release`](Self::release).
    pub(crate) fn held() -> Self {
        Self {
            is_held: AtomicBool::new(true),
            ..Self::default()
        }
    }

    /// The sockets are this broker's now.
    pub(crate) fn release(&self) {
        self.is_held.store(false, Ordering::Relaxed);
    }

    fn add(&self, fd: OwnedFd, in_flight: InFlightCharge, charge: Option<Charge>) {
        if self.is_held.load(Ordering::Relaxed) {
            return;
        }
        // An error means that the process has closed its end.
        let _ = hvsock_sys::stream::shutdown(&fd, std::net::Shutdown::Both);
        lock(&self.sockets).push_back((fd, in_flight, charge));
    }

    /// Closes the sockets whose processes have read everything or closed, of the oldest ones. Returns
    /// whether any are left.
    pub(crate) fn sweep(&self) -> bool {
        let mut sockets = lock(&self.sockets);
        for _ in 0..sockets.len().min(SWEEP) {
            if let Some(oldest) = sockets.pop_front()
                && message::has_unread(&oldest.0)
            {
                sockets.push_back(oldest);
            }
        }
        !sockets.is_empty()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.sockets).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use hvsock_sys::seqpacket;

    use super::*;
    use crate::budget::{Budget, Shares};

    const OWNER: Owner = Owner::User(1000);

    struct World {
        descriptors: Budget,
        messages: Budget,
        unread: Arc<UnreadSockets>,
    }

    impl World {
        fn new() -> Self {
            let budget = || Budget::new(Shares::new(100, 0));
            Self {
                descriptors: budget(),
                messages: budget(),
                unread: Arc::default(),
            }
        }

        fn socket(&self) -> (ProcessSocket, OwnedFd) {
            let (own, other) = seqpacket::pair().unwrap();
            let charge = self.descriptors.charge(OWNER, 1).unwrap();
            (ProcessSocket::charged(own, charge), other)
        }

        fn send(&self, socket: &ProcessSocket) {
            message::send(socket, b"x", &[socket.as_fd()]).unwrap();
            let charge = self.messages.charge(OWNER, 1).unwrap();
            socket.add_in_flight(charge, &self.unread);
        }

        /// Descriptors, and messages in flight.
        fn used(&self) -> (u64, u64) {
            (
                self.descriptors.usage(OWNER).0,
                self.messages.usage(OWNER).0,
            )
        }
    }

    #[test]
    fn a_message_is_charged_until_its_process_has_read_it() {
        let world = World::new();
        let (socket, process) = world.socket();
        world.send(&socket);
        world.send(&socket);
        assert!(socket.settle() && socket.take_in_flight().is_none());
        assert_eq!(world.used(), (1, 2));
        for _ in 0..2 {
            let _ = message::recv(&process, &mut [0; 8]).unwrap();
        }
        socket.keep_in_flight(true);
        assert!(socket.settle() && socket.in_flight() == 2);
        socket.keep_in_flight(false);
        assert!(!socket.settle());
        assert_eq!(world.used(), (1, 0));
        drop(socket);
        assert_eq!(world.used(), (0, 0));
        assert!(world.unread.is_empty());
    }

    #[test]
    fn a_socket_that_the_broker_closes_is_charged_until_its_process_reads_or_closes() {
        for reads in [true, false] {
            let world = World::new();
            let (socket, process) = world.socket();
            world.send(&socket);
            drop(socket);
            assert!(world.unread.sweep());
            assert_eq!(world.used(), (1, 1));
            if reads {
                // What was sent arrives, and then the end.
                assert_eq!(message::recv(&process, &mut [0; 8]).unwrap().len, 1);
                assert_eq!(message::recv(&process, &mut [0; 8]).unwrap().len, 0);
            }
            drop(process);
            assert!(!world.unread.sweep());
            assert_eq!(world.used(), (0, 0));
        }
    }
}
