//! The socket between predecessor and successor.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_sys::pidfd::Process;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{message, stream};
use rustix::io::Errno;

use super::bundle::Carrier;
use super::error::HandoverError;
use super::protocol::{MAX_MESSAGE, Message};

/// How long to wait while the system allows no more descriptors in flight.
const IN_FLIGHT_WAIT: Duration = Duration::from_millis(1);

/// The socket, and the process at its other end.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: Arc<OwnedFd>,
    peer: Process,
}

/// What arrived.
#[derive(Debug)]
pub(crate) enum Arrived {
    Message(Message, Vec<OwnedFd>),
    Nonsense(String),
    /// The other side is gone, or stopped receiving.
    Closed,
    Expired,
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd, peer: Process) -> Self {
        let socket = Arc::new(socket);
        Self { socket, peer }
    }

    /// The process at the other end.
    pub(crate) fn peer(&self) -> &Process {
        &self.peer
    }

    /// Sends a message with at most a batch of descriptors. Waits until `deadline` for room.
    ///
    /// # Errors
    ///
    /// `TimedOut` at the deadline; `BrokenPipe` if the other side is gone or has stopped receiving.
    pub(crate) fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> io::Result<()> {
        send(&self.socket, message, descriptors, deadline)
    }

    /// Where batches of descriptors go, until `deadline`.
    pub(crate) fn carrier(&self, deadline: Instant) -> Box<dyn Carrier> {
        let socket = Arc::clone(&self.socket);
        Box::new(Batches { socket, deadline })
    }

    /// The next message. Waits for it until `deadline`.
    pub(crate) fn recv(&self, deadline: Instant) -> Arrived {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            match message::recv_batch(&self.socket, &mut buffer) {
                Ok(received) if received.len == 0 => return Arrived::Closed,
                Ok(received) if received.dropped_descriptors => {
                    let what = "this process has no room for all descriptors";
                    return Arrived::Nonsense(what.into());
                }
                Ok(received) => {
                    let bytes = buffer.get(..received.len).unwrap_or_default();
                    return match Message::decode(bytes) {
                        Ok(message) => Arrived::Message(message, received.descriptors),
                        Err(what) => Arrived::Nonsense(what),
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&*self.socket, PollFlags::IN)];
                    match poll::wait(&mut fds, Some(deadline)) {
                        Ok(true) => {}
                        Ok(false) => return Arrived::Expired,
                        Err(error) => return Arrived::Nonsense(error.to_string()),
                    }
                }
                Err(error) if is_gone(&error) => return Arrived::Closed,
                Err(error) => return Arrived::Nonsense(error.to_string()),
            }
        }
    }

    /// Lets nothing more arrive. What is in the queue can be received; whether a message is, is decided when this
    /// returns.
    pub(crate) fn stop_receiving(&self) {
        // It fails only for a socket that is not connected.
        let _ = stream::shutdown(&*self.socket, Shutdown::Read);
    }

    /// Waits until something can be received, or the other process has ended.
    pub(crate) fn wait_for_more(&self, deadline: Instant) {
        let mut fds = [
            PollFd::new(&*self.socket, PollFlags::IN),
            PollFd::new(&self.peer, PollFlags::IN),
        ];
        let _ = poll::wait(&mut fds, Some(deadline));
    }

    /// Waits for the end of the other process. Returns whether it has ended.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        let mut fds = [PollFd::new(&self.peer, PollFlags::IN)];
        poll::wait(&mut fds, Some(deadline)).unwrap_or(false)
    }
}

/// Sends batches of descriptors.
struct Batches {
    socket: Arc<OwnedFd>,
    deadline: Instant,
}

impl Carrier for Batches {
    fn carry(&mut self, first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let message = Message::Descriptors {
            first,
            // At most a batch.
            count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
        };
        let sent = send(&self.socket, &message, batch, self.deadline);
        sent.map_err(HandoverError::io("send descriptors to the new broker"))
    }
}

fn send(
    socket: impl AsFd,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
    deadline: Instant,
) -> io::Result<()> {
    let bytes = message.encode();
    loop {
        let sent = match descriptors.is_empty() {
            true => message::send(&socket, &bytes, &[]),
            false => message::send_batch(&socket, &bytes, descriptors),
        };
        let Err(error) = sent else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
                poll::wait(&mut fds, Some(deadline))?;
            }
            // Until the other side has received those before.
            Some(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => {
                std::thread::sleep(IN_FLIGHT_WAIT);
            }
            _ => return Err(error),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn pair() -> [Channel; 2] {
        let (a, b) = hvsock_sys::seqpacket::pair().unwrap();
        let own = || Process::open(std::process::id()).unwrap();
        [Channel::new(a, own()), Channel::new(b, own())]
    }

    /// The kernel's part of the commit point.
    #[test]
    fn after_receiving_has_stopped_what_was_sent_arrives_and_nothing_can_be_sent() {
        let [a, b] = pair();
        b.send(&Message::Restored, &[], soon()).unwrap();
        b.send(&Message::Started, &[], soon()).unwrap();
        a.stop_receiving();
        let error = b.send(&Message::Started, &[], soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        for expected in [Message::Restored, Message::Started] {
            let arrived = a.recv(soon());
            assert!(matches!(arrived, Arrived::Message(message, _) if message == expected));
        }
        assert!(matches!(a.recv(soon()), Arrived::Closed));
        // The other direction is open.
        a.send(&Message::abort("x"), &[], soon()).unwrap();
        assert!(matches!(
            b.recv(soon()),
            Arrived::Message(Message::Abort { .. }, _)
        ));
    }

    #[test]
    fn a_message_is_sent_or_not_while_receiving_stops_and_both_sides_know_which() {
        for _ in 0..2000 {
            let [a, b] = pair();
            let sender = std::thread::spawn(move || {
                let sent = b.send(&Message::Started, &[], soon()).is_ok();
                (sent, b)
            });
            a.stop_receiving();
            let arrived = matches!(a.recv(soon()), Arrived::Message(..));
            let (sent, _b) = sender.join().unwrap();
            assert_eq!(sent, arrived);
        }
    }

    #[test]
    fn a_full_queue_is_waited_for_and_a_deadline_ends_that() {
        let [a, b] = pair();
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = loop {
            if let Err(error) = a.send(&Message::Begin, &[], deadline) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(matches!(a.recv(Instant::now()), Arrived::Expired));
        assert!(matches!(
            b.recv(Instant::now()),
            Arrived::Message(Message::Begin, _)
        ));
        drop(b);
        assert!(matches!(a.recv(soon()), Arrived::Closed));
    }
}
