//! The back-end of Windows.
//!
//! - [`execute`](mod@execute): a request; [`endpoint`]: what an endpoint selects;
//! - [`resolve`]: addresses as Windows takes them;
//! - [`facts`]: what this machine reports about itself; [`explain`]: explanations from it;
//! - [`refusal`]: errors of Windows as refusals;
//! - [`pending_connect`]: a connect; [`socket`]: its socket and that of a listener;
//! - [`listener`] and [`stream`]: a listener and a connection;
//! - [`lease`]: a registration that lives as long as the process.

mod endpoint;
mod execute;
mod explain;
mod facts;
mod lease;
mod listener;
mod pending_connect;
mod refusal;
mod resolve;
mod socket;
mod stream;

pub(crate) use endpoint::uses_vsock;
pub(crate) use execute::{Outcome, execute};
pub(crate) use lease::Lease;
pub(crate) use listener::Listener;
pub(crate) use pending_connect::PendingConnect;
pub(crate) use resolve::{host_id, service_id, vm_id};
pub(crate) use stream::Stream;
