//! The data types of the control API, for operators: services, partitions, connections, events.
//!
//! The broker's control API sends and receives them, and `hvsock --json` prints them. On Windows,
//! which needs no broker, `hvsock --json` prints the same types. They are derived from the
//! registry's types (a [`Service`] from a [`Registration`](hvsock_registry::Registration)) and from
//! the fabric's (an [`ExplanationReport`] from an [`Explanation`](hvsock_fabric::Explanation)). No I/O.

#![forbid(unsafe_code)]

mod audit;
mod confinement;
mod connection;
mod event;
mod explanation;
mod guest;
mod import;
mod link;
mod metrics;
mod partition;
mod problem;
mod registration;
mod service;
mod share;
mod status;
mod thread;
mod upgrade;

pub use audit::{
    AuditActor, AuditCategory, AuditEnd, AuditFilter, AuditMetrics, AuditOutcome, AuditRecord,
    Claim, ConnectionResult,
};
pub use confinement::{ConfinedThreads, Confinement, DeniedCall};
pub use connection::{Connection, ConnectionEnd, ConnectionState, Listener};
pub use event::{Event, EventKind};
pub use explanation::{ExplanationReport, ExplanationStep, FixReport, RefusalReport};
pub use guest::{
    AgentState, ClockKeeper, Guest, GuestClock, GuestCommand, GuestFacts, GuestNotice, GuestReport,
    GuestService, Health, NewGuestCommand,
};
pub use import::Import;
pub use link::{HybridStyle, LinkSpec, ManagerRef};
pub use metrics::{MetricsSnapshot, ServiceMetrics};
pub use partition::{
    CdiDevice, Container, GuestBroker, NewBinding, NewContainer, NewVm, Partition, PartitionChange,
    PartitionKind, PartitionState, UplinkState, UplinkStatus, VmSpec,
};
pub use problem::{Problem, ProblemKind};
pub use service::{
    AccessChange, AccessChanged, AccessEntry, AccessInForce, AccessList, FlagRule, Imported,
    NewService, RuleSource, Service, ServiceChange, ServiceOverride, ServiceRules, TransportChange,
    TransportRule, TransportSetting,
};
pub use share::{Share, SharedResource};
pub use status::{ErrorBody, Status};
pub use thread::BrokerThread;
pub use upgrade::{NewUpgrade, Upgrade};

/// The errors of the [`Import`] constructors and of [`NewService::registration`].
pub use hvsock_address::InvalidName;
pub use hvsock_registry::reg_file::ImportError;

/// Threads may share every public type.
const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<AccessChanged>();
    assert_send_sync::<AuditFilter>();
    assert_send_sync::<AuditRecord>();
    assert_send_sync::<BrokerThread>();
    assert_send_sync::<Connection>();
    assert_send_sync::<ErrorBody>();
    assert_send_sync::<Event>();
    assert_send_sync::<ExplanationReport>();
    assert_send_sync::<Import>();
    assert_send_sync::<ImportError>();
    assert_send_sync::<Imported>();
    assert_send_sync::<Listener>();
    assert_send_sync::<MetricsSnapshot>();
    assert_send_sync::<Partition>();
    assert_send_sync::<Service>();
    assert_send_sync::<SharedResource>();
    assert_send_sync::<Status>();
};
