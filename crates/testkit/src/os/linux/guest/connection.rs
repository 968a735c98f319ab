//! What a guest knows of one connection: its state, what has come, and credit both ways.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar};

use hvsock_virtio::{Header, Operation, SocketKind, message, shutdown};

use super::driver::{Driver, Options, Received};

/// Bytes that a connection of Linux holds.
pub const BUFFER: u32 = 256 << 10;
/// Below so much free room Linux tells its peer of what was read.
const TELL_BELOW: u32 = 64 << 10;

/// What names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) kind: SocketKind,
    pub(super) port: u32,
    pub(super) peer_cid: u64,
    pub(super) peer_port: u32,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Both sides said that nothing follows.
    Clean,
    /// By a reset.
    Reset,
    /// It never began.
    Refused,
    /// The guest began anew.
    Restarted,
}

/// Data that has come and was not read.
#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    end: bool,
    record: bool,
}

#[derive(Debug)]
enum Bytes {
    /// Still in the buffer that it came in.
    Held {
        buffer: u32,
        offset: usize,
        len: usize,
    },
    /// Copied out, since no buffer could be spared.
    Copied { bytes: Vec<u8>, at: usize },
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) open: bool,
    pub(super) over: Option<Over>,
    /// Nobody has a handle of it any more.
    pub(super) released: bool,
    /// Bits of [`shutdown`] that this side has said, and the other.
    pub(super) said: u32,
    pub(super) heard: u32,
    /// Who waits for something of it.
    pub(super) changed: Arc<Condvar>,
    chunks: VecDeque<Chunk>,
    /// Bytes in them.
    unread: u32,
    read: u32,
    /// What of `read` the peer was told.
    told: u32,
    /// Tells it, too, whenever everything was read.
    tells_when_empty: bool,
    sent: u32,
    peer_buffer: u32,
    peer_read: u32,
}

impl Connection {
    pub(super) fn new(key: Key, options: &Options) -> Self {
        Self {
            key,
            open: false,
            over: None,
            released: false,
            said: 0,
            heard: 0,
            changed: Arc::default(),
            chunks: VecDeque::new(),
            unread: 0,
            read: 0,
            told: 0,
            tells_when_empty: options.tells_when_empty,
            sent: 0,
            peer_buffer: 0,
            peer_read: 0,
        }
    }

    /// A header of it, which tells the peer what was read.
    #[inline]
    pub(super) fn header(&mut self, cid: u64, op: Operation) -> Header {
        self.told = self.read;
        Header {
            src_cid: cid,
            dst_cid: self.key.peer_cid,
            src_port: self.key.port,
            dst_port: self.key.peer_port,
            kind: self.key.kind as u16,
            op: op as u16,
            buf_alloc: BUFFER,
            fwd_cnt: self.read,
            ..Header::default()
        }
    }

    /// How much may be sent now.
    #[inline]
    pub(super) fn credit(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.peer_read);
        self.peer_buffer.saturating_sub(under_way) as usize
    }

    /// How much the peer can hold.
    pub(super) fn peer_buffer(&self) -> usize {
        self.peer_buffer as usize
    }

    #[inline]
    pub(super) fn has_sent(&mut self, bytes: usize) {
        self.sent = self.sent.wrapping_add(bytes as u32);
    }

    /// Takes credit from a header that has come; what is wrong with it.
    #[inline]
    pub(super) fn hear_credit(&mut self, header: &Header) -> Option<&'static str> {
        let passed = header.fwd_cnt.wrapping_sub(self.peer_read);
        let before = self.sent.wrapping_sub(self.peer_read);
        (self.peer_buffer, self.peer_read) = (header.buf_alloc, header.fwd_cnt);
        (passed > before).then_some("credit for what was not sent")
    }

    /// Takes data that has come; whether its buffer is held, or what is wrong with it.
    #[inline]
    pub(super) fn take(
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
            return Err("data of another length than its header says");
        }
        if self.heard & shutdown::SEND != 0 {
            return Err("data after the end");
        }
        if self.said & shutdown::RECEIVE != 0 {
            return Ok(false);
        }
        if self.unread + header.len > BUFFER {
            return Err("more data than there is room for");
        }
        self.unread += header.len;
        let held = len > 0 && driver.has_spare();
        if !held && self.append(driver, received) {
            return Ok(false);
        }
        let bytes = if held {
            Bytes::Held {
                buffer,
                offset,
                len,
            }
        } else {
            let mut bytes = vec![0; len];
            driver.memory().bytes(offset, len).get(0, &mut bytes);
            Bytes::Copied { bytes, at: 0 }
        };
        self.chunks.push_back(Chunk {
            bytes,
            end: header.flags & message::END != 0,
            record: header.flags & message::RECORD != 0,
        });
        Ok(held)
    }

    /// Puts small data of a stream behind what was copied before.
    fn append(&mut self, driver: &Driver, received: &Received) -> bool {
        let Some(Chunk {
            bytes: Bytes::Copied { bytes, .. },
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

    /// Whether something is there to read.
    pub(super) fn has_unread(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Whether a whole message is there.
    pub(super) fn has_message(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.end)
    }

    /// Reads what has come, as much as fits; whether the peer should be told.
    #[inline]
    pub(super) fn read(&mut self, driver: &mut Driver, buffer: &mut [u8]) -> (usize, bool) {
        let mut filled = 0;
        while filled < buffer.len() {
            let Some(chunk) = self.chunks.front_mut() else {
                break;
            };
            filled += chunk.bytes.copy(driver, &mut buffer[filled..]);
            if chunk.bytes.is_empty() {
                chunk.bytes.give_back(driver);
                self.chunks.pop_front();
            }
        }
        (filled, self.has_read(filled))
    }

    /// Takes the next message, which is there: its bytes, whether it was a record, and whether the
    /// peer should be told.
    pub(super) fn read_message(&mut self, driver: &mut Driver) -> (Vec<u8>, bool, bool) {
        let mut whole = Vec::new();
        while let Some(mut chunk) = self.chunks.pop_front() {
            let from = whole.len();
            whole.resize(from + chunk.bytes.len(), 0);
            chunk.bytes.copy(driver, &mut whole[from..]);
            chunk.bytes.give_back(driver);
            if chunk.end {
                // The rest of the buffer may be a part of a message that waits for more of it, so
                // Linux tells after each.
                self.has_read(whole.len());
                return (whole, chunk.record, true);
            }
        }
        (whole, false, false)
    }

    #[inline]
    fn has_read(&mut self, bytes: usize) -> bool {
        self.unread -= bytes as u32;
        self.read = self.read.wrapping_add(bytes as u32);
        let news = self.read.wrapping_sub(self.told);
        let is_empty = self.unread == 0 && self.tells_when_empty;
        news > 0 && (BUFFER - news < TELL_BELOW || is_empty)
    }

    /// Throws away what was not read.
    pub(super) fn discard(&mut self, driver: &mut Driver) {
        for chunk in self.chunks.drain(..) {
            chunk.bytes.give_back(driver);
        }
        self.unread = 0;
    }

    /// Forgets what was not read, with buffers that are no more.
    pub(super) fn forget(&mut self) {
        self.chunks.clear();
        self.unread = 0;
    }
}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Held { len, .. } => *len,
            Self::Copied { bytes, at } => bytes.len() - at,
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn copy(&mut self, driver: &Driver, to: &mut [u8]) -> usize {
        match self {
            Self::Held { offset, len, .. } => {
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

    fn give_back(&self, driver: &mut Driver) {
        if let Self::Held { buffer, .. } = self {
            driver.give_back(*buffer);
        }
    }
}
