//! A pipe each way between two guests of one broker.
//!
//! Each guest's data thread has one [`End`]. Bytes that one guest sends lie here until the other
//! has taken them; how many there can be is what the first was given credit for. Of SEQPACKET the
//! ends of messages lie beside them. The threads wake each other by their [`Doorstep`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::shared_memory::SharedBytes;
use hvsock_virtio::MessageEnd;
use mio::Waker;

/// Ends of messages that may wait for a reader. They take no credit of the protocol's, empty
/// messages take none at all; Linux' own limit is some hundreds.
const MAX_ENDS: usize = 16 * 1024;

/// Memory that an empty pipe keeps for the next bytes.
const KEPT: usize = 4096;

/// Where a data thread finds which of its connections with siblings have news. They are named by
/// what they keep until they are gone for both guests.
#[derive(Debug)]
pub(super) struct Doorstep {
    due: Mutex<Vec<ConnectionId>>,
    waker: Arc<Waker>,
}

impl Doorstep {
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            due: Mutex::default(),
            waker,
        }
    }

    /// The connections with news since the last time.
    pub(super) fn take(&self) -> Vec<ConnectionId> {
        std::mem::take(&mut *self.due.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn knock(&self, connection: ConnectionId) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let first = due.is_empty();
        due.push(connection);
        drop(due);
        // Whoever put the first one there has woken the thread, which takes all.
        if first {
            let _ = self.waker.wake();
        }
    }
}

/// One guest's end.
#[derive(Debug)]
pub(crate) struct End {
    shared: Arc<Shared>,
    side: usize,
}

#[derive(Debug)]
struct Shared {
    pipe: Mutex<Pipe>,
    /// Where each side is found, once it is known.
    doors: [OnceLock<(Arc<Doorstep>, ConnectionId)>; 2],
    /// A side has news that it has not looked at.
    knocked: [AtomicBool; 2],
}

#[derive(Debug, Default)]
struct Pipe {
    /// By the side that writes it.
    ways: [Way; 2],
    /// The second guest has accepted.
    connected: bool,
    /// It did not end well, and why.
    broken: Option<Refusal>,
    /// What is on its way is not to arrive any more.
    is_cut: bool,
    /// The sides that are through with it.
    gone: [bool; 2],
}

#[derive(Debug, Default)]
struct Way {
    bytes: VecDeque<u8>,
    /// Where messages end: the bytes written by then, and whether a record ends.
    ends: VecDeque<(u64, bool)>,
    written: u64,
    read: u64,
    ended: bool,
    closed: bool,
    /// The reader waits for something to read.
    reader_waits: bool,
    /// The writer waits until so many bytes are read.
    writer_waits: Option<u64>,
}

/// Why bytes or the end of a message were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// Nobody reads any more.
    ReadsNoMore,
    /// [`MAX_ENDS`] messages wait.
    TooManyMessages,
}

/// What an end finds to read.
#[derive(Debug)]
pub(super) enum Read {
    /// So many bytes, what ends with them, and whether there are more.
    Bytes(usize, MessageEnd, bool),
    /// Nothing yet; the end is told when there is.
    Empty,
    /// Nothing any more.
    Ended,
    /// Nothing any more, and not for a good reason.
    Broken(Refusal),
}

/// What an end sees of the other.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// The second guest has accepted.
    pub(super) connected: bool,
    /// The other guest reads no more.
    pub(super) closed: bool,
    /// The connection did not end well.
    pub(super) broken: Option<Refusal>,
    /// It was cut: what is on its way is not to arrive any more.
    pub(super) is_cut: bool,
    /// The other side is through with it.
    pub(super) gone: bool,
}

/// A pipe: the end of the guest that connects, and of the one that is to accept.
pub(crate) fn pair() -> (End, End) {
    let shared = Arc::new(Shared {
        pipe: Mutex::default(),
        doors: Default::default(),
        knocked: Default::default(),
    });
    let other = Arc::clone(&shared);
    let end = |shared, side| End { shared, side };
    (end(shared, 0), end(other, 1))
}

impl End {
    /// Says where this end is to be told of news.
    pub(super) fn settle(&self, door: Arc<Doorstep>, connection: ConnectionId) {
        let _ = self.shared.doors[self.side].set((door, connection));
        // There may be some already. Whichever fence comes second, here or in `knock`, sees what
        // was stored before the other.
        fence(Ordering::SeqCst);
        if self.shared.knocked[self.side].load(Ordering::Acquire) {
            self.shared.knocked[self.side].store(false, Ordering::Release);
            self.knock(self.side);
        }
    }

