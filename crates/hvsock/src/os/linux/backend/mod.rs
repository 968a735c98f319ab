//! The two back-ends of Linux, chosen at run time.
//!
//! - [`broker`]: sockets through the endpoint of a broker;
//! - [`vsock`]: the kernel's `AF_VSOCK`, for a virtual machine without a broker;
//! - [`choose`]: which of them a request goes to; [`execute`](mod@execute): the request;
//! - [`dispatch`]: the sockets of both, as the library uses them; [`transfer`]: what their transports
//!   share;
//! - [`lookup`]: names; [`lease`]: a registration that lives as long as the process.
//!
//! A further back-end is a folder beside them, a variant of each enum, and an arm in `dispatch!`. A
//! further transport of the broker is a variant inside its `Stream`.

mod broker;
mod choose;
mod dispatch;
mod execute;
mod lease;
mod lookup;
mod transfer;
mod vsock;

#[cfg(feature = "tokio")]
pub(crate) use broker::{EndpointConnection, Exchange, Step, grace, with_timeout};
pub(crate) use choose::uses_vsock;
pub(crate) use dispatch::{Listener, PendingConnect, Stream};
#[cfg(feature = "tokio")]
pub(crate) use execute::needs_host;
pub(crate) use execute::{Outcome, execute};
pub(crate) use lease::Lease;
pub(crate) use lookup::{host_id, service_id, vm_id};
pub(crate) use transfer::Received;
