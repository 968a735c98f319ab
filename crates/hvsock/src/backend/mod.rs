//! The contract between the library and its back-ends.
//!
//! This module has the shared types. [`crate::os`] implements the contract for each operating
//! system: `execute`, `PendingConnect`, `Stream`, `Listener`, `service_id`, `vm_id` and `Lease`.

mod connection_info;
pub(crate) mod errors;
mod local_end;
mod request;
mod transfer;

use std::time::Duration;

pub(crate) use crate::os::backend::{
    Lease, Listener, PendingConnect, Stream, execute, service_id, uses_vsock, vm_id,
};
pub(crate) use connection_info::{ConnectionInfo, next_local_id};
pub(crate) use local_end::LocalEnd;
pub(crate) use request::{Request, RequestKind, Settings};
pub(crate) use transfer::{ReadInto, WriteFrom};

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
