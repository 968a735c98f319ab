//! `AF_HYPERV` stream sockets, between a Windows host and its virtual machines and containers.
//!
//! Addresses are raw `SOCKADDR_HV` structures; `hvsock-address` encodes and decodes them. Sending, waiting
//! and half-closes are those of every stream socket: see [`stream`](super::stream).
//!
//! Create a socket with [`socket`] and set its options. Then either [`bind`], [`listen`] and [`accept`],
//! or [`connect`] and [`wait_connected`]. To cancel a connect, drop the socket. The system's errors are
//! returned unchanged.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::windows::io::{AsSocket, OwnedSocket};
use std::time::Instant;

use windows_sys::Win32::Networking::WinSock::AF_HYPERV;
use windows_sys::Win32::System::Hypervisor::{self as hypervisor, SOCKADDR_HV};

use super::socket::{self, AnyAddress};

/// Size of a `SOCKADDR_HV` in bytes.
pub const SOCKADDR_LEN: usize = 36;

/// A `SOCKADDR_HV`.
pub type Address = [u8; SOCKADDR_LEN];

// The layout that `hvsock-address` encodes: family, reserved, VmId and ServiceId.
const _: () = assert!(size_of::<SOCKADDR_HV>() == SOCKADDR_LEN);
const _: () = assert!(offset_of!(SOCKADDR_HV, Family) == 0);
const _: () = assert!(offset_of!(SOCKADDR_HV, Reserved) == 2);
const _: () = assert!(offset_of!(SOCKADDR_HV, VmId) == 4);
const _: () = assert!(offset_of!(SOCKADDR_HV, ServiceId) == 20);
const _: () = assert!(AF_HYPERV == 34);

/// The protocol, and the level of its options.
const HV_PROTOCOL_RAW: i32 = hypervisor::HV_PROTOCOL_RAW as i32;

/// An option of a Hyper-V socket (`HVSOCKET_*`), a 32-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum HvOption {
    /// Timeout of a connect in milliseconds, at most 300,000; the default is 2000.
    ConnectTimeout = hypervisor::HVSOCKET_CONNECT_TIMEOUT as i32,
    /// Connect through to a container (`HVSOCKET_CONTAINER_PASSTHRU`, which windows-sys lacks).
    ContainerPassthru = 2,
    /// Keep the connection while the virtual machine is paused.
    ConnectedSuspend = hypervisor::HVSOCKET_CONNECTED_SUSPEND as i32,
    /// Connect to the virtual machine's higher trust level (VTL 2).
    HighVtl = hypervisor::HVSOCKET_HIGH_VTL as i32,
}

/// Creates a non-blocking socket.
///
/// # Errors
///
/// `EAFNOSUPPORT`, `ESOCKTNOSUPPORT` or `EPROTONOSUPPORT` if Hyper-V is not enabled.
pub fn socket() -> io::Result<OwnedSocket> {
    socket::stream(AF_HYPERV, HV_PROTOCOL_RAW)
}

/// Binds the socket to an address.
///
/// # Errors
///
/// `EADDRINUSE` or `EADDRNOTAVAIL`, as `bind`.
pub fn bind(socket: impl AsSocket, address: &Address) -> io::Result<()> {
    socket::bind(socket.as_socket(), address)
}

/// Listens. About `backlog` connections may wait for [`accept`].
///
/// # Errors
///
/// `EINVAL` if the socket is not bound.
pub fn listen(socket: impl AsSocket, backlog: u32) -> io::Result<()> {
    socket::listen(socket.as_socket(), backlog)
}

/// Accepts one waiting connection as a non-blocking socket, with the peer's address. `None` if none waits.
///
/// # Errors
///
/// Those of `accept`; `InvalidData` if the address is shorter than a `SOCKADDR_HV`.
pub fn accept(listener: impl AsSocket) -> io::Result<Option<(OwnedSocket, Address)>> {
    let Some((socket, address)) = socket::accept(listener.as_socket())? else {
        return Ok(None);
    };
    Ok(Some((socket, of_this_family(&address)?)))
}

/// Starts to connect. Once the socket is writable or has an error, [`connected`] returns the result.
/// [`HvOption::ConnectTimeout`] limits the time.
///
/// # Errors
///
/// Those of `connect`, except `WSAEWOULDBLOCK`.
pub fn connect(socket: impl AsSocket, address: &Address) -> io::Result<()> {
    socket::connect(socket.as_socket(), address)
}

/// Whether the socket is connected; `false` while the connect is in progress.
///
/// # Errors
///
/// The error of the connect, reported once.
pub fn connected(socket: impl AsSocket) -> io::Result<bool> {
    socket::wait_connected(socket.as_socket(), Instant::now())
}

/// Waits until `deadline` for the result of [`connected`].
///
/// # Errors
///
/// The error of the connect, reported once.
pub fn wait_connected(socket: impl AsSocket, deadline: Instant) -> io::Result<bool> {
    socket::wait_connected(socket.as_socket(), deadline)
}

/// The socket's own address.
///
/// # Errors
///
/// `EINVAL` if the socket is neither bound nor connected; `InvalidData` if it is of another family.
pub fn local_address(socket: impl AsSocket) -> io::Result<Address> {
    of_this_family(&socket::local_address(socket.as_socket())?)
}

/// The peer's address.
///
/// # Errors
///
/// `ENOTCONN` if the socket is not connected; `InvalidData` if it is of another family.
pub fn peer_address(socket: impl AsSocket) -> io::Result<Address> {
    of_this_family(&socket::peer_address(socket.as_socket())?)
}

/// Sets an option. Options of a connect must be set before it.
///
/// # Errors
///
/// Those of `setsockopt`, such as `EINVAL` for a value out of range.
pub fn set_option(socket: impl AsSocket, option: HvOption, value: u32) -> io::Result<()> {
    socket::set_option(socket.as_socket(), HV_PROTOCOL_RAW, option as i32, value)
}

/// Reads an option.
///
/// # Errors
///
/// Those of `getsockopt`.
pub fn option(socket: impl AsSocket, option: HvOption) -> io::Result<u32> {
    socket::option(socket.as_socket(), HV_PROTOCOL_RAW, option as i32)
}

/// Fails with `InvalidData` if the address is shorter than a `SOCKADDR_HV`.
fn of_this_family(address: &AnyAddress) -> io::Result<Address> {
    match address.as_bytes().first_chunk() {
        Some(address) => Ok(*address),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::windows::errno;

    // Connections need Hyper-V or the shim: see the integration tests.

    #[test]
    fn without_hyper_v_the_family_is_unknown() {
        match socket() {
            // This machine has Hyper-V.
            Ok(socket) => assert!(option(&socket, HvOption::ConnectTimeout).is_ok()),
            Err(error) => assert!(matches!(
                error.raw_os_error(),
                Some(errno::EAFNOSUPPORT | errno::ESOCKTNOSUPPORT | errno::EPROTONOSUPPORT)
            )),
        }
    }

    #[test]
    fn a_socket_of_another_family_fails_every_call() {
        let (a, _b) = crate::windows::tcp::pair();
        let mut address = [0; SOCKADDR_LEN];
        address[..2].copy_from_slice(&AF_HYPERV.to_ne_bytes());
        assert!(bind(&a, &address).is_err());
        assert!(connect(&a, &address).is_err());
        assert!(accept(&a).is_err());
        // Its address is shorter than a `SOCKADDR_HV`.
        let error = local_address(&a).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = peer_address(&a).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(set_option(&a, HvOption::HighVtl, 1).is_err());
    }
}
