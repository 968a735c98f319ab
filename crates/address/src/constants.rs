//! The numbers of Hyper-V sockets and `AF_VSOCK`, from the headers of Windows and Linux.

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
/// The vsock port of the host at which its broker answers guests: look-ups of names, and the uplinks of brokers in
/// guests. It is below 1024, so that only a privileged process of the host can take it before the broker does.
pub const UPLINK_PORT: u32 = 920;
