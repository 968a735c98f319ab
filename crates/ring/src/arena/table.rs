//! The slot table: what each process says about its end of every slot, and what the broker reads of it.

use super::grant::Grant;
use super::words::{CLOSING, ClientEntry, FREE, GrantWords, OPEN, ServerEntry};
use super::{SlotId, reset};
use crate::sync::{AtomicU64, Ordering, fence};

/// The client opens a connection, at `now` in microseconds.
pub(crate) fn open(entry: &ClientEntry, seq: u32, now: u64) {
    entry.opened_at.store(now, Ordering::Relaxed);
    entry.keep.store(0, Ordering::Relaxed);
    entry.life.store(life(seq, OPEN), Ordering::Release);
}

/// What is granted, after the client has opened or the server has accepted a connection.
///
/// The broker stores the grant and then reads the table. So it finds the connection there, or this returns
/// the new grant.
pub(crate) fn grant_after_change(grant: &GrantWords) -> Grant {
    fence(Ordering::SeqCst);
    Grant::of(grant)
}

/// The client has closed its end.
pub(crate) fn close(entry: &ClientEntry, seq: u32) {
    entry.life.store(life(seq, CLOSING), Ordering::Release);
}

/// The slot is free: both ends are closed.
pub(crate) fn free(entry: &ClientEntry, seq: u32) {
    entry.life.store(life(seq, FREE), Ordering::Release);
}

/// The server accepts a connection, unless the grant was revoked or the broker has reset the connection.
/// Returns whether it did.
pub(crate) fn accept(entry: &ServerEntry, seq: u32, state: &AtomicU64, grant: &GrantWords) -> bool {
    entry.keep.store(0, Ordering::Relaxed);
    entry.accepted.store(seq, Ordering::Release);
    // As for the grant: the broker sees `accepted`, or this sees that it has reset the connection.
    let grant = grant_after_change(grant);
    grant != Grant::Revoked && !reset::is_by_broker(state.load(Ordering::Acquire))
}

/// The server has closed its end. The client may use the slot again after this.
pub(crate) fn finish(entry: &ServerEntry, seq: u32) {
    entry.done.store(seq, Ordering::Release);
}

/// The connection in a slot that is open at either end, if the processes are not gone.
pub(crate) fn open_connection(
    client: &ClientEntry,
    server: &ServerEntry,
    slot: u32,
    gone: [bool; 2],
) -> Option<SlotId> {
    let life = client.life.load(Ordering::Acquire);
    let seq = (life >> 32) as u32;
    let is_open = match life & u64::from(u32::MAX) {
        OPEN if !gone[0] => true,
        OPEN | CLOSING => !gone[1] && server.done.load(Ordering::Acquire) != seq,
        _ => false,
    };
    (is_open && seq != 0).then_some(SlotId { slot, seq })
}

/// Whether the server has accepted a connection.
pub(crate) fn is_accepted(server: &ServerEntry, seq: u32) -> bool {
    server.accepted.load(Ordering::Acquire) == seq
}

/// Whether the client has closed its end.
pub(crate) fn is_closed(entry: &ClientEntry) -> bool {
    state(entry) == CLOSING
}

/// Whether the server has closed its end of a connection.
pub(crate) fn is_finished(entry: &ServerEntry, seq: u32) -> bool {
    entry.done.load(Ordering::Acquire) == seq
}

/// Whether the client uses the slot.
pub(crate) fn is_in_use(entry: &ClientEntry) -> bool {
    state(entry) != FREE
}

fn state(entry: &ClientEntry) -> u64 {
    entry.life.load(Ordering::Acquire) & u64::from(u32::MAX)
}

fn life(seq: u32, state: u64) -> u64 {
    u64::from(seq) << 32 | state
}
