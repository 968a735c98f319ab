//! A connection between two sibling guests of one broker: a [`Pipe`] with two directions.
//!
//! Each guest's link owns one [`PipeEnd`]. A direction buffers the bytes that one guest
//! has sent and the other has not read. The writer's credit bounds the buffer. SEQPACKET message ends
//! are queued beside the bytes. The links wake each other by [`WakePeer`].

pub(crate) mod snapshot;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::shared_memory::SharedBytes;
use hvsock_sys::sync::lock;

use super::outcome::{DeliverError, FillOutcome, MessageEnd};

/// The most message ends that may be queued for a reader. An empty message uses no credit, so
/// credit does not bound them. Linux queues some hundreds.
const MAX_MESSAGE_ENDS: usize = 16 * 1024;

/// The most capacity, in bytes, that an empty direction keeps.
const KEPT_CAPACITY: usize = 4096;

/// Wakes a link whose connection with a sibling has changed.
pub trait WakePeer: Send + Sync + fmt::Debug {
    /// The connection's state has changed: the link moves its bytes and polls its peer. Called from
    /// the sibling's thread; it must not block.
    fn wake(&self, connection: ConnectionId);
}

/// One guest's end of a connection between siblings.
#[derive(Debug)]
pub struct PipeEnd {
    shared: Arc<Shared>,
    side: usize,
}

#[derive(Debug)]
struct Shared {
    /// The size of each direction's buffer in bytes, to which the writers keep.
    capacity: usize,
    pipe: Mutex<Pipe>,
    /// The wake queue of each side and its connection id, once attached.
    wakers: [OnceLock<(Arc<dyn WakePeer>, ConnectionId)>; 2],
    /// Whether a side has a pending notification.
    notified: [AtomicBool; 2],
}

#[derive(Debug, Default)]
struct Pipe {
    /// Indexed by the side that writes.
    directions: [Direction; 2],
    /// The second guest has accepted.
    connected: bool,
    /// Why the connection was aborted.
    failure: Option<Refusal>,
    /// The readers discard what is still buffered.
    is_reset: bool,
    /// The sides that have dropped or aborted the connection.
    gone: [bool; 2],
}

#[derive(Debug, Default)]
struct Direction {
    bytes: VecDeque<u8>,
    /// Message ends: the value of `written` at the end, and whether the record ends as well.
    ends: VecDeque<(u64, bool)>,
    /// Bytes written so far.
    written: u64,
    /// Bytes read so far.
    read: u64,
    /// The writer has shut down sending.
    ended: bool,
    /// The reader has shut down receiving.
    closed: bool,
    /// The reader wants a wakeup when there is something to read.
    reader_armed: bool,
    /// The writer wants a wakeup when `read` has reached this count.
    writer_armed: Option<u64>,
}

/// The state of the peer, as one end sees it.
#[derive(Clone, Debug, Default)]
pub struct PeerState {
    /// The second guest has accepted.
    pub connected: bool,
    /// The other guest has shut down receiving.
    pub closed: bool,
    /// Why the connection was aborted.
    pub failure: Option<Refusal>,
    /// The reader discards what is still buffered.
    pub is_reset: bool,
    /// The other side has dropped or aborted the connection.
    pub gone: bool,
}

/// Makes a connection with buffers of `capacity` bytes each way. Returns the connecting guest's end
/// and the accepting guest's end.
pub(crate) fn pair(capacity: u32) -> (PipeEnd, PipeEnd) {
    let shared = Arc::new(Shared {
        capacity: capacity as usize,
        pipe: Mutex::default(),
        wakers: Default::default(),
        notified: Default::default(),
    });
    let other = Arc::clone(&shared);
    let end = |shared, side| PipeEnd { shared, side };
    (end(shared, 0), end(other, 1))
}

impl PipeEnd {
    /// Sets the wake queue to which this end's notifications go. A notification that is already
    /// pending is delivered at once.
    pub fn attach(&self, waker: Arc<dyn WakePeer>, connection: ConnectionId) {
        let _ = self.shared.wakers[self.side].set((waker, connection));
        // A notification may have come before the queue was set. This fence pairs with the one in
        // `notify`: whichever runs second sees what was stored before the other.
        fence(Ordering::SeqCst);
        if self.shared.notified[self.side].load(Ordering::Acquire) {
            self.shared.notified[self.side].store(false, Ordering::Release);
            self.notify(self.side);
        }
    }

