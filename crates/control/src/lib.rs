//! What an operator sees and asks for, as values: the control API of the broker sends and takes
//! them, `hvsock`'s `--json` prints them, and they are the same where there is no broker because
//! the system itself does its work.
//!
//! They are made of what the registry keeps ([`Service`] of a
//! [`Registration`](hvsock_registry::Registration)) and the fabric decides ([`Explanation`] of
//! [its own](hvsock_fabric::Explanation)). Nothing here does any I/O.

#![forbid(unsafe_code)]

mod connection;
mod event;
mod explanation;
mod guest;
mod import;
mod metrics;
mod partition;
mod registration;
mod service;
mod status;

pub use connection::{Connection, ConnectionState, End, Listener};
pub use event::{Event, EventKind};
pub use explanation::{Explanation, RefusalReport, Step};
pub use guest::{
    ClockKeeper, Contact, Guest, GuestClock, GuestFacts, GuestNotice, GuestOrder, GuestReport,
    GuestService, Health, NewGuestOrder,
};
pub use import::Import;
pub use metrics::{MetricsSnapshot, ServiceMetrics};
pub use partition::{
    NewContainer, NewVm, Partition, PartitionChange, PartitionKind, PartitionState,
};
pub use service::{AccessList, Imported, NewService, Service, ServiceChange, ServiceOverride};
pub use status::{ErrorBody, Status};
