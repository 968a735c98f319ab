//! A listener through a broker. Connections arrive as messages on its endpoint, and in arenas.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Listening, MAX_MESSAGE, SocketOption, Transport,
};
use hvsock_fabric::Refusal;
use hvsock_sys::message;
use hvsock_sys::poll::PollFlags;
use hvsock_sys::sync::lock;

use super::Stream;
use super::arena::{AcceptingArenas, Parked};
use super::endpoint_connection::{EndpointConnection, is_gone};
use super::errors;
use crate::os::ready;
use crate::{Endpoint, wait};

/// An established listener.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Arc<OwnedFd>,
    /// The path of the endpoint.
    path: Box<Path>,
    local: SockAddrHv,
    backlog: u32,
    id: u64,
    raw_fd: bool,
    nonblocking: AtomicBool,
    /// The arenas in which connections arrive besides the socket; `None` if it takes none.
    arenas: Option<Box<AcceptingArenas>>,
    /// The listener has ended, as `state` says.
    has_ended: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Accepted connections whose `ACCEPTED` message found no free space in the socket yet.
    pending_acks: VecDeque<u64>,
    /// Why the listener has ended.
    reset: Option<Refusal>,
}

impl Listener {
    pub(super) fn new(
        listening: &Listening,
        local: SockAddrHv,
        connection: &EndpointConnection,
        raw_fd: bool,
        arenas: Option<Box<AcceptingArenas>>,
    ) -> io::Result<Self> {
        if let Some(arenas) = &arenas {
            arenas.set_endpoint(connection)?;
        }
        Ok(Self {
            socket: connection.socket(),
            path: connection.path().into(),
            local,
            backlog: listening.backlog,
            id: listening.listener,
            raw_fd,
            nonblocking: AtomicBool::new(false),
            arenas,
            has_ended: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    pub(crate) fn local(&self) -> SockAddrHv {
        self.local
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::at(&*self.path)
    }

    pub(crate) fn backlog(&self) -> u32 {
        self.backlog
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The broker filters.
    pub(crate) fn rejected(&self) -> u64 {
        0
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.arenas {
            Some(arenas) => arenas.descriptor(),
            None => self.socket.as_fd(),
        }
    }

    pub(crate) fn set_nonblocking(&self, nonblocking: bool) {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
    }

    /// Accepts a connection. Waits until `deadline` unless the listener is non-blocking.
    pub(crate) fn accept(&self, deadline: Option<Instant>) -> io::Result<Stream> {
        let may_wait = !self.nonblocking.load(Ordering::Relaxed);
        match &self.arenas {
            Some(arenas) if may_wait => self.accept_waiting(arenas, deadline),
            _ => wait::accept(may_wait, || self.accept_now(), || self.wait(deadline)),
        }
    }

    /// Accepts a connection, waiting at the endpoint and at the arenas. The endpoint is looked at only if
    /// it is ready or has its turn.
    fn accept_waiting(
        &self,
        arenas: &AcceptingArenas,
        deadline: Option<Instant>,
    ) -> io::Result<Stream> {
        let mut at_endpoint = arenas.is_empty();
        loop {
            if at_endpoint || !self.is_turn_of_arenas(arenas) {
                match self.accept_anywhere() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            } else {
                let accepted = arenas.accept().or_else(|| arenas.accept_spinning());
                let stream = accepted.and_then(|(arena, end)| Stream::in_arena(&arena, end));
                if let Some(stream) = stream {
                    return Ok(stream);
                }
            }
            match self.park(arenas, deadline)? {
                Parked::TimedOut => return Err(wait::no_connection()),
                woken => at_endpoint = woken == Parked::AtEndpoint,
            }
        }
    }

    fn park(&self, arenas: &AcceptingArenas, deadline: Option<Instant>) -> io::Result<Parked> {
        let has_pending_acks = !self.state().pending_acks.is_empty();
        arenas.watch_space(&self.socket, has_pending_acks)?;
        arenas.park(deadline)
    }

    /// Waits until [`Listener::accept_now`] can make progress, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        if let Some(arenas) = &self.arenas {
            return Ok(self.park(arenas, deadline)? != Parked::TimedOut);
        }
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.state().pending_acks.is_empty());
        ready(&self.socket, flags, deadline)
    }

    /// Returns true if the listener also waits for free space to send in, which its descriptor does not
    /// report as readable.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_pending_acks(&self) -> bool {
        self.arenas.is_none() && !self.state().pending_acks.is_empty()
    }

    /// Accepts a connection; `WouldBlock` if there is none.
    pub(crate) fn accept_now(&self) -> io::Result<Stream> {
        if let Some(arenas) = &self.arenas
            && self.is_turn_of_arenas(arenas)
            && let Some((arena, end)) = arenas.accept()
            && let Some(stream) = Stream::in_arena(&arena, end)
        {
            return Ok(stream);
        }
        self.accept_anywhere()
    }

