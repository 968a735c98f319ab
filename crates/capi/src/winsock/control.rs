//! The broker's messages about a connection whose data the program reads itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hvsock::Refusal;
use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE, SocketOption};
use hvsock_sys::poll::{PollFd, PollFlags};
use hvsock_sys::sync::lock;
use hvsock_sys::{message, poll};

/// How long the end of the data waits for its meaning, where the broker has not sent that before. Only with a
/// connection that the broker does not relay.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What the broker has said of the peer's data.
#[derive(Clone, Debug, Default)]
enum End {
    #[default]
    Unknown,
    Clean,
    Reset(Refusal),
}

/// The control connection, or nothing with the kernel's `AF_VSOCK`.
#[derive(Debug)]
pub(crate) struct Control {
    socket: Option<OwnedFd>,
    end: Mutex<End>,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            end: Mutex::default(),
        }
    }

    /// The control of a connection that has no messages.
    pub(crate) fn none() -> Self {
        Self {
            socket: None,
            end: Mutex::default(),
        }
    }

    /// Why the connection was reset, if the broker has said so. Does not block.
    pub(crate) fn reset_reason(&self) -> Option<io::Error> {
        let mut end = lock(&self.end);
        self.drain(&mut end);
        match &*end {
            End::Reset(refusal) => Some(refusal.clone().into_reset_error()),
            _ => None,
        }
    }

    /// What an end of the data means: a clean end, or an error. Waits for the broker's answer for a moment, if it does
    /// not relay the bytes.
    pub(crate) fn meaning_of_end(&self) -> io::Result<()> {
        let deadline = Instant::now() + END_TIMEOUT;
        let mut has_asked = false;
        loop {
            let mut end = lock(&self.end);
            self.drain(&mut end);
            match &*end {
                End::Clean => return Ok(()),
                End::Reset(refusal) => return Err(refusal.clone().into_reset_error()),
                End::Unknown => {}
            }
            drop(end);
            let Some(socket) = &self.socket else {
                return Ok(());
            };
            if !has_asked {
                has_asked = true;
                self.send(&ClientMessage::SetOption {
                    option: SocketOption::ConfirmEnd,
                    value: 1,
                });
            }
            // Another thread may receive the message, so the state is looked at from time to time.
            let slice = (Instant::now() + Duration::from_millis(20)).min(deadline);
            let mut fds = [PollFd::new(socket, PollFlags::IN)];
            poll::wait(&mut fds, Some(slice))?;
            if Instant::now() >= deadline {
                return Err(broker_silent());
            }
        }
    }

    /// Sends a message that has no answer. A broker that is gone is noticed by the next read.
    pub(crate) fn send(&self, message: &ClientMessage) {
        if let Some(socket) = &self.socket {
            let mut bytes = Vec::with_capacity(16);
            message.encode(&mut bytes);
            let _ = message::send(socket.as_fd(), &bytes, &[]);
        }
    }

    fn drain(&self, end: &mut End) {
        let Some(socket) = &self.socket else { return };
        let mut buffer = [0; MAX_MESSAGE];
        while !matches!(end, End::Reset(_)) {
            let length = match message::recv(socket, &mut buffer) {
                Ok(received) => received.len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The reason may be in the queue behind this error.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    message::recv(socket, &mut buffer).map_or(0, |received| received.len)
                }
                Err(_) => 0,
            };
            if length == 0 {
                // A broker that has ended both directions closes this, too.
                if matches!(end, End::Unknown) {
                    let cause = "the broker went away".into();
                    *end = End::Reset(Refusal::Reset { cause });
                }
                return;
            }
            match BrokerMessage::decode(&buffer[..length]) {
                Ok(BrokerMessage::Shutdown) => *end = End::Clean,
                Ok(BrokerMessage::Reset(reason) | BrokerMessage::Refused(reason)) => {
                    *end = End::Reset(Refusal::from_wire(reason.code, &reason.detail));
                }
                Ok(BrokerMessage::Suspended { .. }) => {}
                _ => {
                    let cause = "the broker violated the endpoint protocol".into();
                    *end = End::Reset(Refusal::Reset { cause });
                }
            }
        }
    }
}

fn broker_silent() -> io::Error {
    let text = "timed out: the broker does not say how the data ends";
    io::Error::new(io::ErrorKind::TimedOut, text)
}
