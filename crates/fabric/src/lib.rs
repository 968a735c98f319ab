//! Who reaches whom over Hyper-V sockets.
//!
//! A [`Fabric`] holds a tree of partitions (a host, its VMs and containers, the containers in its
//! VMs), the registry of each partition that has children, and the listeners and connections in
//! them. It resolves the [`VmId`](hvsock_address::VmId) that a process gives, judges whether it may
//! connect or listen, finds the listener, and says what to cut or suspend when something changes.
//! Whatever it turns down it turns down with a [`Refusal`], which it can explain step by step.
//!
//! It does no I/O and knows no time. A broker owns one, tells it what happens and does what it
//! answers; any order of events can be replayed in a test.

#![forbid(unsafe_code)]

#[cfg(test)]
mod books;
mod change;
mod explain;
mod fabric;
mod ids;
mod judge_connect;
mod judge_listen;
mod limits;
mod partition;
mod refusal;
mod request;
mod resolve;
mod tables;
mod terms;
mod tree;

pub use change::{PartitionError, RegisterError};
pub use explain::{Audience, Explanation, Step, Verdict};
pub use fabric::Fabric;
pub use ids::{ConnectionId, ListenerId, PartitionKey};
pub use limits::Limits;
pub use partition::{Partition, PartitionKind, PartitionSpec, PartitionState, RootSpec};
pub use refusal::Refusal;
pub use request::{ConnectRequest, Destination, Effect, End, ListenRequest, Route};
pub use tables::{Connection, Listener};
pub use tree::AddPartitionError;
