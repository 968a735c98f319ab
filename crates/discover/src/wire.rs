//! A connection to a manager's socket that is bounded in time and bytes.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::Unavailable;

/// The bytes that one manager may answer in all. A description of a virtual machine has some kilobytes.
const MAX_BYTES: usize = 64 << 20;

/// A connection to a manager.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    path: PathBuf,
    deadline: Instant,
    /// The bytes that it may still answer.
    left: usize,
    /// Bytes that were read and not returned yet.
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects. All calls on it together end at `deadline`.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Self, Unavailable> {
        let failed = |error: io::Error| Unavailable::io(path, error);
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| failed(error.into()))?;
        // A full backlog would block connect(2) without a limit.
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::AGAIN) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        Self::over(socket, path, deadline).map_err(failed)
    }

    fn over(socket: OwnedFd, path: &Path, deadline: Instant) -> io::Result<Self> {
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            deadline,
            left: MAX_BYTES,
            buffer: Vec::new(),
        })
    }

    /// Writes all of `bytes`.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Unavailable> {
        while !bytes.is_empty() {
            let limit = self.limit()?;
            let wrote = self
                .stream
                .set_write_timeout(Some(limit))
                .and_then(|()| self.stream.write(bytes));
            match wrote {
                Ok(0) => return Err(self.ended()),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Reads exactly this many bytes.
    pub fn read(&mut self, count: usize) -> Result<Vec<u8>, Unavailable> {
        while self.buffer.len() < count {
            if self.fill()? == 0 {
                return Err(self.ended());
            }
        }
        let rest = self.buffer.split_off(count);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Reads up to and without this byte. A line of more than `max` bytes is invalid.
    pub fn line(&mut self, end: u8, max: usize) -> Result<Vec<u8>, Unavailable> {
        let mut seen = 0;
        loop {
            let found = self.buffer[seen..].iter().position(|byte| *byte == end);
            if let Some(at) = found.map(|at| seen + at).filter(|at| *at <= max) {
                let mut line = self.read(at + 1)?;
                line.pop();
                return Ok(line);
            }
            seen = self.buffer.len();
            if seen > max {
                return Err(self.invalid("a line is too long"));
            }
            if self.fill()? == 0 {
                return Err(self.ended());
            }
        }
    }

    /// Reads to the end of the stream.
    pub fn rest(&mut self) -> Result<Vec<u8>, Unavailable> {
        while self.fill()? > 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// The error for an answer that its protocol forbids.
    pub fn invalid(&self, why: &'static str) -> Unavailable {
        let path = self.path.clone();
        Unavailable::Invalid { path, why }
    }

    /// The error for a refusal in the manager's words.
    pub fn refused(&self, why: &str) -> Unavailable {
        let (path, why) = (self.path.clone(), why.to_owned());
        Unavailable::Refused { path, why }
    }

    /// The error for a question that this user may not ask.
    pub fn forbidden(&self) -> Unavailable {
        let path = self.path.clone();
        Unavailable::Forbidden { path }
    }

    fn ended(&self) -> Unavailable {
        self.invalid("it closed the connection early")
    }

    fn failed(&self, error: io::Error) -> Unavailable {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.ended(),
            _ => Unavailable::io(&self.path, error),
        }
    }

    /// The time that is left, which is not 0: that would be no limit.
    fn limit(&self) -> Result<Duration, Unavailable> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(Unavailable::Silent {
                path: self.path.clone(),
            }),
            false => Ok(left),
        }
    }

    fn fill(&mut self) -> Result<usize, Unavailable> {
        let mut chunk = [0; 16 << 10];
        loop {
            let limit = self.limit()?;
            let read = self
                .stream
                .set_read_timeout(Some(limit))
                .and_then(|()| self.stream.read(&mut chunk));
            match read {
                Ok(count) if count > self.left => {
                    return Err(self.invalid("the answer is too long"));
                }
                Ok(count) => {
                    self.left -= count;
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }
}
