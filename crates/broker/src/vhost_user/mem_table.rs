//! The request SET_MEM_TABLE, read from the VMM's socket before the crate vhost sees it.
//!
//! The crate accepts the message only if it ends with its last region. User-mode Linux sends a table of
//! fixed size, with room for two regions, whatever their number; so the bytes behind the last region are
//! ignored here. All front ends take this path.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error, Result};

use super::memory::RegionSpec;

/// Length of a message's header: request, flags and size of the body, 32 bits each, in native order.
pub(super) const HEADER: usize = 12;
/// Length of the body before the regions: their number and padding.
const TABLE_HEADER: usize = 8;
/// Length of one region.
const REGION: usize = 32;
/// The largest body, which the crate enforces for all other messages.
pub(super) const MAX_BODY: usize = 4096;
/// The most descriptors of one message, and so the most regions.
const MAX_FILES: usize = 32;

pub(super) const VERSION: u32 = 1;
pub(super) const VERSION_MASK: u32 = 3;
pub(super) const REPLY: u32 = 1 << 2;
pub(super) const NEED_REPLY: u32 = 1 << 3;
const REQUEST: u32 = FrontendReq::SET_MEM_TABLE as u32;

/// A memory table as the VMM sent it. Its regions are not checked, except that each has a file.
#[derive(Debug)]
pub(super) struct MemTable {
    pub(super) regions: Vec<RegionSpec>,
    pub(super) files: Vec<File>,
    /// Whether the VMM asks for an acknowledgement.
    pub(super) need_reply: bool,
}

/// Whether the next message is a memory table. Does not consume it. A header that has arrived only in part
/// is left to the crate.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn is_next(socket: &UnixStream) -> io::Result<bool> {
    let mut header = [0; HEADER];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut header[..], flags)) {
        Ok((_, HEADER)) => Ok(word(&header, 0) == Some(REQUEST)),
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads a memory table.
///
/// # Errors
/// [`Error::InvalidMessage`] if it is malformed, [`Error::PartialMessage`] if the VMM disconnects
/// within it, or a socket's error. The connection cannot be used any more.
pub(super) fn receive(socket: &UnixStream) -> Result<MemTable> {
    let mut header = [0; HEADER];
    let (count, files) = receive_header(socket, &mut header).map_err(Error::SocketError)?;
    // The whole header was there.
    if count != HEADER {
        return Err(Error::PartialMessage);
    }
    let (flags, size) = (word(&header, 4), word(&header, 8));
    let (Some(flags), Some(size)) = (flags, size.and_then(|size| usize::try_from(size).ok()))
    else {
        return Err(Error::InvalidMessage);
    };
    if flags & VERSION_MASK != VERSION || flags & REPLY != 0 || size > MAX_BODY {
        return Err(Error::InvalidMessage);
    }
    let mut body = vec![0; size];
    let mut socket = socket;
    socket
        .read_exact(&mut body)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::PartialMessage,
            _ => Error::SocketError(error),
        })?;
    let regions = parse(&body).ok_or(Error::InvalidMessage)?;
    if regions.len() != files.len() {
        return Err(Error::InvalidMessage);
    }
    Ok(MemTable {
        regions,
        files,
        need_reply: flags & NEED_REPLY != 0,
    })
}

/// Acknowledges a memory table (REPLY_ACK).
pub(super) fn acknowledge(socket: &UnixStream, success: bool) -> io::Result<()> {
    acknowledge_request(socket, REQUEST, success)
}

/// Acknowledges a request (REPLY_ACK).
pub(super) fn acknowledge_request(
    socket: &UnixStream,
    request: u32,
    success: bool,
) -> io::Result<()> {
    let mut reply = Vec::with_capacity(HEADER + 8);
    for word in [request, VERSION | REPLY, 8] {
        reply.extend(word.to_ne_bytes());
    }
    reply.extend(u64::from(!success).to_ne_bytes());
    let mut rest = &reply[..];
    while !rest.is_empty() {
        let sent =
            rustix::io::retry_on_intr(|| rustix::net::send(socket, rest, SendFlags::NOSIGNAL))?;
        rest = &rest[sent..];
    }
    Ok(())
}

/// Reads a header and its descriptors, close-on-exec. Closes all if there are too many.
pub(super) fn receive_header(
    socket: &UnixStream,
    header: &mut [u8; HEADER],
) -> io::Result<(usize, Vec<File>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(header)];
        rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            files.extend(received.map(File::from));
        }
    }
    Ok((message.bytes, files))
}

