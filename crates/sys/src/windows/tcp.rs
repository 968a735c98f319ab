//! For tests: TCP connections, made by the same functions as Hyper-V connections.

use std::net::SocketAddrV4;
use std::os::windows::io::{AsSocket, OwnedSocket};
use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock::AF_INET;

use super::socket;

/// The deadline of a test's wait.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

pub(super) fn new() -> OwnedSocket {
    socket::stream(AF_INET, 0).unwrap()
}

/// A `SOCKADDR_IN`.
pub(super) fn address(port: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&AF_INET.to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes[4..8].copy_from_slice(&[127, 0, 0, 1]);
    bytes
}

pub(super) fn port(address: &[u8]) -> u16 {
    u16::from_be_bytes([address[2], address[3]])
}

/// A listener and its port.
pub(super) fn listener() -> (OwnedSocket, u16) {
    let listener = new();
    socket::bind(listener.as_socket(), &address(0)).unwrap();
    socket::listen(listener.as_socket(), 16).unwrap();
    let own = socket::local_address(listener.as_socket()).unwrap();
    (listener, port(own.as_bytes()))
}

/// Both ends of a connection.
pub(super) fn pair() -> (OwnedSocket, OwnedSocket) {
    let (listener, port) = listener();
    let a = new();
    socket::connect(a.as_socket(), &address(port)).unwrap();
    assert!(socket::wait_connected(a.as_socket(), soon()).unwrap());
    let b = loop {
        if let Some((socket, _)) = socket::accept(listener.as_socket()).unwrap() {
            break socket;
        }
    };
    (a, b)
}

/// A local port without a listener.
pub(super) fn free_port() -> u16 {
    let free = std::net::TcpListener::bind(SocketAddrV4::new([127, 0, 0, 1].into(), 0)).unwrap();
    free.local_addr().unwrap().port()
}
