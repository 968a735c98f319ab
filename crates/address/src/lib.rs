//! Addresses of Hyper-V sockets, as types that hold valid values only.
//!
//! An address consists of two GUIDs. A [`VmId`] names a partition; the wildcards name a set of
//! partitions relative to the caller. A [`ServiceId`] names a service. This crate
//!
//! - parses and prints them,
//! - encodes and decodes the two socket addresses of operating systems, [`SockAddrHv`] and
//!   [`SockAddrVm`],
//! - translates between GUIDs and `AF_VSOCK` ports: by Microsoft's template GUID, or by aliases for
//!   all other GUIDs.
//!
//! It does no I/O and applies no access rules.
//!
//! [`PartitionRef`] and [`ServiceRef`] parse user input. They keep names and ids apart until the
//! registry resolves the name.

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
/// `HVSOCKET_ADDRESS_FLAG_PASSTHRU`, a flag in the `Reserved` field of a `SOCKADDR_HV`
/// (hvsocket.h).
pub const HVSOCKET_ADDRESS_FLAG_PASSTHRU: u16 = 1;
/// The largest `HVSOCKET_CONNECT_TIMEOUT`, in milliseconds (hvsocket.h).
pub const HVSOCKET_CONNECT_TIMEOUT_MAX: u32 = 300_000;

/// Threads may share every public type.
const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<AddressError>();
    assert_send_sync::<ElementName>();
    assert_send_sync::<HvUrl>();
    assert_send_sync::<InvalidName>();
    assert_send_sync::<ParseGuidError>();
    assert_send_sync::<ParseRefError>();
    assert_send_sync::<ParseUrlError>();
    assert_send_sync::<PartitionName>();
    assert_send_sync::<PartitionRef>();
    assert_send_sync::<ServiceId>();
    assert_send_sync::<ServiceRef>();
    assert_send_sync::<SockAddrHv>();
    assert_send_sync::<SockAddrVm>();
    assert_send_sync::<VmId>();
};