/// The regions of a table's body, which may be longer than they are.
fn parse(body: &[u8]) -> Option<Vec<RegionSpec>> {
    let count = usize::try_from(word(body, 0)?).ok()?;
    let padding = word(body, 4)?;
    if count == 0 || count > MAX_FILES || padding != 0 {
        return None;
    }
    let regions = body.get(TABLE_HEADER..TABLE_HEADER + count * REGION)?;
    let regions = regions.chunks_exact(REGION).map(|region| {
        let number = |at: usize| {
            let bytes = region.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_ne_bytes(bytes))
        };
        Some(RegionSpec {
            base: number(0)?,
            len: number(8)?,
            vmm_base: number(16)?,
            offset: number(24)?,
        })
    });
    regions.collect()
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    fn body(count: u32, regions: &[[u64; 4]], more: usize) -> Vec<u8> {
        let mut body = count.to_ne_bytes().to_vec();
        body.extend([0; 4]);
        body.extend(regions.iter().flatten().flat_map(|word| word.to_ne_bytes()));
        body.resize(body.len() + more, 0xee);
        body
    }

    const ONE: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];

    fn message(request: u32, flags: u32, size: usize, body: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        for word in [request, flags, size as u32] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        message
    }

    /// The table after `bytes` were sent with `files` descriptors, and the sender closed.
    fn received(bytes: &[u8], files: usize) -> Result<MemTable> {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage};
        let (vmm, broker) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let other = File::open("/dev/null").unwrap();
        let attached = vec![other.as_fd(); files];
        if files > 0 {
            assert!(control.push(SendAncillaryMessage::ScmRights(&attached)));
        }
        let slices = [io::IoSlice::new(bytes)];
        rustix::net::sendmsg(&vmm, &slices, &mut control, SendFlags::empty()).unwrap();
        drop(vmm);
        assert!(is_next(&broker).unwrap());
        receive(&broker)
    }

    fn whole(flags: u32, body: &[u8], files: usize) -> Result<MemTable> {
        received(&message(REQUEST, flags, body.len(), body), files)
    }

    #[test]
    fn a_table_may_be_longer_than_its_regions() {
        for more in [0, 1, 32, MAX_BODY - 40] {
            let table = whole(VERSION, &body(1, &[ONE], more), 1).unwrap();
            let region = table.regions[0];
            let words = [region.base, region.len, region.vmm_base, region.offset];
            assert_eq!(words, ONE);
            assert_eq!((table.files.len(), table.need_reply), (1, false));
        }
        let many = [ONE; MAX_FILES];
        let table = whole(VERSION | NEED_REPLY, &body(32, &many, 0), MAX_FILES).unwrap();
        assert_eq!((table.regions.len(), table.need_reply), (32, true));
    }

    #[test]
    fn a_malformed_table_is_an_error() {
        let good = body(1, &[ONE], 32);
        let invalid = |result: Result<MemTable>| {
            assert!(matches!(result, Err(Error::InvalidMessage)), "{result:?}");
        };
        invalid(whole(VERSION, &body(0, &[ONE], 32), 0));
        invalid(whole(VERSION, &body(2, &[ONE], 31), 2));
        invalid(whole(VERSION, &body(33, &[ONE; 33], 0), MAX_FILES));
        invalid(whole(VERSION, &body(u32::MAX, &[ONE], 32), 1));
        invalid(whole(VERSION, &[], 1));
        invalid(whole(VERSION, &good[..7], 1));
        for files in [0, 2] {
            invalid(whole(VERSION, &good, files));
        }
        for flags in [0, 2, VERSION | REPLY] {
            invalid(whole(flags, &good, 1));
        }
        let mut padded = good.clone();
        padded[4] = 1;
        invalid(whole(VERSION, &padded, 1));
        let huge = message(REQUEST, VERSION, MAX_BODY + 1, &good);
        invalid(received(&huge, 1));
        let endless = message(REQUEST, VERSION, usize::MAX, &good);
        invalid(received(&endless, 1));
        let short = message(REQUEST, VERSION, good.len() + 1, &good);
        assert!(matches!(received(&short, 1), Err(Error::PartialMessage)));
    }

    #[test]
    fn every_other_message_is_left_to_the_crate() {
        let (mut vmm, broker) = UnixStream::pair().unwrap();
        assert!(!is_next(&broker).unwrap());
        vmm.write_all(&message(REQUEST, VERSION, 0, &[])[..11])
            .unwrap();
        assert!(!is_next(&broker).unwrap());
        vmm.write_all(&[0]).unwrap();
        assert!(is_next(&broker).unwrap() && is_next(&broker).unwrap());
        let (mut vmm, broker) = UnixStream::pair().unwrap();
        vmm.write_all(&message(REQUEST + 1, VERSION, 0, &[]))
            .unwrap();
        assert!(!is_next(&broker).unwrap());
    }

    #[test]
    fn an_acknowledgement_says_whether_the_table_was_accepted() {
        let (mut vmm, broker) = UnixStream::pair().unwrap();
        for (success, status) in [(true, 0_u64), (false, 1)] {
            acknowledge(&broker, success).unwrap();
            let mut reply = [0; HEADER + 8];
            vmm.read_exact(&mut reply).unwrap();
            let expected = message(REQUEST, VERSION | REPLY, 8, &status.to_ne_bytes());
            assert_eq!(&reply[..], expected);
        }
    }
}
