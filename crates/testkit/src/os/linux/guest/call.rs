//! The descriptor by which the device notifies the driver of used buffers.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use hvsock_sys::event::Event;

use super::vmm::FrontEnd;

/// A call descriptor.
#[derive(Debug)]
pub(super) enum Call {
    /// An eventfd, which both sides share.
    Event(Event),
    /// A pair of Unix sockets. The device writes 8 bytes for each notification.
    Socket {
        /// The driver's end, which it reads.
        near: UnixStream,
        /// The device's end.
        far: UnixStream,
    },
}

impl Call {
    /// The kind that this front end uses.
    pub(super) fn new(front_end: FrontEnd) -> io::Result<Self> {
        match front_end {
            FrontEnd::Qemu => Event::new().map(Self::Event),
            FrontEnd::UserModeLinux => {
                let (near, far) = UnixStream::pair()?;
                near.set_nonblocking(true)?;
                Ok(Self::Socket { near, far })
            }
        }
    }

    /// The driver's end, which is readable after a notification.
    pub(super) fn near(&self) -> BorrowedFd<'_> {
        match self {
            Self::Event(event) => event.as_fd(),
            Self::Socket { near, .. } => near.as_fd(),
        }
    }

    /// The device's end.
    pub(super) fn far(&self) -> BorrowedFd<'_> {
        match self {
            Self::Event(event) => event.as_fd(),
            Self::Socket { far, .. } => far.as_fd(),
        }
    }

    /// Drains pending notifications.
    ///
    /// # Panics
    /// If the device wrote anything but whole notifications.
    pub(super) fn clear(&self) {
        let mut near = match self {
            Self::Event(event) => return event.clear(),
            Self::Socket { near, .. } => near,
        };
        let mut bytes = [0; 4096];
        loop {
            match near.read(&mut bytes) {
                Ok(0) => return,
                Ok(count) => {
                    let written = bytes[..count].chunks(8);
                    for notification in written {
                        assert_eq!(notification, 1_u64.to_ne_bytes(), "not a notification");
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the call socket: {error}"),
            }
        }
    }
}
