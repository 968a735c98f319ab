//! The front end of vhost-user: the messages that a VMM sends to a device's process.
//!
//! It is written from the specification and does not use the crate vhost, on which the device is built.
//! So the two do not share misreadings of the protocol, and a test can send messages that no library
//! would.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::memory::Region;

/// Request numbers (`VHOST_USER_*`).
#[allow(missing_docs, reason = "named as in the vhost-user specification")]
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
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// `VHOST_USER_F_PROTOCOL_FEATURES`: the device supports protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol feature bits (`VHOST_USER_PROTOCOL_F_*`).
pub mod protocol {
    /// More than one queue.
    pub const MQ: u64 = 1 << 0;
    /// Dirty pages are logged in shared memory.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// A request can require an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The device may send requests, over a channel of its own.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration space is readable.
    pub const CONFIG: u64 = 1 << 9;
    /// Buffers in flight are recorded in shared memory.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// A request can reset the device.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Notifications are messages instead of eventfds.
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    /// Memory regions can be added and removed one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// The device's state can be saved and loaded.
    pub const DEVICE_STATE: u64 = 1 << 19;
    /// The device has shared memory regions.
    pub const SHMEM: u64 = 1 << 20;
}

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
/// In a request's flags: an acknowledgement is asked for.
pub(super) const NEED_REPLY: u32 = 1 << 3;
/// In the payload of a kick or call request: no descriptor is attached.
const NO_DESCRIPTOR: u64 = 1 << 8;
/// Largest accepted reply in bytes.
const MAX_REPLY: usize = 4096;

/// Which requests ask for an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// None.
    #[default]
    None,
    /// Those without a reply.
    Sets,
    /// All. Those with a reply of their own get no second one.
    Every,
}

/// Addresses of the three parts of a ring, in the VMM's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

/// A vhost-user connection to a device's process.
#[derive(Debug)]
pub struct Vmm {
    socket: UnixStream,
    /// The negotiated protocol features.
    protocol: u64,
    /// Which requests ask for an acknowledgement, if REPLY_ACK is negotiated.
    acks: Acks,
}

