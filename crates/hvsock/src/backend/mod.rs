//! The contract between the library and its back-ends.
//!
//! This module has the shared types. [`crate::os`] implements the contract for each operating
//! system: `execute`, `Outcome`, `PendingConnect`, `Stream`, `Listener`, `service_id`, `vm_id`, `host_id` and
//! `Lease`.

mod connection_info;
pub(crate) mod errors;
mod local_end;
mod outcome;
mod request;
mod transfer;

pub(crate) use crate::os::backend::{
    Lease, Listener, Outcome, PendingConnect, Stream, execute, host_id, service_id, uses_vsock,
    vm_id,
};
pub(crate) use connection_info::{ConnectionInfo, next_local_id};
pub(crate) use local_end::LocalEnd;
pub(crate) use outcome::OutcomeOf;
pub(crate) use request::{Description, REPLY_TIMEOUT, Request, RequestKind, Settings};
pub(crate) use transfer::{ReadInto, WriteFrom};
