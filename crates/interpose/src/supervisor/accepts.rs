//! `accept`, and the connections that arrive for it.
//!
//! For each connection that can be accepted, the queue of the program's Unix socket has a token, a closed
//! connection, so that the kernel reports it readable. `accept` takes the token and returns the connection.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_address::{SockAddrVm, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Incoming};
use hvsock_sys::foreign_socket;
use hvsock_sys::seccomp::Notification;

use super::core::{Core, inode_of, refusal_in};
use super::exchange::Purpose;
use super::program::Added;
use super::table::{Entry, PeerAddress, Waiting};
use super::waiting::WaitKind;
use crate::broker::{Closed, Message};
use crate::model::{Address, DescriptorFlags, Errno, Family, Socket, local_of};

/// The connections that are received ahead of `accept`. The others wait at the broker, and count there against
/// the backlog, as these do until they are accepted.
const MAX_INCOMING: usize = 64;
/// How long the broker may take to tell a context id.
const CID_TIMEOUT: Duration = Duration::from_secs(5);
/// A partition without a context id, as the kernel has it for any.
const NO_CID: u32 = SockAddrVm::CID_ANY;

impl Core {
    /// Answers `accept` and `accept4`.
    pub(crate) fn accept(&mut self, call: &Notification, inode: u64, data: &OwnedFd, flags: i32) {
        match self.begin_accept(call, inode, data, flags) {
            Ok(()) => {}
            Err(errno) => self.program.answer(call, Err(errno)),
        }
    }

    fn begin_accept(
        &mut self,
        call: &Notification,
        inode: u64,
        data: &OwnedFd,
        flags: i32,
    ) -> Result<(), Errno> {
        let flags = DescriptorFlags::parse(flags)?;
        let entry = self.sockets.get(&inode).ok_or(Errno::EBADF)?;
        entry.socket.accept()?;
        self.receive_incoming(inode);
        let listening = self
            .sockets
            .get(&inode)
            .and_then(|it| it.listening.as_ref());
        let listening = listening.ok_or(Errno::EINVAL)?;
        if listening.ready() > 0 && listening.calls.is_empty() {
            self.deliver(call, inode, flags);
            return Ok(());
        }
        if foreign_socket::is_nonblocking(data).map_err(|error| Errno::of(&error))? {
            return Err(Errno::EAGAIN);
        }
        let timeout = foreign_socket::receive_timeout(data).ok().flatten();
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let number = self.wait(*call, WaitKind::Accept { inode, until });
        let entry = self.sockets.get_mut(&inode);
        if let Some(listening) = entry.and_then(|entry| entry.listening.as_mut()) {
            listening.calls.push_back(number);
        }
        Ok(())
    }

    /// Answers a call with the first connection. Returns whether the call has got it.
    fn deliver(&mut self, call: &Notification, inode: u64, flags: DescriptorFlags) -> bool {
        let Some(entry) = self.sockets.get_mut(&inode) else {
            return false;
        };
        let Some(listening) = &mut entry.listening else {
            return false;
        };
        let Some(waiting) = listening.incoming.pop_front() else {
            return false;
        };
        let PeerAddress::Known(peer) = waiting.peer else {
            listening.incoming.push_front(waiting);
            return false;
        };
        self.incoming -= 1;
        let local = match (entry.socket.family(), entry.socket.local()) {
            (Family::Vsock, Some(Address::Vsock(bound))) => {
                local_of(Family::Vsock, waiting.local, self.own, bound.port)
            }
            (family, _) => local_of(family, waiting.local, self.own, 0),
        };
        let namespace = foreign_socket::namespace(&waiting.data);
        let is_listed = namespace.is_some() && namespace == self.namespace;
        let accepted = Socket::accepted(&entry.socket, local, peer);
        let accepted = Entry::new(accepted, is_listed);
        // Before the call is answered: its number is that of no call afterwards, and the thread may be gone.
        let queue = match listening.tokens {
            0 => None,
            _ => self.program.duplicate(call, inode).ok(),
        };
        // Likewise: the program may poll as soon as it has the answer, and must not find the token of this connection.
        if let Some(queue) = &queue {
            self.take_tokens(inode, queue);
        }
        let added = self.hand_over(call, &waiting, peer, flags);
        let is_delivered = match added {
            Ok((Added::Installed, new_inode)) => {
                // A full table has no space for its names; its data works.
                let _ = self.insert(new_inode, accepted);
                true
            }
            Ok(_) => false,
            Err(errno) => {
                self.program.answer(call, Err(errno));
                false
            }
        };
        self.after_delivery(inode, waiting, is_delivered);
        is_delivered
    }