    /// Takes note of all news.
    pub(super) fn look(&self) -> News {
        self.shared.knocked[self.side].store(false, Ordering::SeqCst);
        let pipe = self.pipe();
        News {
            connected: pipe.connected,
            closed: pipe.ways[self.side].closed,
            broken: pipe.broken.clone(),
            is_cut: pipe.is_cut,
            gone: pipe.gone[1 - self.side],
        }
    }

    /// Writes pieces of the guest's memory, and what ends with them. The writer has kept to its
    /// credit; bytes that nobody reads any more are dropped, and it is told so.
    pub(super) fn write(
        &self,
        pieces: &[SharedBytes<'_>],
        end: MessageEnd,
    ) -> Result<(), NotTaken> {
        let mut pipe = self.pipe();
        if pipe.broken.is_some() || pipe.gone[1 - self.side] || pipe.ways[self.side].closed {
            return Err(NotTaken::ReadsNoMore);
        }
        let way = &mut pipe.ways[self.side];
        if end.message && way.ends.len() == MAX_ENDS {
            return Err(NotTaken::TooManyMessages);
        }
        let mut buffer = [0; 4096];
        for piece in pieces {
            let mut at = 0;
            while at < piece.len() {
                let count = piece.get(at, &mut buffer);
                way.bytes.extend(&buffer[..count]);
                at += count;
                way.written += count as u64;
            }
        }
        if end.message {
            way.ends.push_back((way.written, end.record));
        }
        let tell = std::mem::take(&mut way.reader_waits);
        drop(pipe);
        if tell {
            self.knock(1 - self.side);
        }
        Ok(())
    }

    /// Reads into pieces of the guest's memory, of which there is room for at least one byte; no
    /// further than to the end of a message where `in_messages`.
    pub(super) fn read(&self, pieces: &[SharedBytes<'_>], in_messages: bool) -> Read {
        let mut pipe = self.pipe();
        let broken = pipe.broken.clone();
        let way = &mut pipe.ways[1 - self.side];
        let mut most = way.bytes.len();
        let mut end = MessageEnd::default();
        let next_end = way.ends.front().copied().filter(|_| in_messages);
        if let Some((at, _)) = next_end {
            most = most.min((at - way.read) as usize);
        }
        if most == 0 && next_end.is_none() {
            if let Some(refusal) = broken {
                return Read::Broken(refusal);
            }
            if way.ended {
                return Read::Ended;
            }
            way.reader_waits = true;
            if way.bytes.capacity() > KEPT {
                way.bytes = VecDeque::new();
            }
            return Read::Empty;
        }
        let mut count = 0;
        for piece in pieces {
            if count == most {
                break;
            }
            let wanted = piece.len().min(most - count);
            let (first, second) = way.bytes.as_slices();
            // What was read stays in front until all of it was.
            let skip = count.min(first.len());
            let a = &first[skip..];
            let b = &second[count - skip..];
            let from_a = wanted.min(a.len());
            let mut put = piece.put(0, &a[..from_a]);
            put += piece.put(put, &b[..wanted - from_a]);
            count += put;
        }
        way.bytes.drain(..count);
        way.read += count as u64;
        if let Some((at, record)) = next_end
            && at == way.read
        {
            way.ends.pop_front();
            end = MessageEnd {
                message: true,
                record,
            };
        }
        // An end that was there before these bytes were taken is told by nobody else.
        let is_over = way.ended || broken.is_some();
        let more = !way.bytes.is_empty() || !way.ends.is_empty() || is_over;
        // Whoever is told that there is nothing more does not ask again until it is knocked.
        way.reader_waits |= !more;
        let tell = way.writer_waits.is_some_and(|at| way.read >= at);
        if tell {
            way.writer_waits = None;
        }
        drop(pipe);
        if tell {
            self.knock(1 - self.side);
        }
        Read::Bytes(count, end, more)
    }

    /// How many of this end's bytes the other has read.
    pub(super) fn read_by_peer(&self) -> u64 {
        self.pipe().ways[self.side].read
    }

    /// Asks to be told when the other has read `bytes` in all; whether it has not yet.
    pub(super) fn ask_for_room(&self, bytes: u64) -> bool {
        let way = &mut self.pipe().ways[self.side];
        if way.read >= bytes {
            return false;
        }
        way.writer_waits = Some(bytes);
        true
    }

    /// The second guest has accepted.
    pub(super) fn connected(&self) {
        self.change(|pipe, _| pipe.connected = true);
    }

    /// Nothing follows.
    pub(super) fn finish(&self) {
        self.change(|pipe, side| pipe.ways[side].ended = true);
    }

    /// This end reads no more.
    pub(super) fn close_read(&self) {
        self.change(|pipe, side| {
            let way = &mut pipe.ways[1 - side];
            way.closed = true;
            way.bytes = VecDeque::new();
            way.ends = VecDeque::new();
        });
    }

    /// The connection is broken; the other end reads what is there and then finds out why, or
    /// finds out at once if it is cut.
    pub(super) fn break_off(&self, why: Refusal, cut: bool) {
        self.change(|pipe, side| {
            pipe.broken.get_or_insert(why);
            pipe.is_cut |= cut;
            pipe.gone[side] = true;
        });
    }

    fn change(&self, what: impl FnOnce(&mut Pipe, usize)) {
        what(&mut self.pipe(), self.side);
        self.knock(1 - self.side);
    }

    fn knock(&self, side: usize) {
        if self.shared.knocked[side].swap(true, Ordering::SeqCst) {
            return;
        }
        fence(Ordering::SeqCst);
        if let Some((door, connection)) = self.shared.doors[side].get() {
            door.knock(*connection);
        }
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.shared
            .pipe
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.change(|pipe, side| {
            pipe.gone[side] = true;
            pipe.ways[side].ended = true;
            pipe.ways[1 - side].closed = true;
        });
    }
}

#[cfg(test)]
mod tests {
    use hvsock_sys::shared_memory::{Mapping, create};

    use super::*;

    fn memory() -> Mapping {
        Mapping::new(create(8192).unwrap(), 8192).unwrap()
    }

    fn end(message: bool, record: bool) -> MessageEnd {
        MessageEnd { message, record }
    }

    #[test]
    fn messages_end_where_they_did_also_when_they_are_read_in_parts() {
        let (memory, (a, b)) = (memory(), pair());
        let text: Vec<u8> = (0..100).collect();
        memory.bytes(0..100).put(0, &text);
        let (first, second) = (memory.bytes(0..30), memory.bytes(30..100));
        a.write(&[first], end(false, false)).unwrap();
        a.write(&[second], end(true, true)).unwrap();
        a.write(&[], end(true, false)).unwrap();
        a.write(&[first], end(true, false)).unwrap();
        let room = [memory.bytes(4096..4106), memory.bytes(5000..5050)];
        let mut read = Vec::new();
        while let Read::Bytes(count, end, _) = b.read(&room, true) {
            read.push((count, end.message, end.record));
        }
        let want = [
            (60, false, false),
            (40, true, true),
            (0, true, false),
            (30, true, false),
        ];
        assert_eq!(read, want);
        assert_eq!(a.read_by_peer(), 130);
    }

    #[test]
    fn bytes_come_in_order_into_pieces_of_any_size() {
        let (memory, (a, b)) = (memory(), pair());
        let text: Vec<u8> = (0..=255).cycle().take(4000).collect();
        memory.bytes(0..4000).put(0, &text);
        let mut got = Vec::new();
        // So that the bytes lie around the end of the pipe's memory, too.
        for turn in 0..50 {
            a.write(&[memory.bytes(0..4000)], end(false, false))
                .unwrap();
            let mut most = 1 + turn * 37;
            loop {
                let room = [memory.bytes(4096..4096 + most), memory.bytes(6500..6507)];
                let Read::Bytes(count, ..) = b.read(&room, false) else {
                    break;
                };
                let mut bytes = vec![0; count];
                let first = room[0].get(0, &mut bytes);
                room[1].get(0, &mut bytes[first..]);
                got.extend(bytes);
                most = (most * 2).min(2000);
            }
            assert!(got == text, "turn {turn}");
            got.clear();
        }
    }

    #[test]
    fn a_guest_cannot_fill_memory_with_empty_messages() {
        let (memory, (a, b)) = (memory(), pair());
        for _ in 0..MAX_ENDS {
            a.write(&[], end(true, false)).unwrap();
        }
        assert_eq!(
            a.write(&[], end(true, false)),
            Err(NotTaken::TooManyMessages)
        );
        assert!(matches!(
            b.read(&[memory.bytes(0..10)], true),
            Read::Bytes(0, _, true)
        ));
        a.write(&[], end(true, false)).unwrap();
        b.close_read();
        assert_eq!(a.write(&[], end(true, false)), Err(NotTaken::ReadsNoMore));
    }
}
