//! An arena: shared memory from which one process opens connections to another one by itself.
//!
//! A *pair* is a connecting process, the client, and a listener's process, the server. A third process, the
//! broker, creates the arena ([`ArenaParts`]) and hands out both ends. From then on the client opens
//! connections ([`ArenaClient::connect`]) and the server accepts them ([`ArenaServer::accept`]) without the
//! broker and, while nobody waits, without a system call. The broker reads what the pair claims about its
//! connections, grants and revokes, closes and suspends ([`ArenaMonitor`]).
//!
//! An arena is divided into *slots*. A connection has one slot while it is open: a header as that of a
//! connection of its own ([`RingEnd`](crate::RingEnd)), and two rings. A slot is used again for later
//! connections of the same pair, so no connection sees bytes of another pair.
//!
//! # Descriptors
//!
//! Each process gets the memory (a memfd, sealed with `F_SEAL_SHRINK`, `F_SEAL_GROW` and `F_SEAL_SEAL`), the
//! grant page (a memfd with the same seals and `F_SEAL_FUTURE_WRITE`, so that only the broker can write it),
//! its own doorbell and the peer's doorbell. It checks the seals, maps the grant page for reading, and maps
//! the memory after checking that its length is what the grant page says. It never takes a size or an offset
//! from the memory.
//!
//! # The grant page
//!
//! Five 32-bit words and one of 64 bits. All words are in the machine's byte order, and naturally aligned.
//!
//! | offset | word | value |
//! |---|---|---|
//! | 0 | state | 1: granted; 2: suspended, neither side opens or accepts; anything else: revoked |
//! | 4 | granted | the number of slots that may be used; only grows |
//! | 8 | backlog | the most connections that may wait to be accepted |
//! | 12 | ring | the size of each ring in bytes; never changes |
//! | 16 | slots | the most slots that may ever be granted, 1 to 1024; never changes |
//! | 24 | left | `published` when the client's process ended; 0 if the grant was or is revoked for another reason; 2^64 - 1 before |
//!
//! # The memory
//!
//! `0x20F000 + slots * 2 * ring` bytes. The words of 1024 slots are always there. In a new arena all bytes are
//! 0, and no page is allocated before it is used.
//!
//! | offset | size | word | written by | value |
//! |---|---|---|---|---|
//! | 0 | 8 | published | client | connections ever put into the connect queue |
//! | 128 | 8 | taken | server | connections ever taken out of it |
//! | 256 | 4 | accept_request | both | 1: an acceptor wants a notification by the server's doorbell |
//! | 384 | 4 | broker_request | all | 1: the broker wants a message at the next change |
//! | 512 | 8 | closed | client | ends that it has closed |
//! | 520 | 8 | closed_bytes | client | bytes that it wrote to connections that it has closed |
//! | 640, 648 | 8 | likewise | server | |
//! | 768 | 4 | pending | both | 1: the client was notified of its ready set and has not drained it |
//! | 896 | 128 | ready | all | the client's ready set: bit n % 64 of 64-bit word n / 64 is slot n |
//! | 1024, 1152 | | likewise | | of the server |
//! | 0x1000 + 8 n | 8 | entry | client | connect queue, n = counter modulo 1024: sequence number (high half), slot |
//! | 0x3000 + 32 i | 8 | life | client | of slot i: sequence number (high half); 0 free, 1 open, 2 closed by the client |
//! | … + 8 | 8 | opened_at | client | microseconds of `CLOCK_MONOTONIC` |
//! | … + 16 | 4 | keep | client | 1: keep it while a partition is suspended |
//! | 0xB000 + 16 i | 4 | accepted | server | of slot i: sequence number of the last accepted connection |
//! | … + 4 | 4 | done | server | sequence number of the last one that it has closed or discarded |
//! | … + 8 | 4 | keep | server | as the client's |
//! | 0xF000 + 2048 i | 1664 | header | | of slot i: the words of a connection (as in `layout`), of which *state* has 64 bits |
//! | … + 1664 | 4 | futex | all | of the client's end: changes at every wake |
//! | … + 1668 | 4 | modes | client | bit 0: threads wait on the futex; bit 1: wants its bit in the ready set |
//! | … + 1792, 1796 | | likewise | | of the server's end |
//! | 0x20F000 + 2 ring i | | rings | | of slot i: client → server, then server → client |
//!
//! The *state* word of a slot has the connection's sequence number in its high half. Its low half is as in a
//! connection of its own, and bits 8 to 10 tell the cause of a reset: bit 8, the peer closed without ending
//! its data, or its process is gone; bit 9, the peer left data unread; bit 10, an end aborted the connection.
//! None of them: the broker did, and tells the reason on the control connection.
//!
//! # Opening
//!
//! Only the client chooses slots and sequence numbers, by private state. Connection number n, counted from 0,
//! has the sequence number `n mod (2^20 - 1) + 1`; the client skips numbers whose sequence number an open
//! connection or the last one of the slot has. It uses a slot again if it has closed its end and `done` is the
//! sequence number that its last connection had.
//!
//! 1. Check the grant, and that `published - taken` is less than the backlog.
//! 2. Take a slot below *granted*. Initialise its header: head, tail, space, ended, closed and window of both
//!    directions 0, awake 1 (no wakeup request), both modes 0; then exchange state for the sequence number. The
//!    processor words, which are hints, stay.
//! 3. Store opened_at, keep and `life`; store the entry of the queue; store `published` (release).
//! 4. **Full fence.** Load the grant again. If it is not granted any more, set the reset bit, close the slot as
//!    below, and give up.
//! 5. Exchange `accept_request`, if it is 1, for 0; if that returns 1, notify the server by its doorbell.
//! 6. Exchange `broker_request`, if it is 1, for 0; if that returns 1, send the broker ARENA_CHANGED.
//!
//! # Accepting
//!
//! 1. While the grant is suspended there is nothing to accept. `published - taken` is at most 1024. If it is 0
//!    there is nothing to accept.
//! 2. Check the entry: the slot is below *granted* and not open here; the sequence number is 1 to 2^20 - 1, at
//!    most 1024 numbers were skipped since the last one, and the high half of the slot's state word is the
//!    same. Store `taken` (release).
//! 3. Store `accepted`. **Full fence.** If the grant is revoked, or the broker has reset the connection (reset
//!    bit without a cause), discard it: set the reset bit, wake the client's end, store `done`. Go to 1. But
//!    with a revoked grant accept it if fewer than *left* were taken before it, and fewer than 1024 since
//!    *left* was first seen after the last connection that the grant allowed.
//! 4. As step 6 above.
//!
//! To wait for a connection, store 1 in `accept_request`; **full fence**; check the queue once more.
//!
//! # Waiting and waking
//!
//! A reader's and a writer's wakeup requests are those of a connection of its own. What differs is how the end
//! that takes a request notifies its peer: **full fence**, load the peer's modes; with bit 0, add 1 to its
//! futex word and wake all threads that wait on it (`FUTEX_WAKE`, not private); with bit 1, set the slot's bit
//! in the peer's ready set; **full fence**; exchange *pending*, if it is 0, for 1; if that returns 0, notify by
//! the doorbell.
//!
//! A thread that parks sets bit 0 of its modes, loads its futex word, makes its request, checks once more, and
//! waits with the value that it loaded (`FUTEX_WAIT`). An end that is watched sets bit 1 before it makes a
//! request. When its doorbell is readable a process drains it, exchanges *pending* for 0, **full fence**,
//! exchanges the words of its ready set for 0, and looks at those slots. It also does so when the broker sends
//! it a message, because the broker sets bits and has no doorbell.
//!
//! # Closing
//!
//! An end closes as the broker closes it for a process that is gone. For a clean end of data that was not ended before, it
//! first stores 2 in `closed` of the direction that it reads, and then 1 in `ended`: the peer never finds the end without
//! the close. A 2 without `ended` and without the reset bit is a close that is not complete.
//!
//! 1. If it has not ended its data, it sets the reset bit with bit 8.
//! 2. It stores 2 in `closed` of the direction that it reads; **full fence**; if there are unread bytes, it
//!    sets the reset bit with bit 9. It wakes its peer in both cases. A reset that is there already stays.
//! 3. It adds its bytes to `closed_bytes`. The client stores 2 in `life`, the server the sequence number in
//!    `done`, and accesses the slot no more. Each adds 1 to `closed`; **full fence**; then step 6 above.
//!
//! When the client finds both ends closed it stores 0 in `life`. Slots from number 32 on then give the pages of
//! their rings back (`MADV_REMOVE`), if bytes were moved.
//!
//! # Another broker
//!
//! A broker that takes over from another one can map the memory, and the grant page for reading only: no second
//! process may map that for writing. So the first broker revokes the grant before, with *left* as for a client whose
//! process is gone. What is open stays, what is in the queue is accepted, and a client connects by the broker, which
//! makes another arena. If the first broker stays after all, it grants again.
//!
//! # Trust
//!
//! Either process may write any value anywhere in the memory at any time. Each end keeps its own counters,
//! slots and sequence numbers in private memory, and compares what the other one writes with them. A
//! [`Violation`] of the queue or of a slot ends the opening or accepting of further connections, and nothing
//! else; one of a ring ends its connection. All loops are bounded by the number of slots. A hostile process can
//! wake the other one's threads at any time, as it can with a doorbell of its own, or never.
//!
//! Only the broker can write the grant page. After [`ArenaMonitor::set_grant`] has returned, a connection that
//! [`ArenaMonitor::scan`] does not list is neither opened nor accepted, unless both processes violate the
//! protocol; but such a pair shares memory anyway. Every order names a sequence number, and changes the state
//! word by a compare-and-swap with it, so that it does not reach a later connection in the slot.
//!
//! What the broker reads are claims. It reads a bounded number of words, never the rings, and a claim that it
//! has read is not taken back. A hostile pair can hide its connections, or give two of them one number.

mod changes;
mod client;
mod client_slots;
mod create;
mod grant;
mod layout;
#[cfg(loom)]
mod loom_tests;
mod monitor;
mod process;
mod queue;
mod ready;
mod reset;
mod server;
mod slot;
mod slot_id;
mod snapshot;
mod table;
mod wakeups;
mod words;

pub use client::snapshot::{ARENA_CLIENT_SNAPSHOT_VERSION, ArenaClientSnapshot};
pub use client::{ArenaClient, OpenError, Opened};
pub use create::ArenaParts;
pub use grant::Grant;
pub use layout::ArenaLimits;
pub use monitor::{ArenaMonitor, SlotView, Totals};
pub use process::TellBroker;
pub use reset::ResetCause;
pub use server::{Accepted, ArenaServer};
pub use slot_id::SlotId;
pub use snapshot::{ARENA_MONITOR_SNAPSHOT_VERSION, ArenaMonitorSnapshot};

pub(crate) use crate::Violation;

pub(crate) use slot::{Finished, SlotLink};
pub(crate) use words::{ArenaWords, GrantWords};