impl Vmm {
    /// Connects. `timeout` bounds each reply, and the wait for a socket that does not exist yet.
    ///
    /// # Errors
    /// If the socket does not accept a connection within `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        Self::connect_every(path, Duration::from_millis(2), timeout, timeout)
    }

    /// Connects. Attempts are this far apart and end `within` a time; `timeout` bounds each reply.
    ///
    /// # Errors
    /// If the socket does not accept a connection within that time.
    pub(super) fn connect_every(
        path: &Path,
        every: Duration,
        within: Duration,
        timeout: Duration,
    ) -> io::Result<Self> {
        let until = Instant::now() + within;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(every),
            }
        };
        socket.set_read_timeout(Some(timeout))?;
        socket.set_write_timeout(Some(timeout))?;
        Ok(Self {
            socket,
            protocol: 0,
            acks: Acks::Sets,
        })
    }

    /// The socket, to send bytes that are no valid message.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Negotiates features as QEMU does. Returns those of `accepted` that the device offers, and stores
    /// the common protocol features.
    ///
    /// # Errors
    /// If the device closes the connection, or a reply is invalid or late.
    pub fn negotiate(&mut self, accepted: u64, protocol: u64) -> io::Result<u64> {
        let offered = self.request_u64(request::GET_FEATURES)?;
        if offered & PROTOCOL_FEATURES != 0 {
            let offered = self.request_u64(request::GET_PROTOCOL_FEATURES)?;
            let common = offered & protocol;
            self.send(
                request::SET_PROTOCOL_FEATURES,
                0,
                &common.to_ne_bytes(),
                &[],
            )?;
            self.protocol = common;
        }
        self.send_acked(request::SET_OWNER, &[], &[])?;
        let negotiated = offered & (accepted | PROTOCOL_FEATURES);
        self.send_acked(request::SET_FEATURES, &negotiated.to_ne_bytes(), &[])?;
        Ok(negotiated)
    }

    /// Sets the protocol features, without a message.
    pub(super) fn set_protocol(&mut self, protocol: u64) {
        self.protocol = protocol;
    }

    /// Which requests ask for an acknowledgement, if REPLY_ACK is negotiated.
    pub(super) fn set_acks(&mut self, acks: Acks) {
        self.acks = acks;
    }

    /// Which requests ask for an acknowledgement.
    pub(super) fn acks(&self) -> Acks {
        match self.protocol & protocol::REPLY_ACK {
            0 => Acks::None,
            _ => self.acks,
        }
    }

    /// The negotiated protocol features.
    pub fn protocol(&self) -> u64 {
        self.protocol
    }

    /// Sends the guest's memory table.
    ///
    /// # Errors
    /// As [`Vmm::send_acked`].
    pub fn set_memory(&self, regions: &[Region], memory: BorrowedFd<'_>) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend((regions.len() as u32).to_ne_bytes());
        body.extend([0; 4]);
        for region in regions {
            body.extend(encode_region(region));
        }
        let descriptors = vec![memory; regions.len()];
        self.send_acked(request::SET_MEM_TABLE, &body, &descriptors)
    }

    /// Configures and starts a ring whose next index is `base`.
    ///
    /// # Errors
    /// As [`Vmm::send_acked`].
    pub fn start_ring(
        &self,
        index: u32,
        size: u16,
        base: u16,
        at: RingAddresses,
        [kick, call]: [BorrowedFd<'_>; 2],
    ) -> io::Result<()> {
        self.send_acked(
            request::SET_VRING_NUM,
            &vring_state(index, u32::from(size)),
            &[],
        )?;
        self.send_acked(
            request::SET_VRING_BASE,
            &vring_state(index, u32::from(base)),
            &[],
        )?;
        let mut body = Vec::new();
        body.extend(index.to_ne_bytes());
        body.extend([0; 4]);
        for address in [at.descriptors, at.used, at.available, 0] {
            body.extend(address.to_ne_bytes());
        }
        self.send_acked(request::SET_VRING_ADDR, &body, &[])?;
        let number = u64::from(index).to_ne_bytes();
        self.send_acked(request::SET_VRING_KICK, &number, &[kick])?;
        self.send_acked(request::SET_VRING_CALL, &number, &[call])?;
        Ok(())
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    /// As [`Vmm::send_acked`].
    pub fn enable_ring(&self, index: u32, enable: bool) -> io::Result<()> {
        let body = vring_state(index, u32::from(enable));
        self.send_acked(request::SET_VRING_ENABLE, &body, &[])
    }

    /// Stops a ring and returns its next index.
    ///
    /// # Errors
    /// If the device closes the connection, or its reply is invalid or late.
    pub fn stop_ring(&self, index: u32) -> io::Result<u16> {
        self.send(request::GET_VRING_BASE, 0, &vring_state(index, 0), &[])?;
        let reply = self.receive_reply(request::GET_VRING_BASE)?;
        let base = reply.get(4..8).and_then(|bytes| bytes.try_into().ok());
        let base = base
            .map(u32::from_ne_bytes)
            .ok_or_else(|| invalid_reply("a base"))?;
        u16::try_from(base).map_err(|_| invalid_reply("a base"))
    }

    /// Sends a request for a ring without the descriptor that it requires.
    ///
    /// # Errors
    /// As [`Vmm::send_acked`].
    pub fn send_without_fd(&self, request: u32, index: u32) -> io::Result<()> {
        let number = u64::from(index) | NO_DESCRIPTOR;
        self.send_acked(request, &number.to_ne_bytes(), &[])
    }

    /// Sends a request whose reply is a 64-bit number, and returns that.
    ///
    /// # Errors
    /// If the device closes the connection, or its reply is invalid or late.
    pub fn request_u64(&self, request: u32) -> io::Result<u64> {
        self.send(request, 0, &[], &[])?;
        let reply = self.receive_reply(request)?;
        let bytes = reply
            .as_slice()
            .try_into()
            .map_err(|_| invalid_reply("a number"))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Sends a request and waits for its acknowledgement, if `REPLY_ACK` is negotiated.
    ///
    /// # Errors
    /// If the device reports a failure, or its reply is invalid or late.
    pub fn send_acked(
        &self,
        request: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        if self.acks() == Acks::None {
            return self.send(request, 0, body, descriptors);
        }
        self.send(request, NEED_REPLY, body, descriptors)?;
        match self.receive_reply(request)?.as_slice() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Ok(()),
            other => Err(io::Error::other(format!(
                "request {request} failed: {other:?}"
            ))),
        }
    }

    /// Sends a message, unchecked.
    ///
    /// # Errors
    /// If the socket is closed, or the write times out.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send_bytes(&encode(request, flags, body), descriptors)
    }

    /// Sends the first half of a message.
    ///
    /// # Errors
    /// As [`Vmm::send`].
    pub(super) fn send_half(
        &self,
        request: u32,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let message = encode(request, flags, body);
        self.send_bytes(&message[..message.len() / 2], descriptors)
    }

    /// Sends raw bytes, with the descriptors attached to the first.
    ///
    /// # Errors
    /// If the socket is closed, or the write times out.
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

    /// Waits for the reply to a request and returns its body.
    ///
    /// # Errors
    /// `UnexpectedEof` if the device closes the connection, `InvalidData` if the reply is invalid, or a
    /// timeout.
    pub fn receive_reply(&self, request: u32) -> io::Result<Vec<u8>> {
        self.receive_with_files(request).map(|(body, _)| body)
    }

    /// Waits for the reply to a request and returns its body and its descriptors.
    ///
    /// # Errors
    /// As [`Vmm::receive_reply`].
    pub fn receive_with_files(&self, request: u32) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut header = [0; 12];
        let mut filled = 0;
        let mut files = Vec::new();
        while filled < header.len() {
            let mut slices = [IoSliceMut::new(&mut header[filled..])];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = rustix::io::retry_on_intr(|| {
                let flags = RecvFlags::CMSG_CLOEXEC;
                rustix::net::recvmsg(&self.socket, &mut slices, &mut control, flags)
            })?;
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = ancillary {
                    files.extend(received);
                }
            }
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
        if number != request || flags & (REPLY | 3) != REPLY | VERSION || len > MAX_REPLY {
            return Err(invalid_reply(&format!(
                "a reply to {request}: request {number}, flags {flags:#x}, {len} bytes"
            )));
        }
        let mut body = vec![0; len];
        (&self.socket).read_exact(&mut body)?;
        Ok((body, files))
    }
}

/// A message with its header.
fn encode(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(12 + body.len());
    message.extend(request.to_ne_bytes());
    message.extend((VERSION | flags).to_ne_bytes());
    message.extend((body.len() as u32).to_ne_bytes());
    message.extend(body);
    message
}

/// Encodes a region (`VhostUserMemoryRegion`).
pub fn encode_region(region: &Region) -> Vec<u8> {
    let words = [region.guest, region.len, region.process, region.offset];
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// Encodes a ring index and a number (`vhost_vring_state`).
pub fn vring_state(index: u32, number: u32) -> [u8; 8] {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&index.to_ne_bytes());
    body[4..].copy_from_slice(&number.to_ne_bytes());
    body
}

fn invalid_reply(expected: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the device's reply is not {expected}"),
    )
}
