//! The pipe or Unix socket that a VMM gives for a device's state, read and written without blocking.
//!
//! `O_NONBLOCK` belongs to the open file description, which the VMM has too and can make blocking again at any
//! time. So a pipe is opened anew, and a socket is asked with each call not to block.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use hvsock_sys::stream;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::AddressFamily;

/// The offset of `preadv2` and `pwritev2` in a file without positions.
const NO_OFFSET: u64 = u64::MAX;

/// What is done with a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// How not to block on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A pipe by a non-blocking description of its own.
    Pipe,
    /// A pipe of another user, which may not be opened anew. Since Linux 6.4 a call can ask not to block.
    SharedPipe,
    /// A Unix socket.
    Socket,
}

/// A pipe or Unix socket.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    kind: Kind,
}

impl StateFile {
    /// For `file`, which must be open for this direction.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is neither a pipe nor a Unix socket; `PermissionDenied` if it is not open for the
    /// direction; `BrokenPipe` if nobody reads a pipe that is to be written.
    pub(super) fn new(file: File, direction: Direction) -> io::Result<Self> {
        match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
            FileType::Fifo => pipe(file, direction),
            FileType::Socket
                if rustix::net::sockopt::socket_domain(&file)? == AddressFamily::UNIX =>
            {
                let kind = Kind::Socket;
                Ok(Self { file, kind })
            }
            _ => {
                let text = "the descriptor for it is neither a pipe nor a Unix socket";
                Err(io::Error::new(io::ErrorKind::InvalidInput, text))
            }
        }
    }

    /// Reads once. Returns the number of bytes, 0 at the end.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing is there; those of `read`.
    pub(super) fn read(&self, block: &mut [u8]) -> io::Result<usize> {
        match self.kind {
            Kind::Socket => stream::try_recv(&self.file, &mut [IoSliceMut::new(block)]),
            Kind::Pipe => {
                let read = || rustix::io::read(&self.file, &mut *block);
                Ok(rustix::io::retry_on_intr(read)?)
            }
            Kind::SharedPipe => {
                let flags = ReadWriteFlags::NOWAIT;
                let mut slices = [IoSliceMut::new(block)];
                let read = || rustix::io::preadv2(&self.file, &mut slices, NO_OFFSET, flags);
                Ok(rustix::io::retry_on_intr(read)?)
            }
        }
    }

    /// Writes once. Returns the number of bytes. A pipe without a reader raises no signal.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the pipe or socket is full; those of `write`.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.kind {
            Kind::Socket => stream::try_send(&self.file, &[IoSlice::new(bytes)]),
            Kind::Pipe => hvsock_sys::write(&self.file, bytes),
            Kind::SharedPipe => hvsock_sys::try_write(&self.file, bytes),
        }
    }
}

impl AsFd for StateFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn pipe(file: File, direction: Direction) -> io::Result<StateFile> {
    // To open it anew must not give more access than the VMM has.
    let opened = rustix::fs::fcntl_getfl(&file)?;
    let mode = opened & OFlags::RWMODE;
    let wanted = match direction {
        Direction::Read => OFlags::RDONLY,
        Direction::Write => OFlags::WRONLY,
    };
    if opened.contains(OFlags::PATH) || (mode != wanted && mode != OFlags::RDWR) {
        let text = "the pipe for it is not open for this direction";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let flags = wanted | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::open(itself, flags, Mode::empty()) {
        Ok(own) => Ok(StateFile {
            file: own.into(),
            kind: Kind::Pipe,
        }),
        Err(Errno::ACCESS | Errno::PERM | Errno::NOENT) => Ok(StateFile {
            file,
            kind: Kind::SharedPipe,
        }),
        // No process reads it.
        Err(Errno::NXIO) => Err(Errno::PIPE.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn a_pipe_that_may_not_be_opened_anew_does_not_block_either() {
        let (reader, writer) = io::pipe().unwrap();
        let [reader, writer] = [OwnedFd::from(reader), OwnedFd::from(writer)].map(File::from);
        let shared = |file: &File| StateFile {
            file: file.try_clone().unwrap(),
            kind: Kind::SharedPipe,
        };
        let mut block = [0; 64];
        let kind = |done: io::Result<usize>| done.map_err(|error| error.kind());
        match kind(shared(&reader).read(&mut block)) {
            // Before Linux 6.4.
            Err(io::ErrorKind::Unsupported) => return,
            other => assert_eq!(other, Err(io::ErrorKind::WouldBlock)),
        }
        (&writer).write_all(b"state").unwrap();
        assert_eq!(kind(shared(&reader).read(&mut block)), Ok(5));
        while shared(&writer).write(&[0; 4096]).is_ok() {}
        let full = kind(shared(&writer).write(&[0; 4096]));
        assert_eq!(full, Err(io::ErrorKind::WouldBlock));
        drop(reader);
        let broken = kind(shared(&writer).write(&[0]));
        assert_eq!(broken, Err(io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_state_file_gives_no_access_that_the_vmm_does_not_have() {
        let (reader, writer) = io::pipe().unwrap();
        let [reader, writer] = [OwnedFd::from(reader), OwnedFd::from(writer)].map(File::from);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let itself = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let path = File::from(rustix::fs::open(itself, flags, Mode::empty()).unwrap());
        for (file, direction) in [
            (&reader, Direction::Write),
            (&writer, Direction::Read),
            (&path, Direction::Read),
        ] {
            let error = StateFile::new(file.try_clone().unwrap(), direction).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
    }
}