    /// Writes the peer's address, then gives the descriptor to the program, which answers the call.
    fn hand_over(
        &self,
        call: &Notification,
        waiting: &Waiting,
        peer: Address,
        flags: DescriptorFlags,
    ) -> Result<(Added, u64), Errno> {
        let inode = inode_of(&waiting.data)?;
        if call.args[1] != 0 {
            self.write_address(call, peer)?;
        }
        let mode = hvsock_sys::set_nonblocking(&waiting.data, flags.nonblocking);
        mode.map_err(|error| Errno::of(&error))?;
        let data = waiting.data.as_fd();
        Ok((self.program.add(call, data, flags.close_on_exec), inode))
    }

    fn after_delivery(&mut self, inode: u64, waiting: Waiting, is_delivered: bool) {
        let entry = self.sockets.get_mut(&inode);
        let Some(listening) = entry.and_then(|entry| entry.listening.as_mut()) else {
            return;
        };
        if is_delivered {
            let connection = waiting.connection;
            listening
                .connection
                .send(&ClientMessage::Accepted { connection });
            self.accepted(inode);
        } else {
            // The call is gone or failed; another one may accept it.
            listening.incoming.push_front(waiting);
            self.incoming += 1;
            self.offer(inode);
        }
    }

    /// Takes tokens out of the queue for which there is no connection.
    fn take_tokens(&mut self, inode: u64, data: &OwnedFd) {
        let entry = self.sockets.get_mut(&inode);
        let Some(listening) = entry.and_then(|entry| entry.listening.as_mut()) else {
            return;
        };
        while listening.tokens > listening.ready() {
            match foreign_socket::take_token(data) {
                Ok(true) => listening.tokens -= 1,
                // A program that takes them by other means.
                _ => listening.tokens = 0,
            }
        }
    }

    /// Receives what the broker has for a listener.
    pub(crate) fn receive_incoming(&mut self, inode: u64) {
        loop {
            let Some(entry) = self.sockets.get_mut(&inode) else {
                return;
            };
            let Some(listening) = &mut entry.listening else {
                return;
            };
            // With too many in all, each listener still gets one.
            let most = match self.incoming < self.max_bound {
                true => MAX_INCOMING,
                false => 1,
            };
            if listening.incoming.len() >= most {
                // Looked at again when one is accepted.
                if listening.is_watched {
                    listening.is_watched = self.set.remove(&listening.connection).is_err();
                }
                break;
            }
            match listening.connection.receive() {
                Ok(None) => {
                    let number = listening.number;
                    if !listening.is_watched && self.listeners.contains_key(&number) {
                        listening.is_watched = self.set.add(&listening.connection, number).is_ok();
                    }
                    break;
                }
                Ok(Some(Message {
                    message: BrokerMessage::Incoming(incoming),
                    descriptors,
                })) => {
                    self.arrived(inode, &incoming, descriptors);
                    self.serve_calls(inode);
                }
                Ok(Some(Message {
                    message: BrokerMessage::Reset(refused) | BrokerMessage::Refused(refused),
                    ..
                })) => {
                    let refusal = refusal_in(&refused);
                    self.listener_ended(inode, Some(refusal));
                    break;
                }
                Ok(Some(_)) => {}
                Err(Closed) => {
                    if self.listeners.contains_key(&listening.number) {
                        self.listener_ended(inode, None);
                    }
                    break;
                }
            }
        }
        self.serve_calls(inode);
        self.offer(inode);
    }

