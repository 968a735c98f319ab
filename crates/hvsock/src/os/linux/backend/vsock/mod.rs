//! The back-end of a virtual machine without a broker: the kernel's `AF_VSOCK`.
//!
//! - [`resolve`]: addresses as context id and port;
//! - [`refusal`]: errors of the kernel as refusals;
//! - [`execute`](mod@execute): a request; [`connecting`]: a connect, [`pending_connect`]: without blocking;
//! - [`host`]: what the broker of the host knows, by a [`host_query`];
//! - [`listener`] and [`stream`]: a listener and a connection; [`foreign`]: from a descriptor;
//! - [`buffer`]: the size of the kernel's buffer.
//!
//! The kernel has no names, no rules, and one kind of end. The first two are asked of the host. An operation that it lacks fails with an
//! error, or is listed in the crate documentation.

mod buffer;
mod connecting;
mod execute;
mod foreign;
mod host;
mod host_query;
mod listener;
mod pending_connect;
mod refusal;
mod resolve;
mod stream;

#[cfg(feature = "tokio")]
pub(crate) use execute::needs_host;
pub(crate) use execute::{Outcome, execute, is_available, look_up, no_registry};
pub(crate) use listener::Listener;
pub(crate) use pending_connect::PendingConnect;
pub(crate) use stream::Stream;
