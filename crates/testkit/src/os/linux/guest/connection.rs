//! The state of one connection in the guest: received data, and the credit of both directions.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar};

use hvsock_virtio::{Header, Operation, SocketKind, message, shutdown};

use super::driver::{Driver, Received};
use super::options::Options;

/// The receive buffer of a connection in bytes (`buf_alloc`), as in Linux.
pub const BUFFER: u32 = 256 << 10;
/// Low watermark: Linux sends a credit update when the advertised free space is below it.
const LOW_WATERMARK: u32 = 64 << 10;

/// The identity of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) kind: SocketKind,
    pub(super) port: u32,
    pub(super) peer_cid: u64,
    pub(super) peer_port: u32,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides shut down both directions.
    Clean,
    /// By a reset.
    Reset,
    /// The connection request was refused.
    Refused,
    /// The guest restarted.
    Restarted,
    /// The device has lost all connections.
    TransportReset,
}

/// The unread payload of one packet, or of several small ones.
#[derive(Debug)]
struct Chunk {
    bytes: ChunkBytes,
    end: bool,
    record: bool,
}

#[derive(Debug)]
enum ChunkBytes {
    /// In the receive buffer that the device filled.
    InBuffer {
        buffer: u32,
        offset: usize,
        len: usize,
    },
    /// Copied, because no spare buffer could replace the received one.
    Copied { bytes: Vec<u8>, at: usize },
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) open: bool,
    pub(super) close_reason: Option<CloseReason>,
    /// Whether the last handle was dropped.
    pub(super) released: bool,
    /// Bits of [`shutdown`] that the guest has sent, and that it has received.
    pub(super) shutdown_sent: u32,
    pub(super) shutdown_received: u32,
    /// Notified by every change of the connection.
    pub(super) changed: Arc<Condvar>,
    chunks: VecDeque<Chunk>,
    /// Bytes in `chunks`.
    unread: u32,
    /// Bytes read so far, wrapping.
    fwd_cnt: u32,
    /// The last `fwd_cnt` sent to the peer.
    sent_fwd_cnt: u32,
    /// Whether a reader that has read everything also sends a credit update.
    credit_update_when_empty: bool,
    /// Bytes sent so far, wrapping.
    tx_cnt: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
}

impl Connection {
    pub(super) fn new(key: Key, options: &Options) -> Self {
        Self {
            key,
            open: false,
            close_reason: None,
            released: false,
            shutdown_sent: 0,
            shutdown_received: 0,
            changed: Arc::default(),
            chunks: VecDeque::new(),
            unread: 0,
            fwd_cnt: 0,
            sent_fwd_cnt: 0,
            credit_update_when_empty: options.credit_update_when_empty,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
        }
    }

    /// Makes the header of a packet, with the current credit.
    #[inline]
    pub(super) fn header(&mut self, cid: u64, op: Operation) -> Header {
        self.sent_fwd_cnt = self.fwd_cnt;
        Header {
            src_cid: cid,
            dst_cid: self.key.peer_cid,
            src_port: self.key.port,
            dst_port: self.key.peer_port,
            kind: self.key.kind as u16,
            op: op as u16,
            buf_alloc: BUFFER,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    /// Updates the credit in the header of a packet that has waited.
    pub(super) fn update_credit_of(&mut self, header: &mut Header) {
        self.sent_fwd_cnt = self.fwd_cnt;
        header.fwd_cnt = self.fwd_cnt;
    }

    /// The credit: bytes that may be sent now.
    #[inline]
    pub(super) fn credit(&self) -> usize {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight) as usize
    }

    /// The peer's receive buffer in bytes.
    pub(super) fn peer_buf_alloc(&self) -> usize {
        self.peer_buf_alloc as usize
    }

    #[inline]
    pub(super) fn record_sent(&mut self, bytes: usize) {
        self.tx_cnt = self.tx_cnt.wrapping_add(bytes as u32);
    }

    /// Applies the credit of a received header. Returns a protocol violation, if it is one.
    #[inline]
    pub(super) fn update_credit(&mut self, header: &Header) -> Option<&'static str> {
        let freed = header.fwd_cnt.wrapping_sub(self.peer_fwd_cnt);
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        (freed > in_flight).then_some("a fwd_cnt beyond the bytes sent")
    }

