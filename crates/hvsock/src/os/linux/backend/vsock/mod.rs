//! The back-end of a virtual machine without a broker: the kernel's `AF_VSOCK`.
//!
//! - [`machine`]: the kind of this machine;
//! - [`resolve`]: addresses as context id and port;
//! - [`refusal`]: errors of the kernel as refusals;
//! - [`execute`](mod@execute): a request; [`pending_connect`]: a connect;
//! - [`listener`] and [`stream`]: a listener and a connection; [`foreign`]: from a descriptor;
//! - [`buffer`]: the size of the kernel's buffer.
//!
//! The kernel has no names, no rules, and one kind of end. An operation that it lacks fails with an
//! error, or is listed in the crate documentation.

mod buffer;
mod execute;
mod foreign;
mod listener;
mod machine;
mod pending_connect;
mod refusal;
mod resolve;
mod stream;

pub(crate) use execute::{Outcome, execute, is_available, no_registry};
pub(crate) use listener::Listener;
pub(crate) use pending_connect::PendingConnect;
pub(crate) use stream::Stream;
