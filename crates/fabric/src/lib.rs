//! Routing and access control for Hyper-V sockets, as a state machine without I/O.
//!
//! A [`Fabric`] holds a tree of partitions (a host, its VMs and containers, the containers in its
//! VMs), the service registry of each partition that can have children, and all listeners and
//! connections. It resolves the [`VmId`](hvsock_address::VmId) of a request, checks whether the process
//! may connect or listen, finds the listener, and reports which connections to reset or suspend after a
//! change. A rejected request returns a [`Refusal`], which the fabric can explain check by check.
//!
//! The fabric uses no I/O, clock or threads. A broker owns it, reports events to it and applies its
//! effects. Any order of events can be replayed in a test. It can be taken out as a value and made again
//! from it, in another process: see [`snapshot`].

#![forbid(unsafe_code)]

mod boundary;
mod change;
mod changes;
mod evaluate_connect;
mod evaluate_listen;
mod explanation;
mod fabric;
mod fix;
mod ids;
#[cfg(test)]
mod leak_tests;
mod limits;
mod open;
mod operators;
mod outer;
mod partition;
mod plan;
mod refusal;
mod request;
mod resolve;
mod rights;
pub mod snapshot;
mod tables;
mod trace;
mod tree;

pub use change::{PartitionError, RegisterError};
pub use changes::Changes;
pub use explanation::{Check, Explanation, ExplanationStep, Verdict};
pub use fabric::Fabric;
pub use fix::{ContainerChange, Fix, RuleRef, RuleScope};
#[doc(no_inline)]
pub use hvsock_registry::{Action, Clash};
pub use ids::{ConnectionId, ListenerId, PartitionKey};
pub use limits::Limits;
pub use operators::{NotOperator, OperatorRole, Operators};
pub use partition::{OuterSpec, Partition, PartitionKind, PartitionSpec, PartitionState, RootSpec};
pub use refusal::Refusal;
pub use request::{
    Block, ConnectRequest, ConnectionEnd, Destination, Effect, ListenRequest, Route,
};
pub use rights::ChildRights;
pub use snapshot::{FABRIC_SNAPSHOT_VERSION, FabricSnapshot, PartitionKeySnapshot, SnapshotError};
pub use tables::{Connection, Listener};
pub use trace::Audience;
pub use tree::AddPartitionError;
