//! Errors of control requests.

use std::fmt;
use std::time::Duration;

use hvsock_address::{PartitionName, PartitionRef, ServiceRef};
use hvsock_fabric::{AddPartitionError, ContainerChange, Fix, PartitionError, RegisterError};
use hvsock_registry::Clash;
use hvsock_registry::store::StoreError;

/// How long a call waits for the core thread.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// An error of a control request.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No object has this name, GUID or number.
    #[error("no {kind} `{what}`")]
    NotFound {
        /// The kind of object.
        kind: ObjectKind,
        /// The name, GUID or number in the request.
        what: String,
    },
    /// A GUID, port or name is in use by another registration.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// A partition cannot be added.
    #[error(transparent)]
    Add(#[from] AddPartitionError),
    /// Another VM has this context id (CID).
    #[error("{0}")]
    CidTaken(String),
    /// Another VM has this hybrid socket.
    #[error("{0}")]
    HybridPathTaken(String),
    /// Another broker has a CDI device of this name.
    #[error("{container} cannot have a CDI device: {what}")]
    DeviceTaken {
        /// What is in the way.
        what: String,
        /// The container.
        container: PartitionName,
    },
    /// A partition exists with other settings than those that the request wants of an existing one.
    #[error("{0}")]
    Differs(String),
    /// Another container of a runtime is bound to the partition, or this one to another.
    #[error("{0}")]
    ContainerTaken(String),
    /// The partition does not allow this change.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The fabric refused a registration.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The request is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The request is not possible in the present state, which an operator can change.
    #[error("{what}")]
    NotNow {
        /// Why it is not possible.
        what: String,
        /// What would make it possible, or replace it.
        fix: Box<Fix>,
    },
    /// A registration file could not be written. Nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A system call failed. Nothing has changed.
    #[error("{0}")]
    System(String),
    /// The broker was not handed over, and goes on.
    #[error("the running broker was not handed over, and goes on: {0}")]
    Upgrade(String),
    /// A table is full.
    #[error("limit reached: no more {0}")]
    Limit(&'static str),
    /// The core thread did not answer within 5 s. The request may still take effect.
    #[error("timed out: the broker did not answer within {} seconds; try again", CALL_TIMEOUT.as_secs())]
    Busy,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// The kind of an object that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// A service.
    Service,
    /// A partition.
    Partition,
    /// A connection.
    Connection,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Service => "service",
            Self::Partition => "partition",
            Self::Connection => "connection",
        })
    }
}

impl ControlError {
    /// What would help, if that is known.
    pub fn fix(&self) -> Option<Fix> {
        match self {
            Self::NotFound { kind, what } => Some(match kind {
                ObjectKind::Service => Fix::ListServices,
                ObjectKind::Partition => {
                    match what.parse().ok().as_ref().and_then(PartitionName::parts) {
                        Some((vm, container)) => Fix::ChangeInVm {
                            vm,
                            container,
                            change: ContainerChange::Add,
                        },
                        None => Fix::ListPartitions,
                    }
                }
                ObjectKind::Connection => Fix::ListConnections,
            }),
            Self::NotNow { fix, .. } => Some(Fix::clone(fix)),
            Self::DeviceTaken { container, .. } => Some(Fix::AddWithoutDevice {
                partition: container.clone(),
            }),
            Self::Clash(clash)
            | Self::Register(RegisterError::Clash(clash))
            | Self::Store(StoreError::Clash(clash)) => {
                let service = ServiceRef::Id(clash.removable()?);
                Some(Fix::UnregisterService { service })
            }
            Self::Stopped => Some(Fix::StartBroker),
            _ => None,
        }
    }

    pub(crate) fn unknown_service(service: &ServiceRef) -> Self {
        Self::NotFound {
            kind: ObjectKind::Service,
            what: service.to_string(),
        }
    }

    pub(crate) fn unknown_partition(partition: &PartitionRef) -> Self {
        Self::NotFound {
            kind: ObjectKind::Partition,
            what: partition.to_string(),
        }
    }

    pub(crate) fn unknown_connection(id: u64) -> Self {
        Self::NotFound {
            kind: ObjectKind::Connection,
            what: id.to_string(),
        }
    }
}
