//! Handing over the state of a running broker to another process, which goes on in its place: the *predecessor*
//! and the *successor* of an upgrade.
//!
//! - `bundle`: descriptors and buffers of the state, and `document`: the rest of it, one JSON value;
//! - `link`: the part of a VM's [link](crate::guest_link);
//! - `protocol`: the messages between both; `predecessor`, `successor`: the two sides, without I/O;
//! - `channel`: the socket between them; `serve`, `join`: the two sides with their I/O, whose `steps`
//!   tests can break off;
//! - `stored`: the state while no process has it, after the predecessor has ended;
//! - `snapshot`: what all tables' snapshots have in common, with the rules for their format.

pub(crate) mod bundle;
mod channel;
pub(crate) mod document;
mod error;
pub(crate) mod join;
mod link;
mod predecessor;
mod protocol;
#[cfg(test)]
mod protocol_tests;
pub(crate) mod serve;
pub(crate) mod snapshot;
mod steps;
pub(crate) mod stored;
mod successor;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub(crate) use channel::Channel;
pub(crate) use predecessor::GivenUp;
pub(crate) use protocol::Known;

pub use bundle::{Blob, Exports, FdIndex, FdRange, Imports};
pub use error::HandoverError;
pub use link::LinkDocument;
pub use snapshot::{Descriptors, SnapshotError};
pub use stored::StoredState;