    /// Returns false if the endpoint must be looked at first.
    fn is_turn_of_arenas(&self, arenas: &AcceptingArenas) -> bool {
        !self.has_ended.load(Ordering::Acquire) && !arenas.is_turn_of_endpoint()
    }

    /// Accepts a connection that arrives at the endpoint, or else one in an arena.
    fn accept_anywhere(&self) -> io::Result<Stream> {
        loop {
            let accepted = self.accept_at_endpoint();
            let arenas = match (&self.arenas, accepted) {
                (_, Ok(Some(stream))) => return Ok(stream),
                // An arena has arrived.
                (_, Ok(None)) => continue,
                (Some(arenas), Err(error)) if error.kind() == io::ErrorKind::WouldBlock => arenas,
                (_, Err(error)) => return Err(error),
            };
            if let Some((arena, end)) = arenas.accept()
                && let Some(stream) = Stream::in_arena(&arena, end)
            {
                return Ok(stream);
            }
            let has_pending_acks = !self.state().pending_acks.is_empty();
            arenas.watch_space(&self.socket, has_pending_acks)?;
            if arenas.would_block() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }

    /// Receives one message of the endpoint: a connection, or an arena in which they arrive; `WouldBlock`
    /// if there is none.
    fn accept_at_endpoint(&self) -> io::Result<Option<Stream>> {
        // The lock is held while a message is received and handled. If one thread receives the
        // reason and another the end, the second one must return the reason.
        let mut state = self.state();
        if state.reset.is_some() {
            return Err(state.end_error());
        }
        // A connection without its acknowledgement keeps its place in the backlog, so no other
        // connection is received before it is sent.
        self.send_acks(&mut state)?;
        if !state.pending_acks.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut buffer = [0; MAX_MESSAGE];
        let received = match message::recv_with_descriptors(&self.socket, &mut buffer) {
            Ok(received) if received.len == 0 => return Err(self.ended(&state)),
            Ok(received) => received,
            Err(error) if is_gone(&error) => return Err(self.ended(&state)),
            Err(error) => return Err(error),
        };
        let protocol_error =
            |what: &dyn std::fmt::Display| errors::protocol_error("of this listener", what);
        match BrokerMessage::decode(&buffer[..received.len]) {
            Ok(BrokerMessage::Incoming(incoming)) => {
                state.pending_acks.push_back(incoming.connection);
                let accepted = if received.dropped_descriptors {
                    Err(errors::descriptor_limit())
                } else {
                    match (&self.arenas, incoming.transport) {
                        (Some(arenas), Transport::Arena) => {
                            arenas.add(incoming, received.descriptors).map(|()| None)
                        }
                        _ => {
                            let accepted =
                                Stream::accepted(incoming, received.descriptors, self.raw_fd);
                            accepted.map(Some)
                        }
                    }
                };
                // It wakes the broker, which may need the processor that the peer waits for.
                self.send_acks(&mut state)?;
                accepted.map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => protocol_error(&error),
                    _ => error,
                })
            }
            Ok(BrokerMessage::Reset(refused) | BrokerMessage::Refused(refused)) => {
                state.reset = Some(errors::refusal(&refused));
                Err(self.ended(&state))
            }
            Ok(_) => Err(protocol_error(&"unexpected message")),
            Err(what) => Err(protocol_error(&what)),
        }
    }

    /// Sends acknowledgements while the socket has free space.
    fn send_acks(&self, state: &mut State) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(16);
        while let Some(&connection) = state.pending_acks.front() {
            ClientMessage::Accepted { connection }.encode(&mut bytes);
            match message::send(&self.socket, &bytes, &[]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The next receive returns the end.
                Err(error) if is_gone(&error) => state.pending_acks.clear(),
                result => result?,
            }
            state.pending_acks.pop_front();
        }
        Ok(())
    }

    pub(crate) fn set_connected_suspend(&self, on: bool) -> io::Result<()> {
        if let Some(arenas) = &self.arenas {
            arenas.set_connected_suspend(on);
        }
        let message = ClientMessage::SetOption {
            option: SocketOption::ConnectedSuspend,
            value: on.into(),
        };
        let mut bytes = Vec::with_capacity(16);
        message.encode(&mut bytes);
        message::send(&self.socket, &bytes, &[])
    }

    /// Notes that the listener has ended. Returns why.
    fn ended(&self, state: &State) -> io::Error {
        self.has_ended.store(true, Ordering::Release);
        state.end_error()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// The error after the end of the listener.
    fn end_error(&self) -> io::Error {
        match self.reset.clone() {
            Some(refusal) => refusal.into_reset_error(),
            None => errors::broker_gone(),
        }
    }
}
