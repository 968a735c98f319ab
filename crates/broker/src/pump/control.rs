//! What one process and the broker say to each other about one connection.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_fabric::Refusal;
use hvsock_sys::message;

/// The most words read from one process before another connection gets its turn.
const WORDS: usize = 16;

/// The broker's end of a process's control connection, and what was heard over it.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    /// The process said that no data follows.
    pub(crate) announced: bool,
    /// The process's end is closed.
    pub(crate) closed: bool,
    /// There may be more to read; cleared when it would block.
    pub(crate) readable: bool,
    /// What the process set `HVSOCKET_CONNECTED_SUSPEND` to, until it is taken.
    pub(crate) option: Option<bool>,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            announced: false,
            closed: false,
            // What is there when the descriptor is first watched comes as an event.
            readable: false,
            option: None,
        }
    }

    /// Sends a message to the process; one that does not listen to its own socket misses it.
    pub(crate) fn tell(&self, message: &BrokerMessage) {
        let mut bytes = Vec::with_capacity(64);
        message.encode(&mut bytes);
        let _ = message::send(&self.socket, &bytes, &[]);
    }

    /// Reads what the process says, at most [`WORDS`] messages: one that never stops talking must
    /// not keep the thread from all others. `Err` is one that does not keep to the protocol.
    pub(crate) fn read(&mut self) -> Result<(), Refusal> {
        let mut buffer = [0; MAX_MESSAGE];
        self.readable = !self.closed;
        for _ in 0..WORDS {
            if !self.readable {
                break;
            }
            match message::recv(&self.socket, &mut buffer) {
                Ok(received) if received.dropped_descriptors => {
                    return Err(protocol_fault("a message with descriptors"));
                }
                Ok(received) if received.len == 0 => self.close(),
                Ok(received) => match ClientMessage::decode(&buffer[..received.len]) {
                    Ok(ClientMessage::Shutdown) => self.announced = true,
                    Ok(ClientMessage::SetOption {
                        option: which,
                        value,
                    }) => {
                        if which == SocketOption::ConnectedSuspend {
                            self.option = Some(value != 0);
                        }
                    }
                    Ok(_) => return Err(protocol_fault("a message that has no place here")),
                    Err(error) => return Err(protocol_fault(&error.to_string())),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    return Err(protocol_fault(&error.to_string()));
                }
                Err(_) => self.close(),
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        self.closed = true;
        self.readable = false;
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

pub(crate) fn went_away() -> Refusal {
    Refusal::Reset {
        cause: "the process at the other end ended without closing".into(),
    }
}

pub(crate) fn unread_data() -> Refusal {
    Refusal::Reset {
        cause: "the other end closed without reading all data".into(),
    }
}

pub(crate) fn protocol_fault(what: &str) -> Refusal {
    Refusal::Reset {
        cause: format!("a process broke the endpoint protocol: {what}"),
    }
}
