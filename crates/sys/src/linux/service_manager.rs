//! What a process says to the service manager that started it (`sd_notify(3)`), and the descriptors that this one
//! keeps for the next process of the service (`FDSTORE=1`).
//!
//! Every message is one datagram to the socket in `NOTIFY_SOCKET`. There is no answer: only
//! [`barrier`](ServiceManager::barrier) tells that the messages before it are handled, but not how.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::message;
use super::poll::{self, PollFd, PollFlags};

/// The variable with the socket.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// The variable with the number of descriptors that the service manager stores: systemd sets it since version 254,
/// and the unit of an older one can.
pub const STORE: &str = "FDSTORE";

/// How long a message may wait for room in the service manager's queue.
const SEND: Duration = Duration::from_secs(5);

/// The service manager that has started this process.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
}

impl ServiceManager {
    /// The service manager that the environment names, if one does.
    ///
    /// # Errors
    ///
    /// Those of `connect`.
    pub fn find() -> io::Result<Option<Self>> {
        match std::env::var_os(SOCKET) {
            Some(path) if !path.is_empty() => Self::at(&path).map(Some),
            _ => Ok(None),
        }
    }

    /// The one that listens at a path, or at an abstract address, which begins with `@`.
    ///
    /// # Errors
    ///
    /// Those of `connect`.
    pub fn at(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Self { socket })
    }

    /// How many descriptors it stores for this process, as the environment says; 0 without a service manager.
    pub fn store_size() -> usize {
        let size = || std::env::var(STORE).ok()?.trim().parse().ok();
        match std::env::var_os(SOCKET) {
            Some(path) if !path.is_empty() => size().unwrap_or(0),
            _ => 0,
        }
    }

    /// Says something: lines of the form `NAME=value`.
    ///
    /// # Errors
    ///
    /// Those of `send`; `TimedOut` if its queue stays full.
    pub fn notify(&self, state: &str) -> io::Result<()> {
        self.send(state, &[])
    }

    /// Has it keep duplicates of descriptors under a name, until they are [removed](Self::remove_stored) or the
    /// service ends for good. They are not watched for a hang-up.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify); `InvalidInput` for more than
    /// [`message::MAX_BATCH`](super::message::MAX_BATCH).
    pub fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let state = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        self.send(&state, descriptors)
    }

    /// Has it close all stored descriptors of a name.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify).
    pub fn remove_stored(&self, name: &str) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
    }

    /// Waits until it has handled everything that was said before.
    ///
    /// # Errors
    ///
    /// As [`notify`](Self::notify); `TimedOut` after `limit`.
    pub fn barrier(&self, limit: Duration) -> io::Result<()> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // No other assignment may be in this message.
        self.send("BARRIER=1", &[write.as_fd()])?;
        drop(write);
        let mut fds = [PollFd::new(&read, PollFlags::IN)];
        match poll::wait(&mut fds, Some(Instant::now() + limit))? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn send(&self, state: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let deadline = Instant::now() + SEND;
        loop {
            let sent = match descriptors.is_empty() {
                true => message::send(&self.socket, state.as_bytes(), &[]),
                false => message::send_batch(&self.socket, state.as_bytes(), descriptors),
            };
            match sent {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
                    if !poll::wait(&mut fds, Some(deadline))? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                result => return result,
            }
        }
    }
}

impl From<ServiceManager> for OwnedFd {
    fn from(manager: ServiceManager) -> Self {
        manager.socket.into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::notify_socket::NotifySocket;
    use super::*;

    #[test]
    fn what_is_said_and_stored_arrives_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let manager = NotifySocket::bind(&folder.path().join("notify")).unwrap();
        let service = ServiceManager::at(manager.path().as_os_str()).unwrap();
        let (one, two) = super::super::stream::pair().unwrap();
        service.notify("READY=1\nSTATUS=x").unwrap();
        service.store("state", &[one.as_fd(), two.as_fd()]).unwrap();
        service.remove_stored("old").unwrap();
        let barrier = std::thread::spawn(move || service.barrier(Duration::from_secs(30)));
        let next = || {
            let mut fds = [PollFd::new(&manager, PollFlags::IN)];
            let deadline = Instant::now() + Duration::from_secs(30);
            assert!(poll::wait(&mut fds, Some(deadline)).unwrap());
            manager.recv().unwrap().unwrap()
        };
        assert_eq!(next().state, "READY=1\nSTATUS=x");
        let stored = next();
        assert_eq!(stored.state, "FDSTORE=1\nFDNAME=state\nFDPOLL=0");
        assert_eq!(stored.descriptors.len(), 2);
        assert_eq!(next().state, "FDSTOREREMOVE=1\nFDNAME=old");
        let last = next();
        assert_eq!((&*last.state, last.descriptors.len()), ("BARRIER=1", 1));
        assert!(!barrier.is_finished());
        drop(last);
        barrier.join().unwrap().unwrap();
        assert!(manager.recv().unwrap().is_none());
    }

    #[test]
    fn a_full_queue_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let manager = NotifySocket::bind(&folder.path().join("notify")).unwrap();
        let service = ServiceManager::at(manager.path().as_os_str()).unwrap();
        // More than the queue of a socket has room for (net.unix.max_dgram_qlen).
        let said = std::thread::spawn(move || {
            (0..2000).try_for_each(|number| service.notify(&format!("STATUS={number}")))
        });
        for number in 0..2000 {
            let mut fds = [PollFd::new(&manager, PollFlags::IN)];
            let deadline = Instant::now() + Duration::from_secs(30);
            assert!(poll::wait(&mut fds, Some(deadline)).unwrap());
            let said = manager.recv().unwrap().unwrap();
            assert_eq!(said.state, format!("STATUS={number}"));
        }
        said.join().unwrap().unwrap();
    }
}
