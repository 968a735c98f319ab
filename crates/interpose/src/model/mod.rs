//! What the calls on an emulated socket answer. Pure: no system calls, no clock, no randomness.
//!
//! [`create`] decides the call `socket`. [`Socket`] is the state machine of one socket, [`Ports`] the table of
//! the addresses that are bound, [`Options`] the socket options. Addresses are parsed once, into [`Address`].
//! Every failure is an [`Errno`].

mod address;
mod errno;
mod family;
mod options;
mod ports;
#[cfg(test)]
mod reference_tests;
mod refusal;
mod restriction;
mod socket;

pub use address::{Address, MAX_LEN, OwnCid};
pub use errno::Errno;
pub use family::{Creation, DescriptorFlags, Family, create};
pub use options::{OptionAnswer, Options};
pub use ports::{LAST_RESERVED_PORT, Ports};
pub use restriction::{narrower_target, place, restriction};
pub use socket::{ADDRESS_WORDS, SOCKET_WORDS, address_from_words, address_to_words};
pub use socket::{ConnectStep, ListenStep, Socket, listen_target, local_of};

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` of vm_sockets.h: asks `/dev/vsock` for the own context id.
pub const IOCTL_GET_LOCAL_CID: u32 = 0x7b9;