    /// A connection has arrived.
    fn arrived(&mut self, inode: u64, incoming: &Incoming, descriptors: Vec<OwnedFd>) {
        // The control connection is not kept: the end of the data is a clean end without it.
        let Some(data) = descriptors.into_iter().next() else {
            return;
        };
        let Some(family) = self.sockets.get(&inode).map(|it| it.socket.family()) else {
            return;
        };
        let peer = match family {
            Family::HyperV => PeerAddress::Known(Address::HyperV(incoming.peer)),
            Family::Vsock => self.peer_address(incoming.peer.vm),
        };
        let waiting = Waiting {
            connection: incoming.connection,
            data,
            local: incoming.local,
            peer,
        };
        let entry = self.sockets.get_mut(&inode);
        if let Some(listening) = entry.and_then(|entry| entry.listening.as_mut()) {
            listening.incoming.push_back(waiting);
            listening.last_arrival = Instant::now();
            self.incoming += 1;
        }
    }

    /// The address of a peer in a partition. The broker does not know its port, so it gets one of its own.
    fn peer_address(&mut self, partition: VmId) -> PeerAddress {
        if let Some(cid) = self.known_cid(partition) {
            let port = self.ports.ephemeral();
            return PeerAddress::Known(Address::Vsock(SockAddrVm::new(cid, port)));
        }
        let request = ClientMessage::CidOf { partition };
        let purpose = Purpose::PeerCid(partition);
        let is_asked = self
            .exchanges
            .values()
            .any(|it| matches!(it.purpose, Purpose::PeerCid(asked) if asked == partition));
        if is_asked
            || self
                .start(purpose, vec![request], None, CID_TIMEOUT)
                .is_ok()
        {
            return PeerAddress::Asked(partition);
        }
        let port = self.ports.ephemeral();
        PeerAddress::Known(Address::Vsock(SockAddrVm::new(NO_CID, port)))
    }

    /// The broker has told the context id of a partition, or that it has none.
    pub(crate) fn cid_answer(&mut self, partition: VmId, cid: Option<u32>) {
        if let Some(cid) = cid {
            self.learn_cid(partition, cid);
        }
        let cid = cid.unwrap_or(NO_CID);
        let inodes: Vec<u64> = self.listeners.values().copied().collect();
        for inode in inodes {
            let entry = self.sockets.get_mut(&inode);
            let Some(listening) = entry.and_then(|entry| entry.listening.as_mut()) else {
                continue;
            };
            for waiting in &mut listening.incoming {
                if waiting.peer == PeerAddress::Asked(partition) {
                    let port = self.ports.ephemeral();
                    waiting.peer = PeerAddress::Known(Address::Vsock(SockAddrVm::new(cid, port)));
                }
            }
            self.serve_calls(inode);
            self.offer(inode);
        }
    }

    /// Answers calls that wait for connections, the oldest first.
    fn serve_calls(&mut self, inode: u64) {
        loop {
            let entry = self.sockets.get_mut(&inode);
            let Some(listening) = entry.and_then(|entry| entry.listening.as_mut()) else {
                return;
            };
            // Those in the queue are counted by tokens, which only later calls take.
            if listening.ready() == 0 {
                return;
            }
            let Some(number) = listening.calls.pop_front() else {
                return;
            };
            let Some(wait) = self.waits.remove(&number) else {
                continue;
            };
            let flags = match wait.call.syscall {
                libc::SYS_accept4 => DescriptorFlags::parse(wait.call.args[3] as i32),
                _ => Ok(DescriptorFlags::default()),
            };
            self.deliver(&wait.call, inode, flags.unwrap_or_default());
        }
    }

    /// Puts a token into the program's queue for each connection that it could accept.
    fn offer(&mut self, inode: u64) {
        let Some(entry) = self.sockets.get_mut(&inode) else {
            return;
        };
        let (Some(listening), Some(name)) = (&mut entry.listening, &entry.name) else {
            return;
        };
        while listening.tokens < listening.ready() {
            match name.queue_token() {
                Ok(true) => listening.tokens += 1,
                // It is readable already.
                Ok(false) => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return self.remove(inode);
                }
                Err(_) => return,
            }
        }
    }
}