    /// Drains the pending notification and returns the peer's state.
    pub fn poll_peer(&self) -> PeerState {
        self.shared.notified[self.side].store(false, Ordering::SeqCst);
        let pipe = self.pipe();
        PeerState {
            connected: pipe.connected,
            closed: pipe.directions[self.side].closed,
            failure: pipe.failure.clone(),
            is_reset: pipe.is_reset,
            gone: pipe.gone[1 - self.side],
        }
    }

    /// Writes chunks of the guest's memory, and the message end that follows them. The caller has
    /// checked that the guest kept to its credit.
    pub(super) fn deliver(
        &self,
        chunks: &[SharedBytes<'_>],
        end: MessageEnd,
    ) -> Result<(), DeliverError> {
        self.append(end, |bytes, _| {
            let (mut buffer, mut written) = ([0; 4096], 0);
            for chunk in chunks {
                let mut at = 0;
                while at < chunk.len() {
                    let count = chunk.get(at, &mut buffer);
                    bytes.extend(&buffer[..count]);
                    at += count;
                }
                written += at;
            }
            (written, true)
        })
        .map(drop)
    }

    /// Writes bytes. Returns how many fit.
    pub(super) fn write(&self, bytes: &[u8], end: MessageEnd) -> Result<usize, DeliverError> {
        self.append(end, |buffered, capacity| {
            let fit = bytes.len().min(capacity.saturating_sub(buffered.len()));
            buffered.extend(&bytes[..fit]);
            (fit, fit == bytes.len())
        })
    }

    /// Appends what `copy` copies into the buffer of the given capacity. It returns the count of
    /// bytes, and whether these are all, so that the message end follows.
    fn append(
        &self,
        end: MessageEnd,
        copy: impl FnOnce(&mut VecDeque<u8>, usize) -> (usize, bool),
    ) -> Result<usize, DeliverError> {
        let mut pipe = self.pipe();
        if pipe.failure.is_some() || pipe.gone[1 - self.side] || pipe.directions[self.side].closed {
            return Err(DeliverError::ReadClosed);
        }
        let direction = &mut pipe.directions[self.side];
        if end.message && direction.ends.len() == MAX_MESSAGE_ENDS {
            return Err(DeliverError::TooManyMessages);
        }
        let (count, is_all) = copy(&mut direction.bytes, self.shared.capacity);
        direction.written += count as u64;
        if end.message && is_all {
            direction.ends.push_back((direction.written, end.record));
        }
        let wake = std::mem::take(&mut direction.reader_armed);
        drop(pipe);
        if wake {
            self.notify(1 - self.side);
        }
        Ok(count)
    }

    /// Reads into chunks of the guest's memory, at least one byte long in all. With `in_messages`
    /// it stops at the next message end.
    pub(super) fn fill(&self, chunks: &[SharedBytes<'_>], in_messages: bool) -> FillOutcome {
        self.take(in_messages, |bytes, limit| {
            let mut count = 0;
            for chunk in chunks {
                if count == limit {
                    break;
                }
                let wanted = chunk.len().min(limit - count);
                let (first, second) = bytes.as_slices();
                // The bytes are drained only after the loop, so `count` of them are still in front.
                let skip = count.min(first.len());
                let a = &first[skip..];
                let b = &second[count - skip..];
                let from_a = wanted.min(a.len());
                let mut put = chunk.put(0, &a[..from_a]);
                put += chunk.put(put, &b[..wanted - from_a]);
                count += put;
            }
            count
        })
    }

    /// Reads into a buffer that is not empty, as [`PipeEnd::fill`].
    pub(super) fn read(&self, buffer: &mut [u8], in_messages: bool) -> FillOutcome {
        self.take(in_messages, |bytes, limit| {
            let count = buffer.len().min(limit);
            for (to, from) in buffer[..count].iter_mut().zip(bytes.iter()) {
                *to = *from;
            }
            count
        })
    }

    /// Takes the bytes that `copy` copies, of which it returns the count, from the front of the
    /// buffer, at most the given number.
    fn take(
        &self,
        in_messages: bool,
        copy: impl FnOnce(&VecDeque<u8>, usize) -> usize,
    ) -> FillOutcome {
        let mut pipe = self.pipe();
        let failure = pipe.failure.clone();
        let direction = &mut pipe.directions[1 - self.side];
        let mut limit = direction.bytes.len();
        let mut end = MessageEnd::default();
        let next_end = direction.ends.front().copied().filter(|_| in_messages);
        if let Some((at, _)) = next_end {
            limit = limit.min((at - direction.read) as usize);
        }
        if limit == 0 && next_end.is_none() {
            if let Some(refusal) = failure {
                return FillOutcome::Failed(refusal);
            }
            if direction.ended {
                return FillOutcome::Ended;
            }
            direction.reader_armed = true;
            if direction.bytes.capacity() > KEPT_CAPACITY {
                direction.bytes = VecDeque::new();
            }
            return FillOutcome::Empty;
        }
        let count = copy(&direction.bytes, limit);
        direction.bytes.drain(..count);
        direction.read += count as u64;
        if let Some((at, record)) = next_end
            && at == direction.read
        {
            direction.ends.pop_front();
            end = MessageEnd {
                message: true,
                record,
            };
        }
        // An end or abort that came before this read sends no further notification.
        let is_over = direction.ended || failure.is_some();
        let more = !direction.bytes.is_empty() || !direction.ends.is_empty() || is_over;
        // A reader that finds nothing more reads again only after a notification.
        direction.reader_armed |= !more;
        let wake = direction
            .writer_armed
            .is_some_and(|at| direction.read >= at);
        if wake {
            direction.writer_armed = None;
        }
        drop(pipe);
        if wake {
            self.notify(1 - self.side);
        }
        FillOutcome::Bytes(count, end, more)
    }

    /// The count of this end's bytes that the peer has read.
    pub(super) fn read_by_peer(&self) -> u64 {
        self.pipe().directions[self.side].read
    }

    /// Requests a wakeup when the peer has read `bytes` in all. Returns `false`, and requests
    /// nothing, if it already has.
    pub(super) fn arm_read_by_peer(&self, bytes: u64) -> bool {
        let direction = &mut self.pipe().directions[self.side];
        if direction.read >= bytes {
            return false;
        }
        direction.writer_armed = Some(bytes);
        true
    }

    /// Requests a wakeup for when there is room to write. Returns `false` if there is.
    pub(super) fn arm_writable(&self) -> bool {
        let direction = &mut self.pipe().directions[self.side];
        if direction.bytes.len() < self.shared.capacity {
            return false;
        }
        direction.writer_armed = Some(direction.read + 1);
        true
    }

    /// Records that the second guest has accepted.
    pub fn connected(&self) {
        self.change(|pipe, _| pipe.connected = true);
    }

    /// Half-close: this end sends no more.
    pub(super) fn finish(&self) {
        self.change(|pipe, side| pipe.directions[side].ended = true);
    }

    /// This end reads no more.
    pub(super) fn close_read(&self) {
        self.change(|pipe, side| {
            let direction = &mut pipe.directions[1 - side];
            direction.closed = true;
            direction.bytes = VecDeque::new();
            direction.ends = VecDeque::new();
        });
    }

    /// Aborts the connection. The peer reads what is buffered and then finds the refusal; with
    /// `discard` it finds the refusal at once.
    pub(super) fn abort(&self, refusal: Refusal, discard: bool) {
        self.change(|pipe, side| {
            pipe.failure.get_or_insert(refusal);
            pipe.is_reset |= discard;
            pipe.gone[side] = true;
        });
    }

    fn change(&self, what: impl FnOnce(&mut Pipe, usize)) {
        what(&mut self.pipe(), self.side);
        self.notify(1 - self.side);
    }

    fn notify(&self, side: usize) {
        if self.shared.notified[side].swap(true, Ordering::SeqCst) {
            return;
        }
        fence(Ordering::SeqCst);
        if let Some((waker, connection)) = self.shared.wakers[side].get() {
            waker.wake(*connection);
        }
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        lock(&self.shared.pipe)
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.change(|pipe, side| {
            pipe.gone[side] = true;
            pipe.directions[side].ended = true;
            pipe.directions[1 - side].closed = true;
        });
    }
}

#[cfg(test)]
mod tests {
    use hvsock_sys::shared_memory::{Mapping, create};

    use super::*;

    const CAPACITY: u32 = 4096;

    fn memory() -> Mapping {
        Mapping::new(create(8192).unwrap(), 8192).unwrap()
    }

    fn end(message: bool, record: bool) -> MessageEnd {
        MessageEnd { message, record }
    }

    #[test]
    fn message_ends_survive_writes_and_reads_in_parts() {
        let (memory, (a, b)) = (memory(), pair(CAPACITY));
        let text: Vec<u8> = (0..100).collect();
        memory.bytes(0..100).put(0, &text);
        let (first, second) = (memory.bytes(0..30), memory.bytes(30..100));
        a.deliver(&[first], end(false, false)).unwrap();
        a.deliver(&[second], end(true, true)).unwrap();
        a.deliver(&[], end(true, false)).unwrap();
        a.deliver(&[first], end(true, false)).unwrap();
        let free = [memory.bytes(4096..4106), memory.bytes(5000..5050)];
        let mut read = Vec::new();
        while let FillOutcome::Bytes(count, end, _) = b.fill(&free, true) {
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
    fn bytes_arrive_in_order_in_chunks_of_any_size() {
        let (memory, (a, b)) = (memory(), pair(CAPACITY));
        let text: Vec<u8> = (0..=255).cycle().take(4000).collect();
        memory.bytes(0..4000).put(0, &text);
        let mut got = Vec::new();
        // Many turns, so that the bytes also wrap around the end of the pipe's buffer.
        for turn in 0..50 {
            a.deliver(&[memory.bytes(0..4000)], end(false, false))
                .unwrap();
            let mut limit = 1 + turn * 37;
            loop {
                let free = [memory.bytes(4096..4096 + limit), memory.bytes(6500..6507)];
                let FillOutcome::Bytes(count, ..) = b.fill(&free, false) else {
                    break;
                };
                let mut bytes = vec![0; count];
                let first = free[0].get(0, &mut bytes);
                free[1].get(0, &mut bytes[first..]);
                got.extend(bytes);
                limit = (limit * 2).min(2000);
            }
            assert!(got == text, "turn {turn}");
            got.clear();
        }
    }

    #[test]
    fn queued_empty_messages_are_bounded() {
        let (memory, (a, b)) = (memory(), pair(CAPACITY));
        for _ in 0..MAX_MESSAGE_ENDS {
            a.deliver(&[], end(true, false)).unwrap();
        }
        assert_eq!(
            a.deliver(&[], end(true, false)),
            Err(DeliverError::TooManyMessages)
        );
        assert!(matches!(
            b.fill(&[memory.bytes(0..10)], true),
            FillOutcome::Bytes(0, _, true)
        ));
        a.deliver(&[], end(true, false)).unwrap();
        b.close_read();
        assert_eq!(
            a.deliver(&[], end(true, false)),
            Err(DeliverError::ReadClosed)
        );
    }

    #[test]
    fn a_writer_with_memory_of_its_own_is_bounded_and_woken_when_there_is_room() {
        let (a, b) = pair(100);
        let message = end(true, false);
        assert_eq!(a.write(&[1; 80], message), Ok(80));
        assert!(!a.arm_writable());
        // A part of a message has no end yet.
        assert_eq!(a.write(&[2; 80], message), Ok(20));
        assert_eq!(a.write(&[2; 60], message), Ok(0));
        assert!(a.arm_writable());
        let mut buffer = [0; 90];
        let FillOutcome::Bytes(80, ended, true) = b.read(&mut buffer, true) else {
            panic!("the first message");
        };
        assert!(ended.message && buffer[..80] == [1; 80]);
        assert_eq!(a.write(&[2; 60], message), Ok(60));
        let FillOutcome::Bytes(80, ended, false) = b.read(&mut buffer, true) else {
            panic!("the second message");
        };
        assert!(ended.message && buffer[..80] == [2; 80]);
    }
}
