//! Notices when other programs close sockets that are bound to a private [`Name`].
//!
//! Nothing tells another process of the close of a socket. But a bound Unix socket holds the directory entry that it was
//! bound by, also after the file was removed. When the socket ends, the kernel frees that entry and reports so to
//! inotify.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::foreign_socket::Name;

/// A set of sockets, readable when one of them was closed.
#[derive(Debug)]
pub struct ClosedSockets(OwnedFd);

/// The number of a socket in a [`ClosedSockets`]. It is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watch(i32);

/// What a [`ClosedSockets`] has to report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// The sockets that were closed.
    pub sockets: Vec<Watch>,
    /// The kernel has dropped reports, so any other socket may have been closed as well.
    pub is_incomplete: bool,
}

impl ClosedSockets {
    /// An empty set.
    ///
    /// # Errors
    ///
    /// Those of `inotify_init1`: `EMFILE` if the user has too many of them.
    pub fn new() -> io::Result<Self> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        Ok(Self(inotify::init(flags)?))
    }

    /// Adds a socket, which must be open. `None` if the close of one with such a name is not reported.
    ///
    /// # Errors
    ///
    /// Those of `inotify_add_watch`: `ENOSPC` if the user watches too many files.
    pub fn watch(&self, name: &Name) -> io::Result<Option<Watch>> {
        let Some(path) = name.watched_path() else {
            return Ok(None);
        };
        let number = inotify::add_watch(&self.0, path, WatchFlags::DELETE_SELF)?;
        Ok(Some(Watch(number)))
    }

    /// Removes a socket, if it is there.
    pub fn forget(&self, watch: Watch) {
        // An error means that it was closed.
        let _ = inotify::remove_watch(&self.0, watch.0);
    }

    /// Sockets that were closed since the last call, at most some 250 at once: the set is readable while there are more.
    /// Does not block.
    pub fn take(&self) -> Closed {
        // The event of a file, as watched here, has no name.
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut closed = Closed::default();
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    closed.is_incomplete = true;
                }
                Ok(event) if event.events().contains(ReadFlags::DELETE_SELF) => {
                    closed.sockets.push(Watch(event.wd()));
                }
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return closed,
            }
            if reader.is_buffer_empty() {
                return closed;
            }
        }
    }
}

impl AsFd for ClosedSockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::foreign_socket;
    use crate::poll::{self, PollFd, PollFlags};

    fn is_readable(sockets: &ClosedSockets, within: Duration) -> bool {
        let mut fds = [PollFd::new(sockets, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now() + within)).unwrap()
    }

    #[test]
    fn a_socket_is_reported_when_its_last_descriptor_is_closed_and_not_before() {
        let sockets = ClosedSockets::new().unwrap();
        let [one, other] = [(); 2].map(|()| foreign_socket::create(false).unwrap());
        let [name, other_name] = [&one, &other].map(|socket| Name::bind(socket).unwrap());
        let watch = sockets.watch(&name).unwrap().unwrap();
        let other_watch = sockets.watch(&other_name).unwrap().unwrap();
        foreign_socket::listen(&one).unwrap();
        let copy = one.try_clone().unwrap();
        drop(one);
        assert!(name.queue_token().unwrap());
        assert!(!is_readable(&sockets, Duration::ZERO));
        drop(copy);
        assert!(is_readable(&sockets, Duration::from_secs(20)));
        assert_eq!(sockets.take().sockets, [watch]);
        assert!(!name.is_in_use().unwrap() && other_name.is_in_use().unwrap());
        // One that was not bound to listen is no different.
        drop(other);
        assert!(is_readable(&sockets, Duration::from_secs(20)));
        assert_eq!(sockets.take().sockets, [other_watch]);
        assert!(!is_readable(&sockets, Duration::ZERO));
    }

    #[test]
    fn a_socket_that_was_removed_from_the_set_is_not_reported() {
        let sockets = ClosedSockets::new().unwrap();
        let socket = foreign_socket::create(false).unwrap();
        let name = Name::bind(&socket).unwrap();
        let watch = sockets.watch(&name).unwrap().unwrap();
        sockets.forget(watch);
        drop(socket);
        assert_eq!(sockets.take(), Closed::default());
        sockets.forget(watch);
    }
}
