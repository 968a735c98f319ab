//! Lists of the sockets of this thread's network namespace (`NETLINK_SOCK_DIAG`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

// From linux/sock_diag.h and linux/netlink.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// How long the kernel may take for the next part of a list.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What `read` makes of each socket of a list that `request` (a `*_diag_req`) asks for, of the first `most` ones.
///
/// # Errors
///
/// `ENOENT` if the kernel has no module for the family; `WouldBlock` if it does not answer within a second.
pub(super) fn list<T>(
    request: &[u8],
    most: usize,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Vec<T>> {
    let flags = SocketFlags::CLOEXEC;
    let (family, protocol) = (AddressFamily::NETLINK, Some(netlink::SOCK_DIAG));
    let kernel = rustix::net::socket_with(family, SocketType::RAW, flags, protocol)?;
    super::stream::set_recv_timeout(&kernel, Some(TIMEOUT))?;
    let message = message(request);
    super::retry(|| rustix::net::send(&kernel, &message, SendFlags::empty()))?;
    let mut found = Vec::new();
    while receive(&kernel, &mut found, &read)? && found.len() < most {}
    found.truncate(most);
    Ok(found)
}

fn message(request: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + request.len()).unwrap_or(0);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend(request);
    bytes
}

/// Receives a part of the list. Returns whether there is more.
fn receive<T>(
    kernel: &OwnedFd,
    into: &mut Vec<T>,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<bool> {
    let mut bytes = vec![0; 32 * 1024];
    let (len, _) =
        super::retry(|| rustix::net::recv(kernel.as_fd(), &mut bytes[..], RecvFlags::empty()))?;
    parse(bytes.get(..len).unwrap_or_default(), into, read)
}

/// Adds the sockets in messages of the kernel. Returns whether there are more messages.
pub(super) fn parse<T>(
    mut bytes: &[u8],
    into: &mut Vec<T>,
    read: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<bool> {
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
            SOCK_DIAG_BY_FAMILY => into.extend(read(body)),
            _ => {}
        }
        // Messages start at multiples of 4 bytes.
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// The 32-bit number at an offset.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// The 16-bit number at an offset.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes))
}

/// Messages of the kernel.
#[cfg(test)]
pub(super) mod messages {
    use super::{HEADER, NLMSG_DONE, NLMSG_ERROR, SOCK_DIAG_BY_FAMILY};

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    pub fn socket(body: &[u8]) -> Vec<u8> {
        message(SOCK_DIAG_BY_FAMILY, body)
    }

    pub fn done() -> Vec<u8> {
        message(NLMSG_DONE, &[0; 4])
    }

    pub fn error(errno: i32) -> Vec<u8> {
        message(NLMSG_ERROR, &(-errno).to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_layout_of_the_kernel() {
        let bytes = message(&[40; 24]);
        assert_eq!(number(&bytes, 0), Some(40));
        assert_eq!(half(&bytes, 4), Some(20));
        assert_eq!(half(&bytes, 6), Some(0x301));
        assert_eq!(bytes[HEADER..], [40; 24]);
    }
}
