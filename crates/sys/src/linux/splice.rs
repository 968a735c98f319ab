//! Moving bytes from one socket to another by reference: through a pipe of the caller's, with `splice`.
//!
//! Between Unix stream sockets Linux 6.5 and later pass on the pages that the writer's bytes are in.
//! Older kernels copy them once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags};

/// A non-blocking pipe for [`fill`](Self::fill) and [`drain_to`](Self::drain_to).
#[derive(Debug)]
pub struct SplicePipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

impl SplicePipe {
    /// Creates an empty pipe of about `capacity` bytes. It is smaller if the user has used up the
    /// memory that the system allows for pipes.
    ///
    /// # Errors
    ///
    /// Those of `pipe2`.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (read, write) = rustix::pipe::pipe_with(flags)?;
        // Refused above the limits of the system and of the user; the pipe then keeps its size.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, capacity);
        let capacity = rustix::pipe::fcntl_getpipe_size(&write)?;
        Ok(Self {
            read,
            write,
            capacity,
            held: 0,
        })
    }

    /// Bytes that the pipe holds at most. It may be full with fewer, if they are in many small pieces.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes in the pipe.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves at most `most` bytes from `socket` into the pipe, which must be empty. Returns their number;
    /// 0 at the end of the stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the socket has no data; `InvalidInput` if the pipe is not empty or the system does
    /// not splice from such a socket; those of a receive.
    pub fn fill(&mut self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        if self.held > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let moved =
            super::retry(|| rustix::pipe::splice(&socket, None, &self.write, None, most, FLAGS))?;
        self.held = moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe to `socket`. Returns their number.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the socket is full; `BrokenPipe` if its peer has closed, without a signal;
    /// `InvalidInput` if the system does not splice to such a socket.
    pub fn drain_to(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let held = self.held;
        let moved = super::sigpipe::without(|| {
            rustix::io::retry_on_intr(|| {
                rustix::pipe::splice(&self.read, None, &socket, None, held, FLAGS)
            })
        })?;
        self.held = held.saturating_sub(moved);
        Ok(moved)
    }

    /// Takes the bytes out of the pipe and appends them to `bytes`.
    ///
    /// # Errors
    ///
    /// Those of `read`. The pipe must then be dropped.
    pub fn take(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let start = bytes.len();
        bytes.resize(start + self.held, 0);
        let mut at = start;
        while at < bytes.len() {
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.read, &mut bytes[at..])) {
                Ok(0) => break,
                Ok(count) => at += count,
                Err(error) => {
                    bytes.truncate(at);
                    return Err(error.into());
                }
            }
        }
        bytes.truncate(at);
        self.held = 0;
        Ok(())
    }
}

/// `SPLICE_F_MOVE` is a hint without effect today; it says what is meant.
const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{set_nonblocking, stream};

    fn pair() -> (OwnedFd, OwnedFd) {
        let (a, b) = stream::pair().unwrap();
        set_nonblocking(&a, true).unwrap();
        set_nonblocking(&b, true).unwrap();
        (a, b)
    }

    #[test]
    fn bytes_pass_through_a_pipe_in_order() {
        let ((from, source), (sink, to)) = (pair(), pair());
        let mut pipe = SplicePipe::new(256 * 1024).unwrap();
        let sent: Vec<u8> = (0..=255).cycle().take(50_000).collect();
        assert_eq!(stream::send(&from, &sent).unwrap(), sent.len());
        let mut got = Vec::new();
        while got.len() < sent.len() {
            assert!(pipe.fill(&source, pipe.capacity()).unwrap() > 0);
            while pipe.held() > 0 {
                pipe.drain_to(&sink).unwrap();
            }
            let mut part = vec![0; sent.len()];
            let count = stream::recv(&to, &mut part).unwrap();
            got.extend_from_slice(&part[..count]);
        }
        assert_eq!(got, sent);
        let empty = pipe.fill(&source, 1).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        drop(from);
        assert_eq!(pipe.fill(&source, 1).unwrap(), 0);
    }

    #[test]
    fn what_a_socket_does_not_accept_can_be_taken_out() {
        let ((from, source), (sink, to)) = (pair(), pair());
        let mut pipe = SplicePipe::new(64 * 1024).unwrap();
        assert_eq!(stream::send(&from, b"left").unwrap(), 4);
        assert_eq!(pipe.fill(&source, 100).unwrap(), 4);
        let occupied = pipe.fill(&source, 100).unwrap_err();
        assert_eq!(occupied.kind(), io::ErrorKind::InvalidInput);
        drop(to);
        let closed = pipe.drain_to(&sink).unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::BrokenPipe);
        let mut bytes = b"was ".to_vec();
        pipe.take(&mut bytes).unwrap();
        assert_eq!((bytes.as_slice(), pipe.held()), (&b"was left"[..], 0));
    }
}
