//! What a guest's connections do: the same guest at native speed on our device and on
//! vhost-device-vsock, in turns.
//!
//! The guest and its machine are this process. On the other side of a device, in a process of its
//! own, is a program of the host ([`host`]): behind ours it uses hvsock streams, and behind the
//! other Unix sockets. A [`Lane`](lane::Lane) is one connection between the two; [`measure`] lets
//! lanes take turns, [`crowd`] makes many at once, [`scale`] sees how far our device goes, and
//! [`report`] makes ratios of what came of it.

pub mod crowd;
pub mod device;
pub mod host;
pub mod lane;
pub mod measure;
pub mod report;
pub mod scale;

use serde::Serialize;

/// Sizes of writes at which throughput is measured.
pub const SIZES: [usize; 3] = [64, 4 << 10, 64 << 10];

/// Ports of more programs of the host, where one cannot have as many descriptors as it takes.
pub const MORE_PORTS: std::ops::Range<u32> = 7010..7014;

/// What a lane goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Our device, and shared memory between it and the host's program.
    Ring,
    /// Our device, and a plain descriptor.
    Descriptor,
    /// vhost-device-vsock, and a Unix socket.
    Peer,
}

impl Over {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ring, Self::Descriptor, Self::Peer];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "hvsock, ring",
            Self::Descriptor => "hvsock, descriptor",
            Self::Peer => "vhost-device-vsock",
        }
    }

    /// The port that the host's program listens on.
    pub fn port(self) -> u32 {
        match self {
            Self::Ring | Self::Peer => 7001,
            Self::Descriptor => 7002,
        }
    }
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the host to the guest.
    ToGuest,
    /// From the guest to the host.
    ToHost,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::ToGuest, Self::ToHost];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::ToGuest => "host to guest",
            Self::ToHost => "guest to host",
        }
    }
}
