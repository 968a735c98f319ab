//! What a Unix socket at a path can do, without a connection to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{listening, sock_diag};

/// `AF_UNIX`.
const FAMILY: u8 = 1;
/// `UDIAG_SHOW_VFS` of linux/unix_diag.h, and the attribute that it asks for.
const SHOW_FILE: u32 = 2;
const FILE: u16 = 1;
/// `struct unix_diag_msg`.
const SOCKET: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// The states that are listed, as bits: `TCP_CLOSE` and `TCP_LISTEN`.
const STATES: u32 = 1 << CLOSED | 1 << LISTENING;
const CLOSED: u8 = 7;
const LISTENING: u8 = 10;
/// `SOCK_STREAM`.
const STREAM: u8 = 1;

/// The most sockets that are looked at: any user can make many.
const MAX_SOCKETS: usize = 1024;

/// Why nobody can connect to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No process has the socket: its file was left.
    Left,
    /// It is bound, and does not listen.
    NotListening,
    /// It is for datagrams or packets.
    NotStream,
}

/// Why nobody can connect to the stream socket of which `file` is a descriptor (`O_PATH`). `None` if it listens, or that
/// cannot be found out, as on a machine with very many sockets. The program that has it sees nothing of this.
pub fn fault(file: impl AsFd) -> Option<Fault> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let address = listening::address(Path::new(&path)).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
    // A connect with the wrong type says whether there is a socket, and reaches nobody.
    match rustix::net::connect(probe.ok()?, &address) {
        Ok(()) => return Some(Fault::NotStream),
        Err(rustix::io::Errno::CONNREFUSED) => return Some(Fault::Left),
        Err(_) => {}
    }
    let stat = rustix::fs::fstat(file).ok()?;
    let device = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    let sockets = sockets().ok()?;
    let same = |socket: &&Socket| {
        u64::from(socket.inode) == stat.st_ino & u64::from(u32::MAX) && socket.device == device
    };
    let socket = sockets.iter().find(same)?;
    match (socket.kind, socket.state) {
        (STREAM, LISTENING) => None,
        (STREAM, _) => Some(Fault::NotListening),
        _ => Some(Fault::NotStream),
    }
}

/// A socket with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    kind: u8,
    state: u8,
    inode: u32,
    device: (u32, u32),
}

fn sockets() -> io::Result<Vec<Socket>> {
    // struct unix_diag_req
    let mut request = [0; 24];
    request[0] = FAMILY;
    request[4..8].copy_from_slice(&STATES.to_ne_bytes());
    request[12..16].copy_from_slice(&SHOW_FILE.to_ne_bytes());
    sock_diag::list(&request, MAX_SOCKETS, socket)
}

/// `None` if it has no file.
fn socket(body: &[u8]) -> Option<Socket> {
    let [_, kind, state, _] = *body.first_chunk()?;
    let mut attributes = body.get(SOCKET..)?;
    loop {
        let len = usize::from(sock_diag::half(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE..len)?;
        if sock_diag::half(attributes, 2)? == FILE {
            let inode = sock_diag::number(value, 0)?;
            // As the kernel has device numbers.
            let device = sock_diag::number(value, 4)?;
            return Some(Socket {
                kind,
                state,
                inode,
                device: (device >> 20, device & 0xf_ffff),
            });
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use rustix::fs::{Mode, OFlags};
    use rustix::net::SocketAddrUnix;

    use super::*;

    fn fault_at(path: &Path) -> Option<Fault> {
        let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        fault(file.unwrap())
    }

    #[test]
    fn a_socket_that_nobody_can_connect_to_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let listener = UnixListener::bind(at("listening")).unwrap();
        assert_eq!(fault_at(&at("listening")), None);
        // Nobody has connected.
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
        drop(listener);
        assert_eq!(fault_at(&at("listening")), Some(Fault::Left));
        let _datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
        assert_eq!(fault_at(&at("datagrams")), Some(Fault::NotStream));
        let bound = |name: &str, kind| {
            let socket = rustix::net::socket(AddressFamily::UNIX, kind, None).unwrap();
            let address = SocketAddrUnix::new(at(name)).unwrap();
            rustix::net::bind(&socket, &address).unwrap();
            socket
        };
        let stream = bound("bound", SocketType::STREAM);
        let packets = bound("packets", SocketType::SEQPACKET);
        // Where the kernel does not list Unix sockets, it is not found out.
        if sockets().is_ok() {
            assert_eq!(fault_at(&at("bound")), Some(Fault::NotListening));
            rustix::net::listen(&stream, 1).unwrap();
            rustix::net::listen(&packets, 1).unwrap();
            assert_eq!(fault_at(&at("bound")), None);
            assert_eq!(fault_at(&at("packets")), Some(Fault::NotStream));
        }
    }

    #[test]
    fn any_bytes_are_a_socket_or_none() {
        let mut body = vec![1, 1, 10, 0];
        body.resize(SOCKET, 0);
        body.extend([12, 0, 1, 0, 9, 0, 0, 0, 5, 0, 0x10, 0]);
        let found = socket(&body).unwrap();
        assert_eq!((found.inode, found.device), (9, (1, 5)));
        for cut in 0..body.len() {
            assert_eq!(socket(&body[..cut]), None);
        }
        for at in 0..body.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut bytes = body.clone();
                bytes[at] = value;
                let _ = socket(&bytes);
            }
        }
    }
}
