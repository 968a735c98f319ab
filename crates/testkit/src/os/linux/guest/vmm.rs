//! The machine's half of vhost-user: what a VMM says to a device's process over its socket.
//!
//! Written from the protocol's document and not with the library that the device is written with,
//! so that a misunderstanding of one is not shared by the other; and so that a test can say what
//! no library would.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use super::memory::Region;

/// Requests, by their numbers.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// `VHOST_USER_F_PROTOCOL_FEATURES`
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Bits of the protocol's own features.
pub mod protocol {
    /// More queues than one.
    pub const MQ: u64 = 1 << 0;
    /// A request can ask to be answered whether it succeeded.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The device's configuration can be read.
    pub const CONFIG: u64 = 1 << 9;
    /// The device can be reset by a request.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Regions can be added and taken away one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// In the number of a kick or call: no descriptor comes with it.
const NO_DESCRIPTOR: u64 = 1 << 8;
/// The longest answer that is read.
const LONGEST_ANSWER: usize = 4096;

/// Where the three parts of a ring are, in the addresses of the machine's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// What the driver has made available.
    pub available: u64,
    /// What the device has used.
    pub used: u64,
}

/// A connection to the device's process.
#[derive(Debug)]
pub struct Vmm {
    socket: UnixStream,
    /// Protocol features that both sides have.
    protocol: u64,
}

