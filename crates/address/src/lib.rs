//! Addresses of Hyper-V sockets, as values that cannot be wrong.
//!
//! A service is reached at two GUIDs: a [`VmId`] names a partition (or, by one of the wildcards, a
//! set of them as seen from the caller) and a [`ServiceId`] names the service. This crate parses
//! and prints them, lays them out as the two socket addresses that operating systems take
//! ([`SockAddrHv`], [`SockAddrVm`]), and translates between the GUID world and the port world of
//! AF_VSOCK by Microsoft's template GUID, and by aliases for all other GUIDs. It does no I/O and
//! knows nothing of who may reach whom.
//!
//! Text from people goes through [`PartitionRef`] and [`ServiceRef`], which keep "a name" and "an
//! id" apart until somebody who holds the registry has looked the name up.

#![forbid(unsafe_code)]

mod guid;
mod name;
mod reference;
#[cfg(feature = "serde")]
mod serde_text;
mod sockaddr;
mod url;

pub use guid::{ParseGuidError, ServiceId, VSOCK_TEMPLATE, VmId};
pub use name::{ElementName, InvalidName, PartitionName};
pub use reference::{ParseRefError, PartitionRef, ServiceRef};
pub use sockaddr::{AddressError, SockAddrHv, SockAddrVm};
pub use url::{HvUrl, ParseUrlError};

/// `AF_HYPERV`, the address family of Hyper-V sockets (hvsocket.h).
pub const AF_HYPERV: u16 = 34;
/// `HV_PROTOCOL_RAW`, the only protocol of `AF_HYPERV` and the level of its socket options
/// (hvsocket.h).
pub const HV_PROTOCOL_RAW: i32 = 1;
/// `SOCK_STREAM`, the only socket type of `AF_HYPERV`; the same number on Windows and Linux.
pub const SOCK_STREAM: i32 = 1;
/// `AF_VSOCK`, Linux's address family for sockets between a guest and its host
/// (linux/socket.h).
pub const AF_VSOCK: u16 = 40;
/// `HVSOCKET_ADDRESS_FLAG_PASSTHRU`, in the `Reserved`/flags word of a `SOCKADDR_HV`
/// (hvsocket.h).
pub const HVSOCKET_ADDRESS_FLAG_PASSTHRU: u16 = 1;
/// The largest `HVSOCKET_CONNECT_TIMEOUT`, in milliseconds (hvsocket.h).
pub const HVSOCKET_CONNECT_TIMEOUT_MAX: u32 = 300_000;
