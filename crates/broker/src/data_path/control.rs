//! The control connection between the broker and one process of a connection.

pub(crate) mod snapshot;

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption, VIOLATION};
use hvsock_fabric::Refusal;
use hvsock_sys::message;

use super::ProcessSocket;

/// Most messages read from one process in one turn, for fairness.
const MESSAGES_PER_TURN: usize = 16;

/// The broker's end of a process's control connection, with the state received on it.
///
/// A process that does not speak the endpoint protocol has none: it receives no messages, and
/// the end of its data is always a clean end.
#[derive(Debug)]
pub struct ControlConnection {
    socket: Option<ProcessSocket>,
    /// The process has announced a clean end of its data ([`ClientMessage::Shutdown`]).
    pub(crate) announced: bool,
    /// The process's end is closed.
    pub(crate) closed: bool,
    /// There may be messages to read; cleared when a read would block.
    pub(crate) readable: bool,
    /// A new value of `HVSOCKET_CONNECTED_SUSPEND`, until it is taken.
    pub(crate) option: Option<bool>,
    /// The process's own socket, until it is taken.
    pub(crate) attached: Option<OwnedFd>,
    /// It belongs to an arena, whose messages it may send.
    in_arena: bool,
    /// Connections were opened or closed in the arena, until it is taken.
    pub(crate) arena_changed: bool,
    /// The arena needs more slots, until it is taken.
    pub(crate) arena_grow: bool,
    /// The process asked for the meaning of its data's end ([`SocketOption::ConfirmEnd`]), and has no
    /// answer yet.
    pub(crate) asked_for_end: bool,
}

impl ControlConnection {
    pub(crate) fn new(socket: impl Into<ProcessSocket>) -> Self {
        Self {
            socket: Some(socket.into()),
            ..Self::none()
        }
    }

    /// That of a process without one, which shows only that the process is there.
    pub(crate) fn none() -> Self {
        Self {
            socket: None,
            announced: false,
            closed: false,
            // Registering the descriptor in epoll reports messages that are already there.
            readable: false,
            option: None,
            attached: None,
            in_arena: false,
            arena_changed: false,
            arena_grow: false,
            asked_for_end: false,
        }
    }

    /// The control connection of a process that has connected its own socket, with that.
    pub(crate) fn of_attached(control: impl Into<ProcessSocket>, socket: OwnedFd) -> Self {
        Self {
            attached: Some(socket),
            ..Self::new(control)
        }
    }

    /// The control connection of one end of an arena.
    pub(crate) fn of_arena(socket: impl Into<ProcessSocket>) -> Self {
        Self {
            in_arena: true,
            ..Self::new(socket)
        }
    }

    /// Sends a message to the process. Never blocks, so a process with a full receive queue misses it.
    pub(crate) fn send(&self, message: &BrokerMessage) {
        if let Some(socket) = &self.socket {
            socket.send(message);
        }
    }

    /// Its socket, if the process has one.
    pub(crate) fn socket(&self) -> Option<&ProcessSocket> {
        self.socket.as_ref()
    }

    /// The descriptor, which becomes readable; `None` if there is none.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Reads at most [`MESSAGES_PER_TURN`] messages. A protocol violation is an error.
    pub(crate) fn read(&mut self) -> Result<(), Refusal> {
        let mut buffer = [0; MAX_MESSAGE];
        let Some(socket) = self.socket.clone() else {
            self.readable = false;
            return Ok(());
        };
        self.readable = !self.closed;
        for _ in 0..MESSAGES_PER_TURN {
            if !self.readable {
                break;
            }
            match message::recv(&socket, &mut buffer) {
                Ok(received) if received.dropped_descriptors => {
                    return Err(protocol_violation("a message with descriptors"));
                }
                Ok(received) if received.len == 0 => self.close(),
                Ok(received) => match ClientMessage::decode(&buffer[..received.len]) {
                    Ok(ClientMessage::Shutdown) => self.announced = true,
                    Ok(ClientMessage::ArenaChanged) if self.in_arena => self.arena_changed = true,
                    Ok(ClientMessage::ArenaGrow) if self.in_arena => self.arena_grow = true,
                    Ok(ClientMessage::SetOption {
                        option: which,
                        value,
                    }) => match which {
                        SocketOption::ConnectedSuspend => self.option = Some(value != 0),
                        SocketOption::ConfirmEnd => self.asked_for_end = true,
                        _ => {}
                    },
                    Ok(_) => return Err(protocol_violation("an unexpected message")),
                    Err(error) => return Err(protocol_violation(&error.to_string())),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    return Err(protocol_violation(&error.to_string()));
                }
                Err(_) => self.close(),
            }
        }
        Ok(())
    }

    /// Whether something of it waits for a turn of its connection.
    pub(crate) fn has_work(&self) -> bool {
        let news = self.option.is_some() || self.arena_changed || self.arena_grow;
        self.readable || self.asked_for_end || news
    }

    fn close(&mut self) {
        self.closed = true;
        self.readable = false;
    }
}

/// The refusal after the peer ended without announcing a clean end.
pub(crate) fn peer_died() -> Refusal {
    Refusal::Reset {
        cause: "the process at the other end ended without closing".into(),
    }
}

/// The refusal after the peer closed with unread data in its receive buffer.
pub(crate) fn unread_data() -> Refusal {
    Refusal::Reset {
        cause: "the other end closed without reading all data".into(),
    }
}

/// The refusal for a process that violates the endpoint protocol.
pub(crate) fn protocol_violation(what: &str) -> Refusal {
    Refusal::Reset {
        cause: format!("a process {VIOLATION}: {what}"),
    }
}