impl Vmm {
    /// Connects; no answer may take longer than `timeout`. A socket that is not there yet is
    /// waited for as long.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        let until = Instant::now() + timeout;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self {
            socket,
            protocol: 0,
        })
    }

    /// The socket itself, to say on it what is no message at all.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Agrees on features as QEMU does, of those in `wanted` and `protocol`; what was agreed on.
    pub fn agree(&mut self, wanted: u64, protocol: u64) -> io::Result<u64> {
        let offered = self.number(request::GET_FEATURES)?;
        if offered & PROTOCOL_FEATURES != 0 {
            let theirs = self.number(request::GET_PROTOCOL_FEATURES)?;
            let both = theirs & protocol;
            self.send(request::SET_PROTOCOL_FEATURES, 0, &both.to_ne_bytes(), &[])?;
            self.protocol = both;
        }
        self.tell(request::SET_OWNER, &[], &[])?;
        let agreed = offered & (wanted | PROTOCOL_FEATURES);
        self.tell(request::SET_FEATURES, &agreed.to_ne_bytes(), &[])?;
        Ok(agreed)
    }

    /// Protocol features that both sides have.
    pub fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Hands the guest's memory over.
    pub fn set_memory(&self, regions: &[Region], memory: BorrowedFd<'_>) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend((regions.len() as u32).to_ne_bytes());
        body.extend([0; 4]);
        for region in regions {
            body.extend(region_bytes(region));
        }
        let descriptors = vec![memory; regions.len()];
        self.tell(request::SET_MEM_TABLE, &body, &descriptors)
    }

    /// Sets a ring up from the beginning and starts it. Its first entry is number `base`.
    pub fn start_ring(
        &self,
        index: u32,
        size: u16,
        base: u16,
        at: RingAddresses,
        [kick, call]: [BorrowedFd<'_>; 2],
    ) -> io::Result<()> {
        self.tell(request::SET_VRING_NUM, &state(index, u32::from(size)), &[])?;
        self.tell(request::SET_VRING_BASE, &state(index, u32::from(base)), &[])?;
        let mut body = Vec::new();
        body.extend(index.to_ne_bytes());
        body.extend([0; 4]);
        for address in [at.descriptors, at.used, at.available, 0] {
            body.extend(address.to_ne_bytes());
        }
        self.tell(request::SET_VRING_ADDR, &body, &[])?;
        let number = u64::from(index).to_ne_bytes();
        self.tell(request::SET_VRING_KICK, &number, &[kick])?;
        self.tell(request::SET_VRING_CALL, &number, &[call])?;
        Ok(())
    }

    /// Enables or disables a ring.
    pub fn enable_ring(&self, index: u32, enable: bool) -> io::Result<()> {
        let body = state(index, u32::from(enable));
        self.tell(request::SET_VRING_ENABLE, &body, &[])
    }

    /// Stops a ring; the number of its next entry.
    pub fn stop_ring(&self, index: u32) -> io::Result<u16> {
        self.send(request::GET_VRING_BASE, 0, &state(index, 0), &[])?;
        let answer = self.answer(request::GET_VRING_BASE)?;
        let base = answer.get(4..8).and_then(|bytes| bytes.try_into().ok());
        let base = base
            .map(u32::from_ne_bytes)
            .ok_or_else(|| strange("a base"))?;
        u16::try_from(base).map_err(|_| strange("a base"))
    }

    /// Sends a request with no descriptor where one belongs.
    pub fn without_descriptor(&self, request: u32, index: u32) -> io::Result<()> {
        let number = u64::from(index) | NO_DESCRIPTOR;
        self.tell(request, &number.to_ne_bytes(), &[])
    }

    /// Sends a request whose answer is a number.
    pub fn number(&self, request: u32) -> io::Result<u64> {
        self.send(request, 0, &[], &[])?;
        let answer = self.answer(request)?;
        let bytes = answer
            .as_slice()
            .try_into()
            .map_err(|_| strange("a number"))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Sends a request, and waits until it was done if the other side can say so.
    pub fn tell(
        &self,
        request: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        if self.protocol & protocol::REPLY_ACK == 0 {
            return self.send(request, 0, body, descriptors);
        }
        self.send(request, NEED_REPLY, body, descriptors)?;
        match self.answer(request)?.as_slice() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Ok(()),
            other => Err(io::Error::other(format!(
                "the device did not do request {request}: {other:?}"
            ))),
        }
    }

    /// Sends a message, whatever it is.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut message = Vec::with_capacity(12 + body.len());
        message.extend(request.to_ne_bytes());
        message.extend((VERSION | flags).to_ne_bytes());
        message.extend((body.len() as u32).to_ne_bytes());
        message.extend(body);
        self.send_bytes(&message, descriptors)
    }

    /// Sends bytes, which need not be a message, with the descriptors at their front.
    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let mut sent = 0;
        while sent < bytes.len() {
            let slices = [IoSlice::new(&bytes[sent..])];
            let flags = SendFlags::NOSIGNAL;
            sent += rustix::io::retry_on_intr(|| {
                rustix::net::sendmsg(&self.socket, &slices, &mut ancillary, flags)
            })?;
            ancillary.clear();
        }
        Ok(())
    }

    /// Waits for the answer to a request; its body.
    pub fn answer(&self, request: u32) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        let mut filled = 0;
        while filled < header.len() {
            let mut slices = [IoSliceMut::new(&mut header[filled..])];
            let mut nothing = RecvAncillaryBuffer::new(&mut []);
            let received = rustix::io::retry_on_intr(|| {
                rustix::net::recvmsg(&self.socket, &mut slices, &mut nothing, RecvFlags::empty())
            })?;
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += received.bytes;
        }
        let word = |at: usize| {
            let bytes = header[at..at + 4].try_into();
            bytes.map_or(0, u32::from_ne_bytes)
        };
        let (number, flags, len) = (word(0), word(4), word(8) as usize);
        if number != request || flags & (REPLY | 3) != REPLY | VERSION || len > LONGEST_ANSWER {
            return Err(strange(&format!(
                "an answer to {request}: {number}, {flags:#x}, {len}"
            )));
        }
        let mut body = vec![0; len];
        (&self.socket).read_exact(&mut body)?;
        Ok(body)
    }
}

/// A region as it stands in a message.
pub fn region_bytes(region: &Region) -> Vec<u8> {
    let words = [region.guest, region.len, region.process, region.offset];
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// A ring's index and a number.
pub fn state(index: u32, number: u32) -> [u8; 8] {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&index.to_ne_bytes());
    body[4..].copy_from_slice(&number.to_ne_bytes());
    body
}

fn strange(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("what the device said is not {what}"),
    )
}
