//! Content for something that is written to in order: a pipe, a device, or a descriptor such as the
//! standard output.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, FileType, OFlags};
use rustix::io::Errno;

use super::super::message_stream::Link;
use super::super::name::Name;
use super::super::sum::Sum;
use super::super::{BUFFER, CopyError};
use super::Receiver;
use super::target::Existing;
use crate::wire::copy as wire;

/// How long to wait for a process that opens a pipe for reading. It is often started at the same time.
const READER: Duration = Duration::from_secs(5);

/// How long to wait for the reader of a pipe or for a device to take more. It is shorter than the other
/// end's idle timeout, so that the reason of the failure reaches it.
const STALLED: Duration = Duration::from_secs(50);

/// How often a wait checks whether a keepalive is due.
const TICK: Duration = Duration::from_millis(500);

/// How long a wait is before it is told.
const TELL: Duration = Duration::from_millis(500);

/// How often to try to open a pipe that has no reader.
const RETRY: Duration = Duration::from_millis(20);

/// What is written without blocking once there is space at all: `PIPE_BUF` on Linux, in bytes.
const SMALL: usize = 4096;

/// An open pipe, device or descriptor.
#[derive(Debug)]
pub(super) struct Stream {
    file: Arc<OwnedFd>,
    /// The most bytes of one write.
    most: usize,
    /// How long to wait for space, if not forever.
    limit: Option<Duration>,
}

impl Stream {
    /// A descriptor that others share. Its reader is the user's own, so the wait for it has no limit.
    pub(super) fn shared(descriptor: &Arc<OwnedFd>) -> Self {
        let kind = fs::fstat(descriptor).map(|stat| FileType::from_raw_mode(stat.st_mode));
        // A shared descriptor must not be made non-blocking.
        let most = match kind {
            Ok(FileType::RegularFile | FileType::BlockDevice) => BUFFER,
            _ => SMALL,
        };
        Self {
            file: Arc::clone(descriptor),
            most,
            limit: None,
        }
    }

    /// Writes some of the bytes. `None` if there is no space now.
    fn write_some(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::OUT)];
        match poll(&mut fds, Some(&timespec(TICK))) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::io::write(&self.file, &bytes[..bytes.len().min(self.most)]) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => Ok(Some(count)),
            Err(Errno::INTR | Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl<L: Link> Receiver<'_, L> {
    /// Opens the pipe or device at `name`.
    pub(super) fn open_special(
        &mut self,
        existing: &Existing,
        folder: &OwnedFd,
        name: &Name,
    ) -> Result<io::Result<Stream>, CopyError> {
        let is_pipe = FileType::from_raw_mode(existing.stat.st_mode) == FileType::Fifo;
        let since = Instant::now();
        let mut told = false;
        let file = loop {
            // Without a reader it would block.
            match existing.open(folder, name, OFlags::WRONLY) {
                Err(error) if is_pipe && is(&error, Errno::NXIO) => {
                    if since.elapsed() >= READER {
                        let why = format!("no process reads from this pipe (waited {READER:?})");
                        return Ok(Err(io::Error::new(io::ErrorKind::TimedOut, why)));
                    }
                    if !told && since.elapsed() >= TELL {
                        told = true;
                        self.waits_for("a process that reads from the pipe")?;
                    }
                    self.keep_alive()?;
                    thread::sleep(RETRY);
                }
                opened => break opened,
            }
        };
        Ok(file.map(|file| Stream {
            file: Arc::new(file),
            most: BUFFER,
            limit: Some(STALLED),
        }))
    }

    /// Receives the content of a file into `stream`.
    pub(super) fn stream(&mut self, file: &wire::File, stream: &Stream) -> Result<(), CopyError> {
        if file.ask {
            self.agree(None)?;
        }
        let mut sum = Sum::new();
        let mut buffer = vec![0; BUFFER];
        let mut done = Ok(());
        let end = loop {
            let before = sum.position();
            let (offset, length) = match self.next_chunk(before)? {
                Ok(chunk) => chunk,
                Err(end) => break end,
            };
            self.zeros(stream, offset - before, &mut done)?;
            sum.zeros(offset - before);
            self.observer.advance(offset - before);
            let mut rest = length;
            while rest > 0 {
                let now = rest.min(BUFFER);
                self.messages.receive_bytes(&mut buffer[..now])?;
                sum.data(&buffer[..now]);
                self.write(stream, &buffer[..now], &mut done)?;
                self.counters.bytes += now as u64;
                self.observer.advance(now as u64);
                rest -= now;
            }
        };
        if end.broken {
            return self.broken();
        }
        let hole = end.size.saturating_sub(sum.position());
        self.zeros(stream, hole, &mut done)?;
        if done.is_ok() && self.sync {
            done = match fs::fsync(&stream.file) {
                // Nothing that could be flushed.
                Ok(()) | Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        match done {
            Err(error) => self.fails(error),
            Ok(()) => match self.check(&end, &sum)? {
                Some(checksum) => {
                    self.count(file, &checksum);
                    Ok(())
                }
                None => {
                    let why =
                        "the checksum does not match, and what was written cannot be taken back";
                    self.note(why.to_owned())
                }
            },
        }
    }

    fn zeros(
        &mut self,
        stream: &Stream,
        mut count: u64,
        done: &mut io::Result<()>,
    ) -> Result<(), CopyError> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        while count > 0 && done.is_ok() {
            let now = count.min(ZEROS.len() as u64);
            self.write(stream, &ZEROS[..now as usize], done)?;
            self.keep_alive()?;
            count -= now;
        }
        Ok(())
    }

    /// Writes all bytes, unless there was an error before. An error ends the copy if nothing else is
    /// to be copied.
    fn write(
        &mut self,
        stream: &Stream,
        mut bytes: &[u8],
        done: &mut io::Result<()>,
    ) -> Result<(), CopyError> {
        let mut since = Instant::now();
        while !bytes.is_empty() && done.is_ok() {
            match stream.write_some(bytes) {
                Ok(Some(count)) => {
                    bytes = &bytes[count..];
                    since = Instant::now();
                }
                Ok(None) => {
                    self.keep_alive()?;
                    if stream.limit.is_some_and(|limit| since.elapsed() >= limit) {
                        let why = format!("it has taken no data for {STALLED:?}");
                        *done = Err(io::Error::new(io::ErrorKind::TimedOut, why));
                    }
                }
                Err(error) => *done = Err(error),
            }
        }
        match done {
            Err(_) if self.destination.is_single() => {
                let error = std::mem::replace(done, Ok(()));
                let path = &self.destination.path;
                error.map_err(|error| CopyError::local(path, error))
            }
            _ => Ok(()),
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}
