//! What the transports of both back-ends share.

use std::io;

use crate::backend::{LocalEnd, WriteFrom, errors};

/// The result of a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// The number of bytes; 0 at the end.
    Bytes(usize),
    /// The data has ended, and it is not known yet whether that is a clean end.
    EndPending,
}

impl WriteFrom<'_, '_> {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::One(bytes) => bytes.is_empty(),
            Self::Many(slices) => slices.iter().all(|slice| slice.is_empty()),
        }
    }
}

impl LocalEnd {
    /// Converts `WouldBlock` to a timeout. The kernel returns it for both.
    pub(super) fn map_timeout(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::WouldBlock && !self.is_nonblocking() {
            return errors::timed_out();
        }
        error
    }
}
