//! The contract between the library and its back-ends.
//!
//! This module has the shared types. [`crate::os`] implements the contract for each operating
//! system: `execute`, `PendingConnect`, `Stream`, `Listener`, `service_id`, `vm_id` and `Lease`.

mod connection_info;
pub(crate) mod errors;
mod request;

use std::io::{IoSlice, IoSliceMut};
use std::time::Duration;

pub(crate) use crate::os::backend::{
    Lease, Listener, PendingConnect, Stream, execute, service_id, uses_vsock, vm_id,
};
pub(crate) use connection_info::{ConnectionInfo, next_local_id};
pub(crate) use request::{Request, RequestKind, Settings};

use crate::Explanation;

/// The timeout of a reply that depends on the broker alone.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Connected(Stream),
    Listening(Listener),
    Explained(Explanation),
}

/// The destination of received bytes.
pub(crate) enum ReadInto<'a, 'b> {
    One(&'a mut [u8]),
    Many(&'a mut [IoSliceMut<'b>]),
    /// The bytes are not removed from the stream.
    Peek(&'a mut [u8]),
}

/// The source of sent bytes.
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
