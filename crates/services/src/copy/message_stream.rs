//! Messages and raw bytes over a connection.

use std::io::{self, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest};
use prost::Message;

use super::{CopyError, MESSAGE};

/// The idle timeout: how long an end waits for the peer before it gives up.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often an end that computes sends a keepalive.
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(5);

/// Small messages are batched up to this size before they are written, in bytes.
const BATCH: usize = 64 * 1024;

/// A connection to the other end of a copy.
pub trait Link: Read + Write {
    /// Whether there is unread input, or the peer has closed.
    ///
    /// # Errors
    ///
    /// The connection's error.
    fn has_input(&mut self) -> io::Result<bool>;
}

impl Link for HvStream {
    fn has_input(&mut self) -> io::Result<bool> {
        Ok(!self
            .poll(Interest::READABLE, Some(Duration::ZERO))?
            .is_empty())
    }
}

/// Whether a call has ended because of the connection's timeout.
fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// A connection with its input and output buffers.
#[derive(Debug)]
pub struct MessageStream<L> {
    link: L,
    out: Vec<u8>,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    read_ahead: usize,
    last_sent: Instant,
}

impl<L: Link> MessageStream<L> {
    /// Wraps a new connection, on which nothing has been read or written.
    pub fn new(link: L) -> Self {
        Self {
            link,
            out: Vec::with_capacity(BATCH),
            input: vec![0; 4 + MESSAGE].into(),
            start: 0,
            end: 0,
            read_ahead: usize::MAX,
            last_sent: Instant::now(),
        }
    }

    /// Wraps a connection on which these bytes have been read after the last message. There are
    /// fewer of them than the largest message has.
    #[cfg(feature = "guest")]
    pub(crate) fn resumed(link: L, received: &[u8]) -> Self {
        let mut stream = Self::new(link);
        stream.input[..received.len()].copy_from_slice(received);
        stream.end = received.len();
        stream
    }

    /// The connection.
    pub fn link(&self) -> &L {
        &self.link
    }

    /// Sends a message. It may stay in the output buffer until [`MessageStream::flush`].
    pub(crate) fn send(&mut self, message: &impl Message) -> Result<(), CopyError> {
        let length = message.encoded_len();
        if length > MESSAGE {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "a message is too long");
            return Err(CopyError::Broken(error));
        }
        self.out.extend((length as u32).to_le_bytes());
        message.encode_raw(&mut self.out);
        if self.out.len() >= BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends raw bytes, with the same buffering.
    pub(super) fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        if self.out.len() + bytes.len() < BATCH {
            self.out.extend(bytes);
            return Ok(());
        }
        self.write_out(bytes)
    }

    /// Writes the output buffer to the connection.
    pub(crate) fn flush(&mut self) -> Result<(), CopyError> {
        self.write_out(&[])
    }

    fn write_out(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        let sent = self.write_with(bytes);
        self.out.clear();
        self.last_sent = Instant::now();
        sent.map_err(CopyError::Broken)
    }

    fn write_with(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut slices = [IoSlice::new(&self.out), IoSlice::new(bytes)];
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match self.link.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut slices, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The peer does not read at present, but says that it waits for something itself, such
                // as the reader of its standard output.
                Err(error) if is_timeout(&error) => {
                    let free = &mut self.input[self.end..];
                    match free.is_empty() || !self.link.has_input()? {
                        true => return Err(error),
                        false => match self.link.read(free)? {
                            0 => return Err(error),
                            read => self.end += read,
                        },
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.link.flush()
    }

    /// Whether it is time for a keepalive.
    pub(super) fn keepalive_due(&self) -> bool {
        self.last_sent.elapsed() >= KEEPALIVE
    }

    /// Whether there is unread input, at least a part of a message, or the end of the connection.
    pub(super) fn has_input(&mut self) -> Result<bool, CopyError> {
        if self.start < self.end {
            return Ok(true);
        }
        self.link.has_input().map_err(CopyError::Broken)
    }

    /// Limits reading ahead. Set it while messages are followed by large raw bytes, which would
    /// otherwise be copied through the input buffer.
    pub(super) fn limit_read_ahead(&mut self, limit: bool) {
        self.read_ahead = if limit { 64 } else { usize::MAX };
    }

    /// Receives the next message.
    pub(crate) fn receive<M: Message + Default>(&mut self) -> Result<M, CopyError> {
        if !self.fill_to(4)? {
            return Err(CopyError::Ended);
        }
        let mut length = [0; 4];
        length.copy_from_slice(&self.input[self.start..self.start + 4]);
        let length = u32::from_le_bytes(length) as usize;
        if length > MESSAGE {
            return Err(CopyError::Violation("a message of more than 64 KiB"));
        }
        if !self.fill_to(4 + length)? {
            return Err(CopyError::Ended);
        }
        let begin = self.start + 4;
        self.start = begin + length;
        M::decode(&self.input[begin..begin + length])
            .map_err(|_| CopyError::Violation("an invalid message"))
    }

    /// Receives raw bytes, exactly as many as fit into `into`.
    pub(super) fn receive_bytes(&mut self, into: &mut [u8]) -> Result<(), CopyError> {
        let here = (self.end - self.start).min(into.len());
        into[..here].copy_from_slice(&self.input[self.start..self.start + here]);
        self.start += here;
        match self.link.read_exact(&mut into[here..]) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(CopyError::Ended),
            Err(error) => Err(CopyError::Broken(error)),
        }
    }

    /// Reads until `count` bytes are buffered, which must fit into the buffer. Returns `false` at
    /// the end of the connection.
    fn fill_to(&mut self, count: usize) -> Result<bool, CopyError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start + count > self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < count {
            let missing = count - (self.end - self.start);
            let free = self.input.len() - self.end;
            let wanted = free.min(self.read_ahead.max(missing));
            match self.link.read(&mut self.input[self.end..self.end + wanted]) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CopyError::Broken(error)),
            }
        }
        Ok(true)
    }
}
