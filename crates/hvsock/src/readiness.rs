//! What a socket is waited for, and what it is ready for.

use std::ops::BitOr;

/// What to wait for: to receive or accept, to send or have connected, or either.
///
/// ```
/// use hvsock::Interest;
///
/// let both = Interest::READABLE | Interest::WRITABLE;
/// assert!(both.is_readable() && both.is_writable());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    readable: bool,
    writable: bool,
}

impl Interest {
    /// Receiving bytes, the end or an error; on a listener, accepting.
    pub const READABLE: Self = Self {
        readable: true,
        writable: false,
    };
    /// Sending; on a socket that connects, the end of connecting, well or not.
    pub const WRITABLE: Self = Self {
        readable: false,
        writable: true,
    };

    /// Whether reading is among them.
    pub const fn is_readable(self) -> bool {
        self.readable
    }

    /// Whether writing is among them.
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

/// What a socket is ready for; nothing after a time limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    readable: bool,
    writable: bool,
}

impl Readiness {
    pub(crate) fn new(readable: bool, writable: bool) -> Self {
        Self { readable, writable }
    }

    /// Whether receiving or accepting would not wait.
    pub fn is_readable(self) -> bool {
        self.readable
    }

    /// Whether sending would not wait, or connecting is over.
    pub fn is_writable(self) -> bool {
        self.writable
    }

    /// Whether it is ready for nothing that was waited for.
    pub fn is_empty(self) -> bool {
        !self.readable && !self.writable
    }
}
