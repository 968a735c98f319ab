//! The uplink protocol between a virtual machine and the broker of its host. `docs/uplink.md` specifies it.
//!
//! A guest connects a vsock stream to [`UPLINK_PORT`] of its host and sends [`GuestFrame`]s; the host sends
//! [`HostFrame`]s. A guest without a broker looks names up and asks for explanations. A broker in the guest
//! opens an uplink by [`GuestFrame::Hello`]: it announces its containers, learns which of the host's services
//! its machine may use, and agrees on a vsock port for each connection between the host and a container. The
//! bytes of such a connection are a vsock stream of their own, and never pass through the uplink.
//!
//! A frame is a length and a message of the endpoint protocol's form. [`FrameReader`] finds frames in the
//! pieces in which they arrive. Decoding accepts any bytes without a panic and keeps no more than one frame.

mod frame;
mod guest;
mod host;
mod values;

pub use frame::{FrameReader, MAX_FRAME};
pub use guest::{Announce, ConnectUp, ExplainUp, GuestFrame, Hello};
pub use host::{Announced, HostFrame, Incoming, Service, Welcome};
pub use values::{BindScope, ChildId, ChildState, Request, ServiceFlags, What};

pub use hvsock_address::UPLINK_PORT;

/// Ports below this one need root in a Linux guest (`LAST_RESERVED_PORT` of the kernel's
/// `net/vmw_vsock/af_vsock.c`, 1023). An uplink comes from such a port.
pub const PRIVILEGED_PORTS: u32 = 1024;

/// The most containers that one guest can announce.
pub const MAX_CHILDREN: usize = 256;

/// The most connects in each direction that wait for an answer or for their vsock stream.
pub const MAX_PENDING: usize = 64;

/// The most services of a host that its guest is told.
pub const MAX_SERVICES: usize = 4096;

/// The lowest port that the host chooses for a connect of its guest ([`HostFrame::ConnectPort`]).
pub const FIRST_TOKEN_PORT: u32 = 1 << 24;

/// How long such a port is valid, in milliseconds.
pub const TOKEN_MS: u32 = 5_000;

/// The time between two [`Ping`](GuestFrame::Ping)s of an idle uplink, in milliseconds.
pub const PING_MS: u32 = 10_000;

/// An uplink on which nothing has arrived for this time is broken, in milliseconds.
pub const SILENCE_MS: u32 = 30_000;
