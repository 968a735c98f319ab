//! Which `AF_VSOCK` sockets there are in this thread's network namespace, and who holds them
//! (`NETLINK_SOCK_DIAG`). No privilege is needed to list sockets; the holder of one in a process of another
//! user is found by root only.

use std::io;
use std::time::{Duration, Instant};

use super::locks::{Holder, process};
use super::sock_diag::{self, number};

// From linux/vm_sockets_diag.h.
/// `AF_VSOCK`.
const FAMILY: u8 = 40;
/// `struct vsock_diag_req`.
const REQUEST: usize = 24;
/// `struct vsock_diag_msg`.
const SOCKET: usize = 32;

/// The states that are listed, as bits: `TCP_ESTABLISHED`, `TCP_SYN_SENT`, `TCP_CLOSE`, `TCP_LISTEN` and
/// `TCP_CLOSING`.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 7 | 1 << 10 | 1 << 11;

/// The most sockets that are read.
const MAX_SOCKETS: usize = 65_536;
/// How long [`holder`] searches.
const SEARCH: Duration = Duration::from_millis(500);

/// The state of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not connected, and not listening: perhaps bound.
    Closed,
    /// It listens.
    Listening,
    /// It is connected.
    Connected,
    /// Any other.
    Other(u8),
}

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Its own CID, `u32::MAX` if it is bound to any.
    pub cid: u32,
    /// Its own port.
    pub port: u32,
    /// The CID of its peer.
    pub peer_cid: u32,
    /// The port of its peer.
    pub peer_port: u32,
    /// Its state.
    pub state: State,
    /// Its inode, by which `/proc` names it.
    pub inode: u32,
}

/// Lists the sockets of this thread's network namespace, at most 65,536.
///
/// # Errors
///
/// `ENOENT` if the kernel has no module `vsock_diag`; `WouldBlock` if it does not answer within a second.
pub fn sockets() -> io::Result<Vec<Socket>> {
    let mut request = [0; REQUEST];
    request[0] = FAMILY;
    request[4..8].copy_from_slice(&STATES.to_ne_bytes());
    sock_diag::list(&request, MAX_SOCKETS, socket)
}

/// The process that holds the socket with this inode. `None` if none is found within half a second.
pub fn holder(inode: u32) -> Option<Holder> {
    let target = format!("socket:[{inode}]");
    let until = Instant::now() + SEARCH;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process of another user, or one that has ended.
        let Ok(descriptors) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let link = std::fs::read_link(descriptor.path());
            if link.is_ok_and(|link| link.as_os_str() == target.as_str()) {
                return Some(process(pid));
            }
            if Instant::now() > until {
                return None;
            }
        }
    }
    None
}

fn socket(body: &[u8]) -> Option<Socket> {
    let body = body.get(..SOCKET)?;
    Some(Socket {
        cid: number(body, 4)?,
        port: number(body, 8)?,
        peer_cid: number(body, 12)?,
        peer_port: number(body, 16)?,
        state: match body[2] {
            1 => State::Connected,
            7 => State::Closed,
            10 => State::Listening,
            other => State::Other(other),
        },
        inode: number(body, 20)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::sock_diag::messages;
    use super::*;

    fn parse(bytes: &[u8], into: &mut Vec<Socket>) -> io::Result<bool> {
        sock_diag::parse(bytes, into, socket)
    }

    fn entry(state: u8, numbers: [u32; 5]) -> Vec<u8> {
        let mut body = vec![40, 1, state, 0];
        body.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        body.resize(SOCKET, 0);
        messages::socket(&body)
    }

    #[test]
    fn the_kernels_messages_become_sockets_until_the_list_is_done() {
        let mut bytes = entry(10, [u32::MAX, 5000, u32::MAX, 0, 77]);
        bytes.extend(entry(7, [u32::MAX, 5001, u32::MAX, 0, 78]));
        bytes.extend(entry(1, [2, 5000, 42, 1030, 79]));
        let mut found = Vec::new();
        assert!(parse(&bytes, &mut found).unwrap());
        let seen: Vec<_> = found
            .iter()
            .map(|socket| (socket.port, socket.peer_cid, socket.state, socket.inode))
            .collect();
        assert_eq!(
            seen,
            [
                (5000, u32::MAX, State::Listening, 77),
                (5001, u32::MAX, State::Closed, 78),
                (5000, 42, State::Connected, 79),
            ]
        );
        assert!(!parse(&messages::done(), &mut found).unwrap());
        let missing = messages::error(libc::ENOENT);
        let error = parse(&missing, &mut found).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused() {
        let good = entry(10, [u32::MAX, 5000, u32::MAX, 0, 77]);
        for cut in 0..good.len() {
            let _ = parse(&good[..cut], &mut Vec::new());
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let _ = parse(&bytes, &mut Vec::new());
            }
        }
        assert!(parse(&[0; 64], &mut Vec::new()).is_err());
    }

    #[test]
    fn the_holder_of_a_socket_is_named() {
        let (socket, _peer) = crate::stream::pair().unwrap();
        let inode = rustix::fs::fstat(&socket).unwrap().st_ino;
        let holder = holder(u32::try_from(inode).unwrap()).unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(holder.program.is_some());
        assert_eq!(super::holder(u32::MAX), None);
    }
}
