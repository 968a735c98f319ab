//! Which `AF_VSOCK` sockets there are in this thread's network namespace, and who holds them
//! (`NETLINK_SOCK_DIAG`). No privilege is needed to list sockets; the holder of one in a process of another
//! user is found by root only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::locks::{Holder, process};

// From linux/sock_diag.h, linux/netlink.h and linux/vm_sockets_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `AF_VSOCK`.
const FAMILY: u8 = 40;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct vsock_diag_req`.
const REQUEST: usize = 24;
/// `struct vsock_diag_msg`.
const SOCKET: usize = 32;

/// The states that are listed, as bits: `TCP_ESTABLISHED`, `TCP_SYN_SENT`, `TCP_CLOSE`, `TCP_LISTEN` and
/// `TCP_CLOSING`.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 7 | 1 << 10 | 1 << 11;

/// The most sockets that are read.
const MAX_SOCKETS: usize = 65_536;
/// How long the kernel may take for the next part of the list.
const TIMEOUT: Duration = Duration::from_secs(1);
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
    let flags = SocketFlags::CLOEXEC;
    let (family, protocol) = (AddressFamily::NETLINK, Some(netlink::SOCK_DIAG));
    let kernel = rustix::net::socket_with(family, SocketType::RAW, flags, protocol)?;
    super::stream::set_recv_timeout(&kernel, Some(TIMEOUT))?;
    super::retry(|| rustix::net::send(&kernel, &request(), SendFlags::empty()))?;
    let mut found = Vec::new();
    while receive(&kernel, &mut found)? && found.len() < MAX_SOCKETS {}
    found.truncate(MAX_SOCKETS);
    Ok(found)
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

fn request() -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    let len = u32::try_from(bytes.len()).unwrap_or(0);
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes[HEADER] = FAMILY;
    bytes[HEADER + 4..HEADER + 8].copy_from_slice(&STATES.to_ne_bytes());
    bytes
}

/// Receives a part of the list. Returns whether there is more.
fn receive(kernel: &OwnedFd, into: &mut Vec<Socket>) -> io::Result<bool> {
    let mut bytes = vec![0; 32 * 1024];
    let (len, _) =
        super::retry(|| rustix::net::recv(kernel.as_fd(), &mut bytes[..], RecvFlags::empty()))?;
    parse(bytes.get(..len).unwrap_or_default(), into)
}

/// Adds the sockets in messages of the kernel. Returns whether there are more messages.
fn parse(mut bytes: &[u8], into: &mut Vec<Socket>) -> io::Result<bool> {
    while let (Some(len), Some(kind)) = (number(bytes, 0), half(bytes, 4)) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let Some(message) = bytes.get(..len).filter(|message| message.len() >= HEADER) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let body = &message[HEADER..];
        match kind {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let error = number(body, 0).map_or(0, u32::cast_signed).wrapping_neg();
                return Err(io::Error::from_raw_os_error(error));
            }
            SOCK_DIAG_BY_FAMILY => into.extend(socket(body)),
            _ => {}
        }
        // Messages start at multiples of 4 bytes.
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
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

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn entry(state: u8, numbers: [u32; 5]) -> Vec<u8> {
        let mut body = vec![40, 1, state, 0];
        body.extend(numbers.iter().flat_map(|number| number.to_ne_bytes()));
        body.resize(SOCKET, 0);
        message(SOCK_DIAG_BY_FAMILY, &body)
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
        assert!(!parse(&message(NLMSG_DONE, &[0; 4]), &mut found).unwrap());
        let missing = message(NLMSG_ERROR, &(-libc::ENOENT).to_ne_bytes());
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

    #[test]
    fn the_request_has_the_layout_of_the_kernel() {
        let bytes = request();
        assert_eq!(number(&bytes, 0), Some(40));
        assert_eq!(half(&bytes, 4), Some(20));
        assert_eq!(half(&bytes, 6), Some(0x301));
        assert_eq!(bytes[HEADER], 40, "AF_VSOCK");
    }
}
