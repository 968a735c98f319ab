//! One guest's connection to the broker, as frames in both directions.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use hvsock_endpoint::uplink::{FrameReader, GuestFrame, HostFrame};
use hvsock_sys::stream;

use crate::budget::Charge;

/// Bytes of frames that wait for a guest to read. While there are more, nothing is read from the guest, so that a
/// guest which does not read its answers gets no more of them.
const MAX_UNSENT: usize = 16 * 1024;

/// Bytes read at once.
const READ: usize = 4096;

/// A stream socket whose other end a guest has. It is non-blocking.
#[derive(Debug)]
pub(crate) struct GuestStream {
    socket: OwnedFd,
    reader: FrameReader,
    unsent: Vec<u8>,
    /// Bytes at the start of `unsent` that have been sent.
    sent: usize,
    /// Bytes that have been sent in sum.
    accepted: u64,
    /// Sending has failed: the guest is gone, or reads no more.
    broken: bool,
    _charge: Charge,
}

/// What one attempt to receive a frame came to.
#[derive(Debug)]
pub(crate) enum Received {
    /// A frame.
    Frame(GuestFrame),
    /// None has arrived, or the guest has to read first. An event follows.
    Later,
    /// The guest has closed its end, between two frames.
    Ended,
    /// The guest violates the protocol, or its connection is broken.
    Failed(String),
}

impl GuestStream {
    /// Takes a non-blocking socket, and the charge for it.
    pub(crate) fn new(socket: OwnedFd, charge: Charge) -> Self {
        Self {
            socket,
            reader: FrameReader::new(),
            unsent: Vec::new(),
            sent: 0,
            accepted: 0,
            broken: false,
            _charge: charge,
        }
    }

    /// A stream of another process: with bytes that it has received, and others that it was to send.
    pub(crate) fn resume(
        socket: OwnedFd,
        charge: Charge,
        received: &[u8],
        unsent: Vec<u8>,
    ) -> Self {
        let mut stream = Self::new(socket, charge);
        stream.reader.add(received);
        stream.unsent = unsent;
        stream
    }

    /// The bytes that have been received and are no whole frame yet, or have not been handled.
    pub(crate) fn received(&self) -> &[u8] {
        self.reader.rest()
    }

    /// The bytes that are to be sent.
    pub(crate) fn to_send(&self) -> &[u8] {
        &self.unsent[self.sent..]
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Receives the next frame.
    pub(crate) fn receive(&mut self) -> Received {
        loop {
            if self.is_congested() {
                return Received::Later;
            }
            match self.reader.next() {
                Ok(Some(message)) => {
                    return match GuestFrame::decode(message) {
                        Ok(frame) => Received::Frame(frame),
                        Err(error) => Received::Failed(error.to_string()),
                    };
                }
                Ok(None) => {}
                Err(error) => return Received::Failed(error.to_string()),
            }
            let mut bytes = [0; READ];
            match stream::recv(&self.socket, &mut bytes) {
                Ok(0) if self.reader.is_empty() => return Received::Ended,
                Ok(0) => return Received::Failed("the connection ends inside a frame".to_owned()),
                Ok(count) => self.reader.add(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Later,
                Err(error) => return Received::Failed(error.to_string()),
            }
        }
    }

    /// Sends a frame: queues it, and sends what the guest has room for.
    pub(crate) fn send(&mut self, frame: &HostFrame) {
        self.queue(frame);
        self.flush();
    }

    /// Queues a frame for the next [`flush`](Self::flush).
    pub(crate) fn queue(&mut self, frame: &HostFrame) {
        if !self.broken {
            frame.append(&mut self.unsent);
        }
    }

    /// The bytes that have been sent in sum.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Sends what is queued, as far as the guest has room for it.
    pub(crate) fn flush(&mut self) {
        while self.sent < self.unsent.len() && !self.broken {
            match stream::send(&self.socket, &self.unsent[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    self.accepted += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.broken = true,
            }
        }
        if self.broken || self.sent == self.unsent.len() {
            // Most connections never need the buffer.
            (self.unsent, self.sent) = (Vec::new(), 0);
        } else if self.sent > MAX_UNSENT {
            self.unsent.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// The bytes that wait for the guest to read.
    pub(crate) fn unsent(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Whether so much waits for the guest to read that nothing more is received from it.
    pub(crate) fn is_congested(&self) -> bool {
        self.unsent() > MAX_UNSENT
    }

    /// Ends the broker's data, behind what is queued. The guest may still be sending.
    pub(crate) fn finish(&self) -> io::Result<()> {
        stream::shutdown(&self.socket, std::net::Shutdown::Write)
    }

    /// Discards what the guest sends. Returns whether it has closed its end.
    pub(crate) fn discard(&mut self) -> bool {
        let mut bytes = [0; READ];
        // A guest that sends all the time waits for its turn as others do.
        for _ in 0..16 {
            match stream::recv(&self.socket, &mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
        false
    }
}

impl AsFd for GuestStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
