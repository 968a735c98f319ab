//! The VM bench: the same guest at native speed on hvsock's device and on vhost-device-vsock, or on the
//! devices of two builds of hvsock.
//!
//! This process is the guest and its VMM. Behind each device runs a host program ([`host`]) in a separate
//! process. It uses hvsock streams behind hvsock's device and Unix sockets behind the other. A
//! [`Lane`](lane::Lane) is one connection between guest and host program. [`measure`] measures lanes in
//! alternating turns, [`concurrent`] opens many connections, [`scale`] measures idle connections, idle
//! VMs and fairness, and [`report`] computes ratios. [`uml`] measures guests with a real kernel, in User-mode
//! Linux, and [`nested`] a container in one.

pub mod concurrent;
pub mod device;
pub mod host;
pub mod lane;
pub mod measure;
pub mod nested;
pub mod report;
pub mod scale;
pub mod uml;
mod uml_adapter;

use serde::Serialize;

/// Sizes of writes for the throughput, in bytes.
pub const SIZES: [usize; 3] = [64, 4 << 10, 64 << 10];

/// Ports of additional host programs, because the descriptors of one process are limited.
pub const MORE_PORTS: std::ops::Range<u32> = 7010..7014;

/// The device and transport of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestLaneKind {
    /// hvsock's device, and a shared-memory ring to the host program.
    Ring,
    /// hvsock's device, and a socket descriptor to the host program.
    Descriptor,
    /// vhost-device-vsock, and a Unix socket to the host program.
    Peer,
    /// The device and the host program of another build of hvsock, and a ring between them.
    OtherBuild,
    /// A virtual machine without use of its broker.
    Machine,
    /// A virtual machine, through its broker.
    MachineWithBroker,
    /// A container in a virtual machine, through both brokers.
    Container,
}

impl GuestLaneKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Ring,
        Self::Descriptor,
        Self::Peer,
        Self::OtherBuild,
        Self::Container,
        Self::MachineWithBroker,
        Self::Machine,
    ];

    /// The kinds of a run with a broker in the guest.
    pub const NESTED: [Self; 3] = [Self::Container, Self::MachineWithBroker, Self::Machine];

    /// The kinds of a run against vhost-device-vsock.
    pub const WITH_PEER: [Self; 3] = [Self::Ring, Self::Descriptor, Self::Peer];

    /// The kinds of a run against another build.
    pub const WITH_OTHER_BUILD: [Self; 2] = [Self::Ring, Self::OtherBuild];

    /// Whether it is what the others are compared with.
    pub fn is_baseline(self) -> bool {
        matches!(self, Self::Peer | Self::OtherBuild | Self::Machine)
    }

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "hvsock, ring",
            Self::Descriptor => "hvsock, descriptor",
            Self::Peer => "vhost-device-vsock",
            Self::OtherBuild => "the other build",
            Self::Machine => "VM",
            Self::MachineWithBroker => "VM with a broker",
            Self::Container => "container in the VM",
        }
    }

    /// The port on which the host program listens.
    pub fn port(self) -> u32 {
        match self {
            Self::Descriptor => 7002,
            _ => 7001,
        }
    }
}

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the host to the guest.
    ToGuest,
    /// From the guest to the host.
    ToHost,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::ToGuest, Self::ToHost];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::ToGuest => "host to guest",
            Self::ToHost => "guest to host",
        }
    }
}
