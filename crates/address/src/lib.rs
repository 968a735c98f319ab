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

mod constants;
mod guid;
mod name;
mod port;
mod reference;
#[cfg(feature = "serde")]
mod serde_text;
mod sockaddr;
mod url;

pub use constants::{
    AF_HYPERV, AF_VSOCK, HV_PROTOCOL_RAW, HVSOCKET_ADDRESS_FLAG_PASSTHRU,
    HVSOCKET_CONNECT_TIMEOUT_MAX, SOCK_STREAM, UPLINK_PORT,
};
pub use guid::{ParseGuidError, ServiceId, VSOCK_TEMPLATE, VmId};
pub use name::{ElementName, InvalidName, PartitionName};
pub use reference::{ParseRefError, PartitionRef, ServiceRef};
pub use sockaddr::{AddressError, SockAddrHv, SockAddrVm};
pub use url::{HvUrl, ParseUrlError};

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