    /// Queues a received payload. Returns whether the connection keeps the buffer, or the protocol
    /// violation.
    #[inline]
    pub(super) fn accept_data(
        &mut self,
        driver: &Driver,
        received: &Received,
    ) -> Result<bool, &'static str> {
        let Received {
            header,
            buffer,
            offset,
            len,
        } = *received;
        if header.len as usize != len {
            return Err("a payload length that differs from its header");
        }
        if self.shutdown_received & shutdown::SEND != 0 {
            return Err("data after a shutdown");
        }
        if self.shutdown_sent & shutdown::RECEIVE != 0 {
            return Ok(false);
        }
        if self.unread + header.len > BUFFER {
            return Err("data beyond the credit");
        }
        self.unread += header.len;
        let keep = len > 0 && driver.has_spare();
        if !keep && self.append(driver, received) {
            return Ok(false);
        }
        let bytes = if keep {
            ChunkBytes::InBuffer {
                buffer,
                offset,
                len,
            }
        } else {
            let mut bytes = vec![0; len];
            driver.memory().bytes(offset, len).get(0, &mut bytes);
            ChunkBytes::Copied { bytes, at: 0 }
        };
        self.chunks.push_back(Chunk {
            bytes,
            end: header.flags & message::END != 0,
            record: header.flags & message::RECORD != 0,
        });
        Ok(keep)
    }

    /// Appends the payload of a stream packet to the last copied chunk. False if it cannot.
    fn append(&mut self, driver: &Driver, received: &Received) -> bool {
        let Some(Chunk {
            bytes: ChunkBytes::Copied { bytes, .. },
            ..
        }) = self.chunks.back_mut()
        else {
            return false;
        };
        if self.key.kind != SocketKind::Stream || bytes.len() + received.len > 64 << 10 {
            return false;
        }
        let from = bytes.len();
        bytes.resize(from + received.len, 0);
        let shared = driver.memory().bytes(received.offset, received.len);
        shared.get(0, &mut bytes[from..]);
        true
    }

    /// Whether there is data to read.
    pub(super) fn has_unread(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Whether a whole message has arrived.
    pub(super) fn has_message(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.end)
    }

    /// Reads up to the length of `buffer`. Returns the byte count, and whether a credit update is due.
    #[inline]
    pub(super) fn read(&mut self, driver: &mut Driver, buffer: &mut [u8]) -> (usize, bool) {
        let mut filled = 0;
        while filled < buffer.len() {
            let Some(chunk) = self.chunks.front_mut() else {
                break;
            };
            filled += chunk.bytes.copy(driver, &mut buffer[filled..]);
            if chunk.bytes.is_empty() {
                chunk.bytes.recycle(driver);
                self.chunks.pop_front();
            }
        }
        (filled, self.record_read(filled))
    }

    /// Reads the next message, which must have arrived. Returns its bytes, whether it ends a record,
    /// and whether a credit update is due.
    pub(super) fn read_message(&mut self, driver: &mut Driver) -> (Vec<u8>, bool, bool) {
        let mut whole = Vec::new();
        while let Some(mut chunk) = self.chunks.pop_front() {
            let from = whole.len();
            whole.resize(from + chunk.bytes.len(), 0);
            chunk.bytes.copy(driver, &mut whole[from..]);
            chunk.bytes.recycle(driver);
            if chunk.end {
                // The rest of the buffer may hold part of a message that needs more credit to
                // complete, so Linux sends an update after each message.
                self.record_read(whole.len());
                return (whole, chunk.record, true);
            }
        }
        (whole, false, false)
    }

    #[inline]
    fn record_read(&mut self, bytes: usize) -> bool {
        self.unread -= bytes as u32;
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes as u32);
        let unreported = self.fwd_cnt.wrapping_sub(self.sent_fwd_cnt);
        let is_empty = self.unread == 0 && self.credit_update_when_empty;
        unreported > 0 && (BUFFER - unreported < LOW_WATERMARK || is_empty)
    }

    /// Discards unread data and returns its buffers.
    pub(super) fn discard(&mut self, driver: &mut Driver) {
        for chunk in self.chunks.drain(..) {
            chunk.bytes.recycle(driver);
        }
        self.unread = 0;
    }

    /// Discards unread data whose buffers the restart of the guest has already reclaimed.
    pub(super) fn clear_unread(&mut self) {
        self.chunks.clear();
        self.unread = 0;
    }
}

impl ChunkBytes {
    fn len(&self) -> usize {
        match self {
            Self::InBuffer { len, .. } => *len,
            Self::Copied { bytes, at } => bytes.len() - at,
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn copy(&mut self, driver: &Driver, to: &mut [u8]) -> usize {
        match self {
            Self::InBuffer { offset, len, .. } => {
                let copied = driver.memory().bytes(*offset, *len).get(0, to);
                *offset += copied;
                *len -= copied;
                copied
            }
            Self::Copied { bytes, at } => {
                let copied = to.len().min(bytes.len() - *at);
                to[..copied].copy_from_slice(&bytes[*at..*at + copied]);
                *at += copied;
                copied
            }
        }
    }

    fn recycle(&self, driver: &mut Driver) {
        if let Self::InBuffer { buffer, .. } = self {
            driver.recycle(*buffer);
        }
    }
}
