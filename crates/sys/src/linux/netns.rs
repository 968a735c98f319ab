//! Network namespaces, for sockets in another one than this process's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace.
#[derive(Debug)]
pub struct NetworkNamespace(OwnedFd);

/// Which namespace it is, as long as it exists: two files may be of the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkNamespaceId {
    device: u64,
    inode: u64,
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for NetworkNamespace {
    /// One that another process has opened.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl NetworkNamespace {
    /// Opens the namespace of a file such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    ///
    /// Those of opening the file. What kind of file it is shows when the namespace is
    /// [entered](Self::enter).
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        // Without `NONBLOCK` a pipe would block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(Self(rustix::fs::open(path.as_ref(), flags, Mode::empty())?))
    }

    /// The namespace of this thread.
    ///
    /// # Errors
    ///
    /// Those of opening the file, such as `ENOENT` without `/proc`.
    pub fn of_this_thread() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Which one it is.
    ///
    /// # Errors
    ///
    /// Those of `fstat`.
    pub fn id(&self) -> io::Result<NetworkNamespaceId> {
        let stat = rustix::fs::fstat(&self.0)?;
        Ok(NetworkNamespaceId {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    /// Moves this thread into it, and no other. Give the thread up afterwards.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SYS_ADMIN`; `EINVAL` if it is another kind of file.
    pub fn enter(&self) -> io::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.0.as_fd(), kind).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_of_one_namespace_have_one_id() {
        let own = NetworkNamespace::of_this_thread().unwrap();
        let same = NetworkNamespace::open("/proc/self/ns/net").unwrap();
        assert_eq!(own.id().unwrap(), same.id().unwrap());
        assert!(NetworkNamespace::open("/nonexistent").is_err());
    }

    #[test]
    fn a_file_that_is_no_network_namespace_cannot_be_entered() {
        for path in ["/proc/self/ns/mnt", "/proc/self/status"] {
            let other = NetworkNamespace::open(path).unwrap();
            assert!(other.enter().is_err(), "{path}");
        }
    }
}
