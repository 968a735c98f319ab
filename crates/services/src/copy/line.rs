//! Messages and bytes over a connection.

use std::io::{self, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest};
use prost::Message;

use super::{CopyError, MESSAGE};

/// How long an end waits for a word of the other before it gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often an end that computes says that it does.
const WORKING: Duration = Duration::from_secs(5);

/// What small messages are gathered to before they go.
const GATHERED: usize = 64 * 1024;

/// A connection to the other end of a copy.
pub trait Link: Read + Write {
    /// Whether the other end has said something that is not read yet, or is gone.
    fn heard(&mut self) -> io::Result<bool>;
}

impl Link for HvStream {
    fn heard(&mut self) -> io::Result<bool> {
        Ok(!self
            .poll(Interest::READABLE, Some(Duration::ZERO))?
            .is_empty())
    }
}

/// A connection with what is on its way in and out.
#[derive(Debug)]
pub struct Line<L> {
    link: L,
    out: Vec<u8>,
    input: Box<[u8]>,
    start: usize,
    end: usize,
    ahead: usize,
    said: Instant,
}

impl<L: Link> Line<L> {
    /// The connection, of which nothing has been read or written.
    pub fn new(link: L) -> Self {
        Self {
            link,
            out: Vec::with_capacity(GATHERED),
            input: vec![0; 4 + MESSAGE].into(),
            start: 0,
            end: 0,
            ahead: usize::MAX,
            said: Instant::now(),
        }
    }

    /// The connection.
    pub fn link(&self) -> &L {
        &self.link
    }

    /// Sends a message, soon: it is on its way for sure after [`Line::flush`].
    pub(crate) fn send(&mut self, message: &impl Message) -> Result<(), CopyError> {
        let length = message.encoded_len();
        if length > MESSAGE {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "a message is too long");
            return Err(CopyError::Broken(error));
        }
        self.out.extend((length as u32).to_le_bytes());
        message.encode_raw(&mut self.out);
        if self.out.len() >= GATHERED {
            self.flush()?;
        }
        Ok(())
    }

    /// Sends bytes as they are, likewise.
    pub(super) fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        if self.out.len() + bytes.len() < GATHERED {
            self.out.extend(bytes);
            return Ok(());
        }
        self.write_out(bytes)
    }

    /// Has everything on its way.
    pub(crate) fn flush(&mut self) -> Result<(), CopyError> {
        self.write_out(&[])
    }

    fn write_out(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        let sent = self.write_with(bytes);
        self.out.clear();
        self.said = Instant::now();
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
                Err(error) => return Err(error),
            }
        }
        self.link.flush()
    }

    /// Whether it is time to say that this end is at work.
    pub(super) fn is_silent(&self) -> bool {
        self.said.elapsed() >= WORKING
    }

    /// Whether there is a message to be received, at least in part, or the end.
    pub(super) fn heard(&mut self) -> Result<bool, CopyError> {
        if self.start < self.end {
            return Ok(true);
        }
        self.link.heard().map_err(CopyError::Broken)
    }

    /// Whether a message comes alone, so that no bytes that follow it are read along, which would
    /// have to be copied once more.
    pub(super) fn read_little(&mut self, little: bool) {
        self.ahead = if little { 64 } else { usize::MAX };
    }

    /// The next message.
    pub(crate) fn receive<M: Message + Default>(&mut self) -> Result<M, CopyError> {
        if !self.have(4)? {
            return Err(CopyError::Ended);
        }
        let mut length = [0; 4];
        length.copy_from_slice(&self.input[self.start..self.start + 4]);
        let length = u32::from_le_bytes(length) as usize;
        if length > MESSAGE {
            return Err(CopyError::Violation("a message of more than 64 KiB"));
        }
        if !self.have(4 + length)? {
            return Err(CopyError::Ended);
        }
        let begin = self.start + 4;
        self.start = begin + length;
        M::decode(&self.input[begin..begin + length])
            .map_err(|_| CopyError::Violation("not a message"))
    }

    /// Bytes as they are, as many as there is room for.
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

    /// Reads until there are `count` bytes, which the buffer has room for; `false` at the end.
    fn have(&mut self, count: usize) -> Result<bool, CopyError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.start + count > self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < count {
            let missing = count - (self.end - self.start);
            let room = self.input.len() - self.end;
            let wanted = room.min(self.ahead.max(missing));
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
