//! `AF_HYPERV` stream sockets: what a Windows host has for its virtual machines and containers,
//! and those for it.
//!
//! Addresses are `SOCKADDR_HV` as the system takes and gives them; `hvsock-address` reads and
//! writes them. Bytes, half-closes and waiting are those of any other stream socket: see
//! [`stream`](super::stream).
//!
//! A socket is made by [`socket`] and given its options; then it is either for [`bind`],
//! [`listen`] and [`accept`], or for [`connect`] and [`wait_connected`]. To give up connecting,
//! drop it. Errors of the system come out as they are: the library words them.

use std::io;
use std::mem::{offset_of, size_of};
use std::os::windows::io::{AsSocket, OwnedSocket};
use std::time::Instant;

use windows_sys::Win32::Networking::WinSock::AF_HYPERV;
use windows_sys::Win32::System::Hypervisor::{self as hypervisor, SOCKADDR_HV};

use super::socket::{self, AnyAddress};

/// How long a `SOCKADDR_HV` is.
pub const SOCKADDR_LEN: usize = 36;

/// A `SOCKADDR_HV`.
pub type Address = [u8; SOCKADDR_LEN];

// What the system reads is what `hvsock-address` writes: family, reserved, VmId and ServiceId.
const _: () = assert!(size_of::<SOCKADDR_HV>() == SOCKADDR_LEN);
const _: () = assert!(offset_of!(SOCKADDR_HV, Family) == 0);
const _: () = assert!(offset_of!(SOCKADDR_HV, Reserved) == 2);
const _: () = assert!(offset_of!(SOCKADDR_HV, VmId) == 4);
const _: () = assert!(offset_of!(SOCKADDR_HV, ServiceId) == 20);
const _: () = assert!(AF_HYPERV == 34);

/// The protocol, and the level of its options.
const HV_PROTOCOL_RAW: i32 = hypervisor::HV_PROTOCOL_RAW as i32;

/// An option of a Hyper-V socket, each one a 32-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum HvOption {
    /// How many milliseconds connecting may take, 300000 at most; 2000 where it is not set.
    ConnectTimeout = hypervisor::HVSOCKET_CONNECT_TIMEOUT as i32,
    /// Whether connecting to a container goes through to it (`HVSOCKET_CONTAINER_PASSTHRU`, which
    /// windows-sys does not have).
    ContainerPassthru = 2,
    /// Whether the connection outlives a pause of the virtual machine.
    ConnectedSuspend = hypervisor::HVSOCKET_CONNECTED_SUSPEND as i32,
    /// Whether the host connects to the virtual machine's higher trust level (VTL 2).
    HighVtl = hypervisor::HVSOCKET_HIGH_VTL as i32,
}

/// A non-blocking socket; `EAFNOSUPPORT`, `ESOCKTNOSUPPORT` or `EPROTONOSUPPORT` where the system
/// has none of this family, as Hyper-V is not enabled.
pub fn socket() -> io::Result<OwnedSocket> {
    socket::stream(AF_HYPERV, HV_PROTOCOL_RAW)
}

/// Gives the socket its address.
pub fn bind(socket: impl AsSocket, address: &Address) -> io::Result<()> {
    socket::bind(socket.as_socket(), address)
}

/// Lets about `backlog` connections wait for [`accept`].
pub fn listen(socket: impl AsSocket, backlog: u32) -> io::Result<()> {
    socket::listen(socket.as_socket(), backlog)
}

/// Takes one waiting connection as a non-blocking socket, with its other end's address; `None` if
/// none waits.
pub fn accept(listener: impl AsSocket) -> io::Result<Option<(OwnedSocket, Address)>> {
    let Some((socket, address)) = socket::accept(listener.as_socket())? else {
        return Ok(None);
    };
    Ok(Some((socket, of_this_family(&address)?)))
}

/// Begins to connect: once the socket is ready for writing, or has an error, [`connected`] tells
/// how it went. `HvOption::ConnectTimeout` bounds it.
pub fn connect(socket: impl AsSocket, address: &Address) -> io::Result<()> {
    socket::connect(socket.as_socket(), address)
}

/// Whether the socket that connects is connected: false while it is under way, and the error if
/// connecting failed, which is told once.
pub fn connected(socket: impl AsSocket) -> io::Result<bool> {
    socket::wait_connected(socket.as_socket(), Instant::now())
}

/// Waits until `deadline` for what [`connected`] says.
pub fn wait_connected(socket: impl AsSocket, deadline: Instant) -> io::Result<bool> {
    socket::wait_connected(socket.as_socket(), deadline)
}

/// The socket's own address; `EINVAL` for one that is neither bound nor connected.
pub fn local_address(socket: impl AsSocket) -> io::Result<Address> {
    of_this_family(&socket::local_address(socket.as_socket())?)
}

/// The other end's address; `ENOTCONN` without one.
pub fn peer_address(socket: impl AsSocket) -> io::Result<Address> {
    of_this_family(&socket::peer_address(socket.as_socket())?)
}

/// Sets an option. Those that concern connecting are set before it.
pub fn set_option(socket: impl AsSocket, option: HvOption, value: u32) -> io::Result<()> {
    socket::set_option(socket.as_socket(), HV_PROTOCOL_RAW, option as i32, value)
}

/// The value of an option.
pub fn option(socket: impl AsSocket, option: HvOption) -> io::Result<u32> {
    socket::option(socket.as_socket(), HV_PROTOCOL_RAW, option as i32)
}

/// An address that is shorter than a `SOCKADDR_HV` is `InvalidData`.
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

    // Connections need Hyper-V, or what stands in for it in the library's tests.

    #[test]
    fn without_hyper_v_the_family_is_unknown() {
        match socket() {
            // This machine has it.
            Ok(socket) => assert!(option(&socket, HvOption::ConnectTimeout).is_ok()),
            Err(error) => assert!(matches!(
                error.raw_os_error(),
                Some(errno::EAFNOSUPPORT | errno::ESOCKTNOSUPPORT | errno::EPROTONOSUPPORT)
            )),
        }
    }

    #[test]
    fn another_kind_of_socket_takes_none_of_it() {
        let (a, _b) = crate::windows::tcp::pair();
        let mut address = [0; SOCKADDR_LEN];
        address[..2].copy_from_slice(&AF_HYPERV.to_ne_bytes());
        assert!(bind(&a, &address).is_err());
        assert!(connect(&a, &address).is_err());
        assert!(accept(&a).is_err());
        // Its address is shorter than one of these.
        let error = local_address(&a).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = peer_address(&a).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(set_option(&a, HvOption::HighVtl, 1).is_err());
    }
}
