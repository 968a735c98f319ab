//! Readiness of a socket: the events to poll for, and the events that occurred.

use std::ops::BitOr;

/// The readiness to wait for: readable, writable, or either.
///
/// ```
/// use hvsock::Interest;
///
/// let both = Interest::READABLE | Interest::WRITABLE;
/// assert!(both.is_readable() && both.is_writable());
/// ```
#[doc(alias = "POLLIN")]
#[doc(alias = "POLLOUT")]
#[doc(alias = "EPOLLIN")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    readable: bool,
    writable: bool,
}

impl Interest {
    /// Receiving does not block: there are bytes, the end, or an error. On a listener: accepting
    /// does not block.
    pub const READABLE: Self = Self {
        readable: true,
        writable: false,
    };
    /// Sending does not block. On a connecting socket: the connect has completed or failed.
    pub const WRITABLE: Self = Self {
        readable: false,
        writable: true,
    };

    /// Returns true if it includes readable.
    pub const fn is_readable(self) -> bool {
        self.readable
    }

    /// Returns true if it includes writable.
    pub const fn is_writable(self) -> bool {
        self.writable
    }
}

impl BitOr for Interest {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        let readable = self.readable || other.readable;
        let writable = self.writable || other.writable;
        Self { readable, writable }
    }
}

/// The readiness of a socket. It is empty if the timeout elapsed.
#[doc(alias = "revents")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    readable: bool,
    writable: bool,
}

impl Readiness {
    pub(crate) fn new(readable: bool, writable: bool) -> Self {
        Self { readable, writable }
    }

    /// Returns true if receiving or accepting does not block.
    pub fn is_readable(self) -> bool {
        self.readable
    }

    /// Returns true if sending does not block, or the connect has completed or failed.
    pub fn is_writable(self) -> bool {
        self.writable
    }

    /// Returns true if the socket is ready for none of the requested operations.
    pub fn is_empty(self) -> bool {
        !self.readable && !self.writable
    }
}
