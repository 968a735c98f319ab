//! The descriptor by which the device notifies the driver of used buffers.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use hvsock_sys::event::Event;

/// The call descriptors that a VMM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// An eventfd for each queue.
    EachQueue,
    /// One eventfd for all queues.
    Shared,
    /// A pair of sockets for each queue. The device writes 8 bytes for each notification.
    Sockets,
}

/// A call descriptor.
#[derive(Debug)]
pub(super) enum Call {
    /// An eventfd, which both sides share, and other queues as well if the VMM has one for all.
    Event(Arc<Event>),
    /// A pair of Unix sockets. The device writes 8 bytes for each notification.
    Socket {
        /// The driver's end, which it reads.
        near: UnixStream,
        /// The device's end.
        far: UnixStream,
    },
}

impl Call {
    /// One for each of `N` queues.
    pub(super) fn for_queues<const N: usize>(calls: Calls) -> io::Result<[Self; N]> {
        let shared = Arc::new(Event::new()?);
        let mut made = Vec::with_capacity(N);
        for _ in 0..N {
            made.push(match calls {
                Calls::EachQueue => Self::Event(Arc::new(Event::new()?)),
                Calls::Shared => Self::Event(Arc::clone(&shared)),
                Calls::Sockets => {
                    let (near, far) = UnixStream::pair()?;
                    near.set_nonblocking(true)?;
                    Self::Socket { near, far }
                }
            });
        }
        made.try_into().map_err(|_| ErrorKind::Other.into())
    }

    /// Whether the device holds its end, and has notified nothing. An eventfd cannot tell its end.
    pub(super) fn is_open_and_silent(&self) -> bool {
        match self {
            Self::Event(_) => true,
            Self::Socket { near, .. } => {
                let read = (&mut &*near).read(&mut [0]);
                read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
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
