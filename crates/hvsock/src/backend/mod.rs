//! What the rest of the library asks of whatever makes sockets and moves their bytes.
//!
//! Here are the words of that contract. [`crate::os`] has what keeps to it on each operating
//! system: `obtain`, `Dial`, `Stream` and `Listener`, `service_id` and `vm_id`, and `Lease`.

pub(crate) mod ending;
mod ends;
mod request;

use std::io::{IoSlice, IoSliceMut};
use std::time::Duration;

pub(crate) use crate::os::backend::{
    Dial, Lease, Listener, Stream, obtain, service_id, uses_vsock, vm_id,
};
pub(crate) use ends::{Ends, own_number};
pub(crate) use request::{Request, RequestKind, Settings};

use crate::Explanation;

/// How long an answer may take that waits for no other process.
pub(crate) const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Connected(Stream),
    Listening(Listener),
    Explained(Explanation),
}

/// Where received bytes go.
pub(crate) enum ReadInto<'a, 'b> {
    One(&'a mut [u8]),
    Many(&'a mut [IoSliceMut<'b>]),
    /// They stay to be received.
    Peek(&'a mut [u8]),
}

/// Where sent bytes come from.
#[derive(Clone, Copy)]
pub(crate) enum WriteFrom<'a, 'b> {
    One(&'a [u8]),
    Many(&'a [IoSlice<'b>]),
}

impl ReadInto<'_, '_> {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::One(buffer) | Self::Peek(buffer) => buffer.is_empty(),
            Self::Many(slices) => slices.iter().all(|slice| slice.is_empty()),
        }
    }
}
